"""Small raw shards of drawn pictures for tests that train."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pictish.data.shards import ShardFile


def drawn_picture(seed: int, side: int = 48) -> Image.Image:
    """A disc and a bar of random colours on white, with an alpha channel."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    for shape in (draw.ellipse, draw.rectangle):
        left, top, width, height = rng.integers(2, side // 2, 4)
        colour = (*(int(c) for c in rng.integers(0, 230, 3)), 255)
        shape((left, top, left + width, top + height), fill=colour)
    return picture


def write_shard(path: Path, count: int, first: int = 0) -> Path:
    """A shard of `count` pictures with captions."""
    with ShardFile(path) as shard:
        for number in range(first, first + count):
            buffer = io.BytesIO()
            drawn_picture(number).save(buffer, "PNG")
            caption = f"picture {number}".encode()
            shard.write(f"{number:05d}", {"png": buffer.getvalue(), "txt": caption})
    return path
