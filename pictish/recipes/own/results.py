"""What comes of a training: held-out pictures measured, samples drawn, a model card written."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pictish.data.images import fit_square, load_image, png_bytes
from pictish.data.loader import ImageBytes
from pictish.data.samples import Pair, index_shard
from pictish.evaluation.drawing import SheetRow, contact_sheet
from pictish.evaluation.metrics import psnr
from pictish.io.files import printable, write_atomic
from pictish.pipelines.assemble import parts_of
from pictish.pipelines.pipeline import Pipeline
from pictish.recipes.own.config import OwnConfig

NUMBERS, SAMPLES, CARD = "evaluation.json", "samples.png", "README.md"
_BATCH = 32  # pictures


def held_out(out: Path) -> Iterator[tuple[bytes, str]]:
    """Held-out pictures with captions: the file's bytes, and its first caption."""
    for shard in sorted((out / "data" / "validation").glob("captioned-*.tar")):
        index = index_shard(shard)
        for row in range(len(index)):
            sample = index.read(row)
            if isinstance(sample, Pair) and isinstance(sample.picture, ImageBytes):
                yield sample.picture.blob, sample.captions[0]


def evaluate(config: OwnConfig, out: Path, pipe: Pipeline) -> dict[str, Any]:
    """PSNR of held-out pictures behind their codes, and the language model's last loss; OUT/evaluation.json.

    Pictures are compared as squares of the decoder's side, and drawn by the diffusion decoder and by the
    tokenizer's own reconstruction.
    """
    side = getattr(config.decoder.model, "side", pipe.tokenizer.image_size)  # a preview is of the tokenizer's
    lengths: list[int] = []
    values: dict[str, list[float]] = {"decoder": [], "preview": []}
    pictures = iter(islice(held_out(out), config.evaluate))
    while batch := [blob for blob, _ in islice(pictures, _BATCH)]:
        originals = np.stack([fit_square(load_image(blob), side) for blob in batch])
        tokens = [replace(one, size=(side, side)) for one in pipe.tokenize(batch)]
        lengths += map(len, tokens)
        for name, steps in (("decoder", None), ("preview", 0)):
            drawn = pipe.detokenize(tokens, num_inference_steps=steps, size=side, upscale=1)
            values[name] += psnr(np.stack([np.asarray(one) for one in drawn]), originals).tolist()
    loss = last_value(out / "runs" / "lm" / "metrics.jsonl", ["validation_loss"])
    numbers = {
        "held_out_pictures": len(lengths),
        "codes_a_picture": float(np.mean(lengths)),
        "side": side,
        **{f"psnr_{name}": float(np.mean(found)) for name, found in values.items()},
        "language_model_loss": loss[1] if loss else None,
    }
    write_atomic(out / NUMBERS, (json.dumps(numbers, indent=1, sort_keys=True) + "\n").encode("ascii"))
    return numbers


def draw_samples(config: OwnConfig, out: Path, pipe: Pipeline) -> None:
    """Held-out pictures beside their reconstruction and what their captions give; OUT/samples.png."""
    chosen = list(islice(held_out(out), config.samples))
    originals = [load_image(blob) for blob, _ in chosen]
    captions = [caption for _, caption in chosen]
    back = pipe.detokenize(pipe.tokenize(originals), upscale=1)
    drawn = [pipe.generate(captions, seed=seed, batch_size=len(captions)) for seed in (0, 1)]
    rows = []
    for place, caption in enumerate(captions):
        tiles = [(originals[place], ""), (back[place], "")]
        tiles += [(each[place], f"seed {seed}") for seed, each in enumerate(drawn)]
        rows.append(SheetRow("", printable(caption), (1, 1), tiles))
    columns = ["held-out picture", "from its codes", "from its caption", "again"]
    subtitle = "pictures that were not trained on, and what the model makes of their codes and captions"
    write_atomic(out / SAMPLES, png_bytes(contact_sheet("Samples", subtitle, columns, rows)))


def write_card(config: OwnConfig, out: Path, manifest: dict[str, Any], numbers: dict[str, Any]) -> None:
    """OUT/README.md: what was trained on what, what was measured, how to use it, what is not known."""
    parts = parts_of(out)
    sizes = [f"| {name} | {part.fingerprint} | {part.weights / 1e6:.2f} |" for name, part in parts.items()]
    sources = manifest["sources"]
    samples = ", ".join(f"{name} {count:,}" for name, count in manifest["samples"].items())
    initial = config.tokenizer.initial
    text = f"""# {printable(out.resolve().name)}

A pictish model of {sum(source["pictures"] for source in sources):,} pictures, size `{config.size}`.

    pictish generate "{_first(captions=held_out(out))}" --model {printable(out)}

![Held-out pictures, their reconstructions, and pictures generated from their captions]({SAMPLES})

| part | fingerprint | million weights |
|---|---|---|
{chr(10).join(sizes)}

## Data

{_lines_of(sources)}
Samples: {samples}. Held out: {manifest["validation"]}.

## Evaluation

| on {numbers["held_out_pictures"]:,} held-out pictures of {numbers["side"]} pixels | |
|---|---|
| codes a picture | {numbers["codes_a_picture"]:.1f} |
| PSNR of the decoder | {numbers["psnr_decoder"]:.2f} dB |
| PSNR of the tokenizer's own reconstruction | {numbers["psnr_preview"]:.2f} dB |
| loss of the language model a token | {numbers["language_model_loss"] or math.nan:.3f} |

## Training

Settings: `train.yaml`; losses: `runs/*/metrics.jsonl`. Started from: {initial or "random weights"}.

## Limits

Pictures generated from captions were not measured, only drawn ({SAMPLES}). The model knows what its pictures
show and no more. The licence of the weights follows from that of the pictures, which this card does not know.
"""
    write_atomic(out / CARD, text.encode("utf-8"))


def _first(captions: Iterator[tuple[bytes, str]]) -> str:
    caption = next((caption for _, caption in captions), "a picture")
    return printable(caption).replace('"', "'")[:80]


def _lines_of(sources: Sequence[dict[str, Any]]) -> str:
    lines = []
    for source in sources:
        left_out = sum(reason["count"] for reason in source["left_out"].values())
        said = ", ".join(f"`{place}`" for place in source["captions_from"]) or "nowhere"
        lines.append(
            f"- `{printable(source['source'])}`, {source['kind']}: {source['pictures']:,} pictures, "
            f"{source['captioned']:,} with captions (from {said}), {left_out:,} left out\n"
        )
    return "".join(lines)


def last_value(metrics: Path, names: Sequence[str]) -> tuple[int, float] | None:
    """Step and value of the last line of a run's metrics that has one of these names; None without any."""
    if not metrics.is_file():
        return None
    for line in reversed(metrics.read_text("utf-8").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:  # a line under way
            continue
        for name in names:
            if name in row:
                return row["step"], row[name]
    return None
