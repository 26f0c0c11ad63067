"""Images of a training set and their altered views, decoded and resized once and kept on disk.

Legend: M views of images, S side in pixels.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pictish.data.members import image_members
from pictish.data.shards import find_shards, open_shard
from pictish.data.views import picture_views
from pictish.io.files import matching, printable
from pictish.tokenizer.config import DataConfig
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup

logger = logging.getLogger(__name__)

CHUNK = 32  # images a task of a worker process
_NAME = "pictures-"


class PictureCache:
    """Images uint8 (M, S, S, 3) of a folder written by `build_cache`, memory-mapped.

    `samples` are the names of what the views were made of, as many of each. `digest` is of all that decides
    the images, wherever they lie.
    """

    def __init__(self, folder: Path, samples: Sequence[str]):
        self.samples = samples
        self.digest = folder.name.removeprefix(_NAME)
        self.pictures = np.load(folder / "pictures.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, step: int, size: int, seed: int, process_group: ProcessGroup = SINGLE_PROCESS) -> Tensor:
        """Images (B, S, S, 3) uint8 of one process's rows of step `step`, whose batch has `size`.

        Each comes once an epoch, in an order that `seed` fixes.
        """
        return torch.from_numpy(self.pictures[self._rows(step, size, seed)[process_group.rows(size)]])

    def names(
        self, step: int, size: int, seed: int, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> list[str]:
        """Names of the samples of `batch`."""
        return [self.samples[number] for number in self.numbers(step, size, seed, process_group)]

    def numbers(
        self, step: int, size: int, seed: int, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> list[int]:
        """Places in `samples` of those of `batch`."""
        views = len(self) // len(self.samples)
        return [int(row) // views for row in self._rows(step, size, seed)[process_group.rows(size)]]

    def _rows(self, step: int, size: int, seed: int) -> np.ndarray:
        places = np.arange(step * size, (step + 1) * size)
        epochs, within = places // len(self), places % len(self)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng((seed, int(epoch))).permutation(len(self))
            rows[epochs == epoch] = order[within[epochs == epoch]]
        return rows

    def in_order(self, size: int) -> Iterator[Tensor]:
        """All of them once, in batches of at most `size`."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(self.pictures[start : start + size].copy())  # a memory map is read-only


def build_cache(
    folder: Path,
    shards: Sequence[str],
    side: int,
    *,
    views: int,
    limit: int | None,
    workers: int,
    seed: int,
    report: Callable[[int, int], None],
) -> PictureCache:
    """The cache of these images at `side` pixels under `folder`, built if it is not there yet.

    Its name holds a digest of all that it depends on; it is written beside and renamed. `report` is called
    with images done and in all. Raises ValueError when the shards hold no images.
    """
    found = _read_pictures(shards)[:limit]
    samples = [f"{printable(shard)}/{printable(key)}" for shard, key, _ in found]
    blobs = [(key, blob) for _, key, blob in found]
    depends = [side, views, seed, [(key, _digest(blob)) for key, blob in blobs]]
    final = folder / f"{_NAME}{_digest(json.dumps(depends).encode())[:12]}"
    if final.is_dir():
        return PictureCache(final, samples)
    temporary = folder / f".{final.name}.pictish-tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    count, done = len(blobs) * views, 0
    pictures = _mapped(temporary / "pictures.npy", np.uint8, (count, side, side, 3))
    for pixels in DataLoader(_Chunks(blobs, views, side, seed), batch_size=None, num_workers=workers):
        pictures[done : done + len(pixels)] = pixels.numpy()
        done += len(pixels)
        report(done, count)
    assert done == count, (done, count)
    pictures.flush()
    temporary.rename(final)
    return PictureCache(final, samples)


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A new array on disk, mapped; OSError when the disk is too full for it."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk would be found by a write, which kills the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def training_caches(data: DataConfig, side: int, run: Path, seed: int) -> tuple[PictureCache, PictureCache]:
    """The caches of the training views and of the validation images as they are, at `side` pixels."""
    folder = Path(data.cache) if data.cache else run / "cache"
    build = partial(build_cache, folder, side=side, workers=data.workers, seed=seed, report=_report)
    return (
        build(shards=data.train, views=data.views, limit=data.limit),
        build(shards=data.validation, views=1, limit=None),
    )


def resized(pixels: Tensor, side: int) -> Tensor:
    """Images uint8 (m, S, S, 3) at another side: area means going down, bilinear going up."""
    if pixels.shape[1] == side:
        return pixels
    planes = rearrange(pixels, "m h w c -> m c h w").float()
    mode = "area" if side < pixels.shape[1] else "bilinear"
    sized = F.interpolate(planes, size=(side, side), mode=mode)
    return rearrange(sized.round().to(torch.uint8), "m c h w -> m h w c")


def _report(done: int, count: int) -> None:
    if done == count or done % 4096 < CHUNK:
        logger.info("decoded %d of %d images", done, count)


def _read_pictures(shards: Sequence[str]) -> list[tuple[str, str, bytes]]:
    """(name of the shard, key, encoded image) of every sample that has one, in shard order."""
    blobs = []
    for path in find_shards(matching(shards)):
        with open_shard(path) as shard:
            for key in shard.samples:
                members = shard.read(key)
                images = image_members(members)
                if "" in images:
                    blobs.append((path.name, key, members[images[""][0]]))
            for name, reason in shard.ignored.items():
                logger.warning("%s/%s: %s", printable(path.name), printable(name), reason)
            if shard.damage is not None:
                logger.warning("%s: %s; the samples behind it are lost", printable(path.name), shard.damage)
    if not blobs:
        raise ValueError(f"no images in {', '.join(shards)}: shards with images were asked for")
    return blobs


class _Chunks(Dataset):
    """Chunks of images as uint8 (m, side, side, 3); a backdrop comes from a seeded partner."""

    def __init__(self, blobs: list[tuple[str, bytes]], views: int, side: int, seed: int):
        self.blobs, self.views, self.side = blobs, views, side
        self.partners = np.random.default_rng(seed).permutation(len(blobs))

    def __len__(self) -> int:
        return -(-len(self.blobs) // CHUNK)

    def __getitem__(self, chunk: int) -> Tensor:
        places = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.blobs)))
        rendered = [
            picture_views(
                self.blobs[i][1], self.views, self.side, self.blobs[i][0], self.blobs[self.partners[i]][1]
            )
            for i in places
        ]
        return torch.from_numpy(np.concatenate(rendered))


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()
