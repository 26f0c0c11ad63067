"""Micro-batches of fixed shapes, side by side on the cores of a CPU, one thread each.

An image's shapes depend on itself alone, so that kernels round it alike in any company. A small micro-batch
does not keep several cores busy: two threads inside each operation took 19 ms of CPU time an image where one
takes 13 (docs/log.md).
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

BUCKET = 8  # kept lengths are padded to a multiple

Item = TypeVar("Item")
Result = TypeVar("Result")


class SideBySide:
    """Maps a function over items, in order; on a GPU one after the other in the caller's thread.

    The threads start with the first use, also with the first in a forked child, which has none of its
    parent's. They run operations with one thread each.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads() if device.type == "cpu" else 0
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()
        self._process = os.getpid()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of `items`, without gradients."""
        if not self._threads:
            yield from map(function, items)
            return
        if self._process != os.getpid():  # a lock may have been held when it forked
            self._pool, self._starting, self._process = None, threading.Lock(), os.getpid()
        with self._starting:
            pool = self._pool = self._pool or _single_threaded(self._threads)

        def run(item: Item) -> Result:
            with torch.inference_mode():  # belongs to a thread
                return function(item)

        yield from pool.map(run, items)


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """A pool whose threads run each operation on one core; other threads keep their setting."""
    before = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread; new threads of others would inherit it, hence below
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="pictish-model")
    for _ in range(count):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(before)
    return pool


def filled_groups(pixels: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Groups of exactly `size` images of (B, S, S, 3), the last filled with blanks; how many are real."""
    for start in range(0, len(pixels), size):
        group = pixels[start : start + size]
        real = len(group)
        if real < size:
            group = torch.cat([group, group.new_full((size - real, *group.shape[1:]), 255)])
        yield group, real


def buckets(lengths: Sequence[int], longest: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Indices whose lengths round up to the same bucket, at most `size` at a time, and the bucket."""
    by_bucket: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        bucket = min(-(-length // BUCKET) * BUCKET, longest)
        by_bucket.setdefault(bucket, []).append(index)
    for bucket, indices in sorted(by_bucket.items()):
        for start in range(0, len(indices), size):
            yield indices[start : start + size], bucket
