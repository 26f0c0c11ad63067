"""Raw shards and what became of them, for the tests of bulk tokenization."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pictish.data.shards import ShardFile
from tests.tree import ROOT


def noise_png(number: int) -> bytes:
    """A small image of its own for every number."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((40 + number % 7, 30), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def raw_shards(folder: Path, shards: int, samples: int = 4) -> Path:
    """Shards `raw-0.tar`, ... with an image, a caption and JSON a sample."""
    for number in range(shards):
        with ShardFile(folder / f"raw-{number}.tar") as shard:
            for index in range(samples):
                others = {"txt": f"caption {index}".encode(), "json": b'{"licence": "MIT"}'}
                shard.write(f"s{number}/{index:03d}", {"png": noise_png(number * 10 + index), **others})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pictish(*words: object, seconds: int = 300, **environment: str):
    """Run `pictish WORDS` in a process of its own."""
    command = [sys.executable, "-m", "pictish", *map(str, words)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=seconds)
