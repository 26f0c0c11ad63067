"""Tokenizer and decoder on one process, and shared out to several: `sharded.py FOLDER`; see test_sharded."""

import os
import sys
from functools import partial
from pathlib import Path

import pictish.decoder.train
import pictish.tokenizer.train  # noqa: F401 (before the forks)
from tests.forks import forked
from tests.shards import write_shard

PHASES = (
    "phases=[{name: a, steps: 6, quantize: false, learning_rate: 0.003, warmup: 2},"
    " {name: b, steps: 14, quantize: true, learning_rate: 0.003, warmup: 2}]"
)


def train(part: str, run: Path, settings: list[str], fsdp: str) -> None:
    """`pictish train`, asked for shards by its option or by the launcher."""
    from pictish.cli import main

    if fsdp == "launcher":
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    sys.argv = ["pictish", "train", part, f"tiny/{part}", *settings, "--run", str(run)]
    sys.argv += ["--device", "cpu", "--quiet", *(["--fsdp"] if fsdp == "option" else [])]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def compare(folder: Path) -> None:
    """Train FOLDER/PART-one on one process and FOLDER/PART-two on two."""
    write_shard(folder / "train.tar", 40)
    write_shard(folder / "validation.tar", 8, first=1000)
    settings = [
        f"data.train=[{folder / 'train.tar'}]",
        f"data.validation=[{folder / 'validation.tar'}]",
        f"data.cache={folder / 'cache'}",
        "log_every=1",
        "validate_every=20",
        "checkpoint_every=20",
    ]
    told = f"tokenizer={folder / 'tokenizer-one' / 'model'}"
    own = {
        "tokenizer": [PHASES],
        "decoder": [told, "objective.perceptual=0.1", "objective.ema=0.9", "steps=20", "sample_every=20"],
    }
    for part, fsdp in (("tokenizer", "option"), ("decoder", "launcher")):
        for processes, name in ((1, "one"), (2, "two")):
            run = folder / f"{part}-{name}"
            work = partial(train, part, run, [*settings, *own[part]], fsdp if processes > 1 else "")
            assert not any(forked(processes, work)), (part, name)


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
