"""Many shards on many workers: what is tried again, and what is given up.

A worker does one shard at a time and may die of it. `drive` hands out shards, one thread a worker. Workers of
this machine are in local.py, those of a Ray cluster in ray_engine.py.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pictish.bulk.batch_tokenizer import BatchTokenizer
from pictish.bulk.shard import Bulk, Outcome, attempt
from pictish.io.storage import Stored

_LONGEST_WAIT = 60.0  # seconds between two attempts


class WorkerDied(Exception):
    """The process that had a shard is gone; the worker starts another one for the next shard."""


class Worker(Protocol):
    """Something that does one shard at a time."""

    def run(self, source: Stored) -> Outcome:
        """Do a shard; WorkerDied when the process is gone."""

    def stop(self) -> None:
        """End the process, whatever it is at; may be called from another thread."""


class Here:
    """The worker that is this process."""

    def __init__(self, batch_tokenizer: BatchTokenizer, bulk: Bulk, done: Callable[[int], None]) -> None:
        self._batch_tokenizer, self._bulk, self._done = batch_tokenizer, bulk, done

    def run(self, source: Stored) -> Outcome:
        """Do a shard."""
        return attempt(self._batch_tokenizer, self._bulk, source, self._done)

    def stop(self) -> None:
        """There is nothing to end."""


def drive(
    workers: Sequence[Worker], sources: Sequence[Stored], retries: int
) -> Generator[tuple[Stored, Outcome], None, None]:
    """Each source with what became of it in the end, in the order they are settled.

    A shard whose worker died or that met trouble with files is tried again `retries` times. Close the
    generator to stop early: the workers are ended.
    """
    stopped = threading.Event()
    if len(workers) == 1 and isinstance(workers[0], Here):
        for source in sources:
            yield source, settle(workers[0], source, retries, stopped)
        return
    waiting: queue.SimpleQueue[Stored] = queue.SimpleQueue()
    settled: queue.SimpleQueue[tuple[Stored, Outcome] | BaseException] = queue.SimpleQueue()
    for source in sources:
        waiting.put(source)

    def serve(worker: Worker) -> None:
        try:
            while not stopped.is_set():
                source = waiting.get_nowait()
                settled.put((source, settle(worker, source, retries, stopped)))
        except queue.Empty:
            pass
        except BaseException as error:
            settled.put(error)

    with ThreadPoolExecutor(len(workers), thread_name_prefix="pictish-shard") as pool:
        try:
            for worker in workers:
                pool.submit(serve, worker)
            for _ in sources:
                result = settled.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            stopped.set()
            for worker in workers:
                worker.stop()


def settle(worker: Worker, source: Stored, retries: int, stopped: threading.Event) -> Outcome:
    """Have a worker do a shard until it is done, lost, or was tried `retries` times more than once."""
    for number in range(1, retries + 2):
        try:
            outcome = worker.run(source)
        except WorkerDied as error:
            outcome = Outcome("again", reason=str(error))
        outcome = dataclasses.replace(outcome, attempts=number)
        if outcome.kind != "again" or stopped.is_set():
            return outcome
        if number <= retries:
            stopped.wait(min(0.25 * 2**number, _LONGEST_WAIT))
    times = "once" if retries == 0 else f"{retries + 1} times"
    return Outcome("lost", reason=f"{outcome.reason} (tried {times})", attempts=retries + 1)
