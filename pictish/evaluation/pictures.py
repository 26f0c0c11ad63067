"""The images an evaluation runs over, one at a time: image folders, image files and WebDataset shards."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import torch

    from pictish.io.finding import File

logger = logging.getLogger(__name__)

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
"""The colour photographs inside scikit-image 0.26; its other images are grey, drawn or downloaded."""
FLAT = (
    *("black", "silver", "gray", "white", "maroon", "red", "purple", "fuchsia"),
    *("green", "lime", "olive", "yellow", "navy", "blue", "teal", "aqua"),
)
"""The sixteen colours that HTML 4 names."""


@dataclass(frozen=True)
class Picture:
    """One image, decoded: `index` counts every image of the source, broken ones too."""

    index: int
    name: str
    image: Image.Image


@dataclass(frozen=True)
class Broken:
    """An image that cannot be decoded, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Prepared:
    """What is kept of an image until its batch is full: two small squares, not its own pixels."""

    index: int
    name: str
    size: tuple[int, int]
    """(height, width) of the original, pixels."""
    pixels: np.ndarray
    """(S, S, 3) uint8, what the tokenizer sees."""
    original: np.ndarray
    """(side, side, 3) uint8, what the decoder's image is compared with."""


class PictureSource:
    """Images of folders, files and shards in a fixed order, decoded when asked for and never kept.

    Of a sample in a shard all images count, named ones too. ValueError when there is nothing to read.
    """

    def __init__(self, inputs: Sequence[Path], limit: int | None = None) -> None:
        from pictish.data.images import images_of
        from pictish.io.finding import find

        found = find(inputs)
        self.shards = sorted((file.path for file in found.shards), key=lambda path: (path.name, str(path)))
        self.files: list[File] = [] if self.shards and not found.images else images_of(found, inputs)
        self.limit = limit
        self._problems = [Broken(name, reason) for name, reason in found.problems]
        if note := found.note():
            logger.warning(note)

    def decode(self, wanted: Collection[int] | None = None) -> Iterator[Picture | Broken]:
        """Every image, or those whose index is wanted; first what could not be searched, which has none."""
        from pictish.data.images import load_image
        from pictish.io.files import one_line

        last = max(wanted) if wanted else None
        if wanted is None:
            yield from self._problems
        index = 0
        for name, source in self._sources():
            if isinstance(source, ValueError):
                if wanted is None:
                    yield Broken(name, one_line(source))
                continue
            if index == self.limit or (last is not None and index > last):
                return
            if wanted is None or index in wanted:
                try:
                    yield Picture(index, name, load_image(source))
                except (ValueError, OSError) as error:
                    yield Broken(name, one_line(error))
            index += 1

    @property
    def total(self) -> int | None:
        """How many images `decode` will give, when that is known without reading the shards."""
        if self.shards:
            return self.limit
        return len(self.files) if self.limit is None else min(self.limit, len(self.files))

    def _sources(self) -> Iterator[tuple[str, Path | bytes | ValueError]]:
        """Name of each image and what holds it, or why something is no image."""
        from pictish.data.members import image_members
        from pictish.data.shards import open_shard
        from pictish.io.finding import supported

        for file in self.files:
            yield file.name, file.path
        for path in self.shards:
            pictures = 0
            try:
                with open_shard(path) as shard:
                    for name, reason in shard.ignored.items():
                        yield f"{path.name}/{name}", ValueError(reason)
                    for key in shard.samples:
                        members = shard.read(key)
                        images = image_members(members)
                        for used, *more in images.values():
                            pictures += 1
                            yield f"{path.name}/{key}.{used}", members[used]
                            for other in more:
                                why = f"its sample has .{used} too, which is read"
                                yield f"{path.name}/{key}.{other}", ValueError(why)
                    if not pictures:
                        raise ValueError(f"holds no images; supported formats: {supported()}")
                    if shard.damage is not None:
                        raise ValueError(shard.damage)
            except (ValueError, OSError) as error:
                reason = str(error).removeprefix(f"{path.name}: ")
                yield path.name, ValueError(reason)


class FlatPictures:
    """An image of each of the colours `FLAT`, as a source like `PictureSource`."""

    total = len(FLAT)

    def decode(self, wanted: Collection[int] | None = None) -> Iterator[Picture | Broken]:
        """Every image, or those whose index is wanted."""
        for index, name in enumerate(FLAT):
            if wanted is None or index in wanted:
                yield Picture(index, name, Image.new("RGB", (64, 64), name))


def photographs() -> PictureSource:
    """The colour photographs inside scikit-image, nothing downloaded; ValueError when they are not there."""
    import importlib.util

    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "--photographs reads images inside scikit-image, which is missing: pip install scikit-image"
        )
    folder = Path(spec.origin).parent / "data"
    present = [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]
    if not present:
        raise ValueError(
            f"--photographs: {folder} holds none of {', '.join(PHOTOGRAPHS)}; another scikit-image version?"
        )
    return PictureSource(present)


def prepare(
    picture: Picture, resize: Callable[[Image.Image], npt.NDArray[np.uint8]], decoder_side: int
) -> Prepared:
    """Squash an image as the tokenizer does, and to the side that the decoder works at."""
    from pictish.data.images import fit_square

    pixels = resize(picture.image)
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
    """Batches of readable images, the others go to `broken`; ValueError when none can be read."""
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
        raise ValueError(f"nothing to evaluate in {name}: no readable image{unread}")


def stacked(pictures: Sequence[Prepared]) -> "torch.Tensor":
    """What the tokenizer sees of images, (B, S, S, 3) uint8."""
    import torch

    return torch.from_numpy(np.stack([picture.pixels for picture in pictures]))


def resized(pictures: Iterable[np.ndarray], side: int) -> np.ndarray:
    """Images (height, width, 3) uint8 at one side, (P, S, S, 3), by bicubic interpolation if need be."""
    return np.stack([_resized(one, side) for one in pictures])


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def seed_of(seed: int, name: str) -> int:
    """An image's own seed: it depends on the seed and its name alone, not on the order or the batch."""
    digest = hashlib.sha256(f"{seed}|{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
