"""Shards of made-up tokenized images, whose codes follow from their caption."""

from pathlib import Path

import numpy as np

from pictish.data.shards import ShardFile
from pictish.data.tokens import EncodedImage, TokenizedImage

FINGERPRINT = "0123456789ab"
CODES = 30
COLOURS = ("red", "green", "blue")
THINGS = ("apple", "car", "house", "sun")


def picture(caption: str, chance: np.random.Generator, fingerprint: str = FINGERPRINT) -> TokenizedImage:
    """Two codes for the colour, two for the thing, and a free one at the end of some."""
    words = caption.split()
    colour, thing = COLOURS.index(words[1]), THINGS.index(words[2])
    ids = [colour, 3 + colour, 6 + thing, 10 + thing, *chance.integers(20, CODES, chance.integers(0, 2))]
    cells = np.array([1, 2, 6, 11, 15])[: len(ids)]
    return TokenizedImage(np.array(ids), cells, (4, 4), (64, 64), fingerprint, CODES)


def encoded(ids: list[int], cells: list[int] | None, features: np.ndarray) -> EncodedImage:
    """What a tokenizer makes of a raw image."""
    cells = None if cells is None else np.array(cells)
    return EncodedImage(TokenizedImage(np.array(ids), cells, (4, 4), (64, 64), FINGERPRINT, CODES), features)


def caption(chance: np.random.Generator) -> str:
    return f"a {chance.choice(COLOURS)} {chance.choice(THINGS)}"


def pair_shard(path: Path, count: int, seed: int = 0, fingerprint: str = FINGERPRINT) -> None:
    """Images with captions."""
    chance = np.random.default_rng(seed)
    with ShardFile(path) as shard:
        for number in range(count):
            text = caption(chance)
            tokens = picture(text, chance, fingerprint).to_bytes()
            shard.write(f"{number:04d}", {"tokens": tokens, "txt": text.encode()})
