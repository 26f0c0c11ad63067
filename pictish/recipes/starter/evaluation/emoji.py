"""Emoji of the starter data, as the evaluations read them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pictish.recipes.starter.phrases import Picture

if TYPE_CHECKING:
    from PIL import Image

SETS = ("noto", "twemoji", "fluent-emoji-flat")


def read_emoji(data: Path, split: str | None = None) -> list[Picture]:
    """The emoji of one split of the starter data or of all, by key, their PNG bytes in place of tokens.

    ValueError when there are none, or samples that are none of the starter data.
    """
    from pictish.data.shards import read_shard
    from pictish.io.files import printable

    shards = [shard for name in SETS for shard in sorted(data.glob(f"{split or '*'}/{name}-*.tar"))]
    if not shards or not (data / "manifest.json").is_file():
        raise ValueError(
            f"{printable(data)} is no starter data: it lacks manifest.json or "
            f"{split or 'train'}/{SETS[0]}-000000.tar; build it with: pictish data starter OUT"
        )
    found = []
    for shard in shards:
        for sample in read_shard(shard):
            if not {"json", "png"} <= set(sample):
                raise ValueError(
                    f"{printable(shard)}: {printable(sample['__key__'])} lacks its .json or .png"
                )
            found.append(Picture(sample["__key__"], sample["png"], json.loads(sample["json"])))
    return sorted(found, key=lambda picture: picture.key)


def image_of(picture: Picture) -> "Image.Image":
    """The image as RGB over white."""
    from pictish.data.images import load_image
    from pictish.io.files import printable

    try:
        return load_image(picture.tokens)
    except ValueError as error:
        raise ValueError(f"{printable(picture.key)}.png: {error}") from error
