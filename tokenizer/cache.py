"""Encoder features of a training set, computed once and kept on disk in fp16.

The encoder is frozen and slow (150 pictures a second on two cores), so a run of many epochs should meet it
once.

Legend: M views of pictures, N cells, F feature channels.
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

from pictish.data.files import matching, printable
from pictish.data.shards import find_shards, read_shard
from pictish.data.views import picture_views
from pictish.tokenizer.config import DataConfig
from pictish.tokenizer.encoder import Encoder
from pictish.training.share import ALONE, Share

logger = logging.getLogger(__name__)

CHUNK = 32  # pictures a task of a worker process
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")


class FeatureCache:
    """Raw encoder features (M, N, F) of a folder written by `build_cache`, memory-mapped.

    Where they were asked for, the pictures themselves (M, S, S, 3) uint8 lie beside them. `samples` are the
    names of what the views were made of, as many of each.
    """

    def __init__(self, folder: Path, samples: Sequence[str]):
        self._samples = samples
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        kept = folder / "pictures.npy"
        self.pictures = np.load(kept, mmap_mode="r") if kept.exists() else None
        statistics = np.load(folder / "statistics.npy")
        self.mean, self.std = torch.from_numpy(statistics[0]), torch.from_numpy(statistics[1])

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, step: int, size: int, seed: int, share: Share = ALONE) -> tuple[Tensor, Tensor | None]:
        """Features (B, N, F) of a process's `share` of step `step`, whose batch has `size` pictures.

        Each picture comes once an epoch, in an order that `seed` fixes. With the features come the pictures
        (B, S, S, 3), or None.
        """
        return self._at(self._rows(step, size, seed)[share.rows(size)])

    def names(self, step: int, size: int, seed: int, share: Share = ALONE) -> list[str]:
        """Names of the samples of `batch`."""
        views = len(self) // len(self._samples)
        return [self._samples[row // views] for row in self._rows(step, size, seed)[share.rows(size)]]

    def _rows(self, step: int, size: int, seed: int) -> np.ndarray:
        places = np.arange(step * size, (step + 1) * size)
        epochs, within = places // len(self), places % len(self)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng((seed, int(epoch))).permutation(len(self))
            rows[epochs == epoch] = order[within[epochs == epoch]]
        return rows

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All of them once, in batches of at most `size`."""
        for start in range(0, len(self), size):
            yield self._at(np.arange(start, min(start + size, len(self))))

    def _at(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        pictures = None if self.pictures is None else torch.from_numpy(self.pictures[rows])
        return torch.from_numpy(self.features[rows]), pictures


def build_cache(
    folder: Path,
    encoder: Encoder,
    shards: Sequence[str],
    *,
    views: int,
    limit: int | None,
    workers: int,
    seed: int,
    report: Callable[[int, int], None],
    pictures: int | None = None,
) -> FeatureCache:
    """The cache for these pictures and this encoder under `folder`, built if it is not there yet.

    With `pictures`, a side in pixels, the views themselves are kept too. Its name holds a digest of all that
    it depends on; it is written beside and renamed. `report` is called with pictures done and in all. Raises
    ValueError when the shards hold no pictures.
    """
    found = _read_pictures(shards)[:limit]
    samples = [f"{printable(shard)}/{printable(key)}" for shard, key, _ in found]
    blobs = [(key, blob) for _, key, blob in found]
    depends = [
        encoder.sha256,
        encoder.config.model_dump_json(),
        views,
        seed,
        [(k, _digest(b)) for k, b in blobs],
        *([pictures] if pictures else []),
    ]
    final = folder / f"features-{_digest(json.dumps(depends).encode())[:12]}"
    if final.is_dir():
        return FeatureCache(final, samples)
    temporary = folder / f".{final.name}.pictish-tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    count = len(blobs) * views
    features = _mapped(temporary / "features.npy", np.float16, (count, encoder.cells, encoder.features))
    kept = _mapped(temporary / "pictures.npy", np.uint8, (count, pictures, pictures, 3)) if pictures else None
    total, squares = torch.zeros(2, encoder.features, dtype=torch.float64)
    done = 0
    # rendered at the larger side; the encoder sees its own
    side = encoder.config.image_size
    chunks = _Chunks(blobs, views, max(side, pictures or 0), seed)
    for pixels in DataLoader(chunks, batch_size=None, num_workers=workers):
        for group in pixels.split(4 * encoder.config.micro_batch):
            raw = encoder.raw(_resized(group, side).to(encoder.mean.device)).cpu()
            if kept is not None:
                kept[done : done + len(raw)] = _resized(group, kept.shape[1]).numpy()
            features[done : done + len(raw)] = raw.half().numpy()
            total += raw.sum((0, 1), dtype=torch.float64)
            squares += raw.double().square().sum((0, 1))
            done += len(raw)
        report(done, count)
    assert done == count, (done, count)
    features.flush()
    if kept is not None:
        kept.flush()
    mean = total / (count * encoder.cells)
    std = (squares / (count * encoder.cells) - mean**2).clamp_min(0).sqrt()
    np.save(temporary / "statistics.npy", torch.stack([mean, std]).float().numpy())
    temporary.rename(final)
    return FeatureCache(final, samples)


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A new array on disk, mapped; OSError when the disk is too full for it."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk would be found by a write, which kills the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def training_caches(
    data: DataConfig, encoder: Encoder, run: Path, seed: int, pictures: int | None = None
) -> tuple[FeatureCache, FeatureCache]:
    """The caches of the training views and of the validation pictures as they are."""
    folder = Path(data.cache) if data.cache else run / "cache"
    build = partial(
        build_cache, folder, encoder, workers=data.workers, seed=seed, report=_report, pictures=pictures
    )
    return (
        build(shards=data.train, views=data.views, limit=data.limit),
        build(shards=data.validation, views=1, limit=None),
    )


def _resized(pixels: Tensor, side: int) -> Tensor:
    """Pictures uint8 (m, S, S, 3) at another side: area means going down, bilinear going up."""
    if pixels.shape[1] == side:
        return pixels
    planes = rearrange(pixels, "m h w c -> m c h w").float()
    mode = "area" if side < pixels.shape[1] else "bilinear"
    sized = F.interpolate(planes, size=(side, side), mode=mode)
    return rearrange(sized.round().to(torch.uint8), "m c h w -> m h w c")


def _report(done: int, count: int) -> None:
    if done == count or done % 4096 < CHUNK:
        logger.info("encoded %d of %d pictures", done, count)


def _read_pictures(shards: Sequence[str]) -> list[tuple[str, str, bytes]]:
    """(name of the shard, key, encoded picture) of every sample that has one, in shard order."""
    blobs = []
    for shard in find_shards(matching(shards)):
        for sample in read_shard(shard):
            found = [sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample]
            if found:
                blobs.append((shard.name, sample["__key__"], found[0]))
    if not blobs:
        raise ValueError(
            f"no pictures in {', '.join(shards)}: shards with png, jpg or webp members were asked for"
        )
    return blobs


class _Chunks(Dataset):
    """Chunks of pictures as uint8 (m, side, side, 3); a backdrop comes from a seeded partner."""

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
