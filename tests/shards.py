"""Small raw shards of drawn images for tests that train."""

import io
import json
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
    """A shard of `count` images with captions."""
    with ShardFile(path) as shard:
        for number in range(first, first + count):
            buffer = io.BytesIO()
            drawn_picture(number).save(buffer, "PNG")
            caption = f"picture {number}".encode()
            shard.write(f"{number:05d}", {"png": buffer.getvalue(), "txt": caption})
    return path


COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
SHAPES = ("disc", "bar")


def told_picture(colour: str, shape: str, side: int = 48) -> Image.Image:
    """One shape of one colour, that a caption tells in full."""
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    box = (side // 6, side // 6, 5 * side // 6, 5 * side // 6)
    if shape == "disc":
        draw.ellipse(box, fill=COLOURS[colour])
    else:
        draw.rectangle((box[0], side // 3, box[2], 2 * side // 3), fill=COLOURS[colour])
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_described_shards(folder: Path, count: int, seed: int = 0) -> None:
    """`pairs.tar`, `edits.tar` (of colour) and `questions.tar` of told images, `count` samples each."""
    rng = np.random.default_rng(seed)
    colours = list(COLOURS)

    def pick() -> tuple[str, str]:
        return colours[rng.integers(3)], SHAPES[rng.integers(2)]

    with ShardFile(folder / "pairs.tar") as shard:
        for number in range(count):
            colour, shape = pick()
            caption = f"a {colour} {shape}".encode()
            shard.write(f"{number:05d}", {"png": png(told_picture(colour, shape)), "txt": caption})
    with ShardFile(folder / "edits.tar") as shard:
        for number in range(count):
            (colour, shape), (other, _) = pick(), pick()
            told = {"source": "source.png", "instruction": f"make it {other}", "target": "target.png"}
            members = {
                "source.png": png(told_picture(colour, shape)),
                "target.png": png(told_picture(other, shape)),
                "json": json.dumps({"edit": told}).encode(),
            }
            shard.write(f"{number:05d}", members)
    with ShardFile(folder / "questions.tar") as shard:
        for number in range(count):
            colour, shape = pick()
            turns = [
                {"question": "which colour?", "answer": colour},
                {"question": "which shape?", "answer": shape},
            ]
            members = {
                "png": png(told_picture(colour, shape)),
                "json": json.dumps({"questions": turns}).encode(),
            }
            shard.write(f"{number:05d}", members)
