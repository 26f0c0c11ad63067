"""The pictures an evaluation runs over, one at a time: image folders, image files and WebDataset shards."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import torch

    from pictish.data.images import ImageFile

BATCH = 32
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
"""The colour photographs inside scikit-image 0.26; its other pictures are grey, drawn or downloaded."""
FLAT = (
    *("black", "silver", "gray", "white", "maroon", "red", "purple", "fuchsia"),
    *("green", "lime", "olive", "yellow", "navy", "blue", "teal", "aqua"),
)
"""The sixteen colours that HTML 4 names."""


@dataclass(frozen=True)
class Picture:
    """One picture, decoded: `index` counts every picture of the source, broken ones too."""

    index: int
    name: str
    image: Image.Image


@dataclass(frozen=True)
class Broken:
    """A picture that cannot be decoded, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Prepared:
    """What is kept of a picture until its batch is full: two small squares, not its own pixels."""

    index: int
    name: str
    size: tuple[int, int]
    """(height, width) of the original, pixels."""
    pixels: np.ndarray
    """(S, S, 3) uint8, what the tokenizer sees."""
    original: np.ndarray
    """(side, side, 3) uint8, what the decoder's picture is compared with."""


class PictureSource:
    """Pictures of folders, files and shards in a fixed order, decoded when asked for and never kept.

    A folder that holds tars gives the pictures inside them, any other its image files. ValueError when there
    is nothing to read.
    """

    def __init__(self, inputs: Sequence[Path], limit: int | None = None) -> None:
        from pictish.data.images import find_images
        from pictish.data.shards import find_shards
        from pictish.io.storage import holds_shards

        shards = [entry for entry in inputs if holds_shards(entry)]
        others = [entry for entry in inputs if entry not in shards]
        self.files: list[ImageFile] = find_images(others) if others or not shards else []
        self.shards: list[Path] = find_shards(shards) if shards else []
        self.limit = limit

    def decode(self, wanted: Collection[int] | None = None) -> Iterator[Picture | Broken]:
        """Every picture, or those whose index is wanted."""
        from pictish.data.images import load_image
        from pictish.io.files import one_line

        last = max(wanted) if wanted else None
        for index, (name, source) in enumerate(self._sources()):
            if index == self.limit or (last is not None and index > last):
                return
            if wanted is not None and index not in wanted:
                continue
            try:
                yield Picture(index, name, load_image(source))
            except (ValueError, OSError) as error:
                yield Broken(name, one_line(error))

    @property
    def total(self) -> int | None:
        """How many pictures `decode` will give, when that is known without reading the shards."""
        if self.shards:
            return self.limit
        return len(self.files) if self.limit is None else min(self.limit, len(self.files))

    def _sources(self) -> Iterator[tuple[str, Path | bytes]]:
        from pictish.data.shards import PICTURES, read_shard

        for file in self.files:
            yield file.name, file.path
        for shard in self.shards:
            found = False
            for sample in read_shard(shard):
                suffix = next((suffix for suffix in PICTURES if suffix in sample), None)
                if suffix is not None:
                    found = True
                    yield f"{shard.name}/{sample['__key__']}.{suffix}", sample[suffix]
            if not found:
                raise ValueError(
                    f"{shard} holds no pictures; expected members ending in {' '.join(PICTURES)}"
                )


class FlatPictures:
    """A picture of each of the colours `FLAT`, as a source like `PictureSource`."""

    total = len(FLAT)

    def decode(self, wanted: Collection[int] | None = None) -> Iterator[Picture | Broken]:
        """Every picture, or those whose index is wanted."""
        for index, name in enumerate(FLAT):
            if wanted is None or index in wanted:
                yield Picture(index, name, Image.new("RGB", (64, 64), name))


def photographs() -> PictureSource:
    """The colour photographs inside scikit-image, nothing downloaded; ValueError when they are not there."""
    import importlib.util

    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "--photographs reads pictures inside scikit-image, which is missing: pip install scikit-image"
        )
    folder = Path(spec.origin).parent / "data"
    present = [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]
    if not present:
        raise ValueError(
            f"--photographs: {folder} holds none of {', '.join(PHOTOGRAPHS)}; another scikit-image version?"
        )
    return PictureSource(present)


def prepare(
    picture: Picture, squash: Callable[[Image.Image], npt.NDArray[np.uint8]], decoder_side: int
) -> Prepared:
    """Squash a picture as the tokenizer does, and to the side that the decoder works at."""
    from pictish.data.images import fit_square

    pixels = squash(picture.image)
    original = fit_square(picture.image, decoder_side)
    return Prepared(
        picture.index, picture.name, (picture.image.height, picture.image.width), pixels, original
    )


def in_batches(
    name: str,
    pictures: Iterable[Picture | Broken],
    broken: list[Broken],
    prepare: Callable[[Picture], Prepared],
) -> Iterator[list[Prepared]]:
    """Batches of readable pictures, the others go to `broken`; ValueError when none can be read."""
    batch: list[Prepared] = []
    nothing = True
    for each in pictures:
        if isinstance(each, Broken):
            broken.append(each)
            continue
        nothing = False
        batch.append(prepare(each))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
    if nothing:
        unread = f", {len(broken)} could not be read" if broken else ""
        raise ValueError(f"nothing to evaluate in {name}: no readable picture{unread}")


def stacked(pictures: Sequence[Prepared]) -> "torch.Tensor":
    """What the tokenizer sees of pictures, (B, S, S, 3) uint8."""
    import torch

    return torch.from_numpy(np.stack([picture.pixels for picture in pictures]))


def resized(pictures: Iterable[np.ndarray], side: int) -> np.ndarray:
    """Pictures (height, width, 3) uint8 at one side, (P, S, S, 3), by bicubic interpolation if need be."""
    return np.stack([_resized(one, side) for one in pictures])


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def seed_of(seed: int, name: str) -> int:
    """A picture's own seed: it depends on the seed and its name alone, not on the order or the batch."""
    digest = hashlib.sha256(f"{seed}|{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
