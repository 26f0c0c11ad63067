"""Encoder features of a training set, computed once and kept on disk in fp16.

The encoder is frozen and slow (150 pictures a second on two cores), so a run of many epochs should meet it
once.

Legend: M views of pictures, N cells, F feature channels.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pictish.data.files import matching
from pictish.data.shards import find_shards, read_shard
from pictish.data.views import picture_views
from pictish.tokenizer.config import DataConfig
from pictish.tokenizer.encoder import Encoder

logger = logging.getLogger(__name__)

CHUNK = 32  # pictures a task of a worker process
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")


class FeatureCache:
    """Raw encoder features (M, N, F) of a folder written by `build_cache`, memory-mapped."""

    def __init__(self, folder: Path):
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        statistics = np.load(folder / "statistics.npy")
        self.mean, self.std = torch.from_numpy(statistics[0]), torch.from_numpy(statistics[1])

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """Features (size, N, F) of step `step`: each picture once an epoch, in an order that `seed` fixes."""
        places = np.arange(step * size, (step + 1) * size)
        epochs, within = places // len(self), places % len(self)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng((seed, int(epoch))).permutation(len(self))
            rows[epochs == epoch] = order[within[epochs == epoch]]
        return torch.from_numpy(self.features[rows])

    def in_order(self, size: int) -> Iterator[Tensor]:
        """All features once, in batches of at most `size`."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.array(self.features[start : start + size]))


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
) -> FeatureCache:
    """The cache for these pictures and this encoder under `folder`, built if it is not there yet.

    Its name holds a digest of everything it depends on; it is written beside and renamed. `report` is called
    with pictures done and in all. Raises ValueError when the shards hold no pictures.
    """
    blobs = _read_pictures(shards)
    if limit is not None:
        blobs = blobs[:limit]
    depends = [
        encoder.sha256,
        encoder.config.model_dump_json(),
        views,
        seed,
        [(k, _digest(b)) for k, b in blobs],
    ]
    final = folder / f"features-{_digest(json.dumps(depends).encode())[:12]}"
    if final.is_dir():
        return FeatureCache(final)
    temporary = folder / f".{final.name}.pictish-tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    count = len(blobs) * views
    features = np.lib.format.open_memmap(
        temporary / "features.npy", "w+", np.float16, (count, encoder.cells, encoder.features)
    )
    total, squares = torch.zeros(2, encoder.features, dtype=torch.float64)
    done = 0
    chunks = _Chunks(blobs, views, encoder.config.image_size, seed)
    for pixels in DataLoader(chunks, batch_size=None, num_workers=workers):
        for group in pixels.split(4 * encoder.config.micro_batch):
            raw = encoder.raw(group.to(encoder.mean.device)).cpu()
            features[done : done + len(raw)] = raw.half().numpy()
            total += raw.sum((0, 1), dtype=torch.float64)
            squares += raw.double().square().sum((0, 1))
            done += len(raw)
        report(done, count)
    assert done == count, (done, count)
    features.flush()
    mean = total / (count * encoder.cells)
    std = (squares / (count * encoder.cells) - mean**2).clamp_min(0).sqrt()
    np.save(temporary / "statistics.npy", torch.stack([mean, std]).float().numpy())
    temporary.rename(final)
    return FeatureCache(final)


def training_caches(
    data: DataConfig, encoder: Encoder, run: Path, seed: int
) -> tuple[FeatureCache, FeatureCache]:
    """The caches of the training views and of the validation pictures as they are."""
    folder = Path(data.cache) if data.cache else run / "cache"
    build = partial(build_cache, folder, encoder, workers=data.workers, seed=seed, report=_report)
    return (
        build(shards=data.train, views=data.views, limit=data.limit),
        build(shards=data.validation, views=1, limit=None),
    )


def _report(done: int, count: int) -> None:
    if done == count or done % 4096 < CHUNK:
        logger.info("encoded %d of %d pictures", done, count)


def _read_pictures(shards: Sequence[str]) -> list[tuple[str, bytes]]:
    """(key, encoded picture) of every sample that has one, in shard order."""
    blobs = []
    for shard in find_shards(matching(shards)):
        for sample in read_shard(shard):
            found = [sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample]
            if found:
                blobs.append((sample["__key__"], found[0]))
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
