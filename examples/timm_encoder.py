"""Trains a tokenizer on the frozen features of another timm model.

    python examples/timm_encoder.py SHARDS RUN MODEL WEIGHTS [CONFIG] [KEY=VALUE ...]

SHARDS is a folder of WebDataset shards with images, MODEL a name that timm knows, WEIGHTS its safetensors
file (`random` for a dry run). CONFIG is the recipe to change, a YAML file or a shipped name. An interrupted
run resumes. The finished tokenizer is in RUN/model.
"""

import sys
from pathlib import Path

from pictish.configs import load, parse
from pictish.tokenizer.config import TrainConfig
from pictish.tokenizer.train import train


def main(shards: str, run: str, model: str, weights: str, config="starter/tokenizer", *changes: str) -> None:
    source = "{kind: random}" if weights == "random" else f"{{kind: file, path: {weights}}}"
    settings = [
        # `levels` are timm's out_indices. Their maps are resampled to the grid, whose cells become tokens.
        # The raw pixels of a cell stand beside the features, which know little of colour.
        f"model.encoder={{kind: timm, model: {model}, weights: {source}, image_size: 128, grid: 8}}",
        "model.encoder={levels: [2, 3], level_weights: [1, 1], pixels: 8}",
        "model.reconstructor.patch=8",  # pixels along each side of a cell: images of 64 x 64
        f"data.train=[{shards}]",
        f"data.validation=[{shards}]",
    ]
    parsed = parse(TrainConfig, load(config, [*settings, *changes]), config)
    print(train(parsed, Path(run), progress=lambda done, total: print(f"step {done} of {total}")))


if __name__ == "__main__":
    main(*sys.argv[1:])
