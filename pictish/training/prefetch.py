"""Reading ahead: an iterator runs in a thread, so that the training step finds its data ready."""

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Takes up to `depth` items of `source` ahead of time, in order; 0 takes each when it is asked for.

    What the source raises is raised by `next`, in its turn. Use it in a `with`, which ends the thread.
    """

    def __init__(self, source: Iterator[Item], depth: int) -> None:
        self._source = source
        self._items: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(max(depth, 1))
        self._stopped = threading.Event()
        self._thread = (
            threading.Thread(target=self._read, name="pictish-ahead", daemon=True) if depth else None
        )

    def __enter__(self) -> "Prefetcher[Item]":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            while self._thread.is_alive():
                while not self._items.empty():  # the thread may wait for room
                    self._items.get()
                self._thread.join(timeout=0.05)

    def next(self) -> tuple[Item, float]:
        """The next item, and the seconds that it was waited for; StopIteration at the end."""
        since = time.monotonic()
        if self._thread is None:
            return next(self._source), time.monotonic() - since
        item, error = self._items.get()
        if error is not None:
            raise error
        assert item is not None
        return item, time.monotonic() - since

    def _read(self) -> None:
        try:
            for item in self._source:
                if self._stopped.is_set():
                    return
                self._items.put((item, None))
            self._items.put((None, StopIteration()))
        except BaseException as error:  # it belongs to whoever waits
            self._items.put((None, error))
