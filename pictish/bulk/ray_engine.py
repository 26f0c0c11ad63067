"""Workers on a Ray cluster (pictish[ray]): one actor a worker, which takes places of shards, never images.

pictish reads the tars itself: ray.data.read_webdataset splits samples where one is not sorted. An actor that
dies, or whose node does, is made anew by us, since only we know that the shard is safe to do again.
"""

import logging
import os
from dataclasses import asdict
from typing import Any

from pictish.bulk.engine import WorkerDied
from pictish.bulk.shard import Bulk, Outcome
from pictish.io.files import one_line
from pictish.io.storage import Stored

_STORE = 80 << 20  # bytes of Ray's shared memory on this machine: nothing large is ever put there


class ShardActor:
    """Runs in the cluster: a loaded machine that does one shard after the other."""

    def __init__(self, bulk: dict[str, Any]) -> None:
        import contextlib

        from pictish.bulk.batch_tokenizer import open_batch_tokenizer

        self._bulk = Bulk.from_json(bulk)
        self._stack = contextlib.ExitStack()
        self._batch_tokenizer = self._stack.enter_context(open_batch_tokenizer(self._bulk.batch_tokenizer))

    def tokenize(self, source: dict[str, Any]) -> dict[str, Any]:
        """Do a shard."""
        from pictish.bulk.shard import attempt

        return asdict(attempt(self._batch_tokenizer, self._bulk, Stored(**source)))


class RayWorker:
    """The driver's side of one actor."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        self._actor: Any = None
        self._stopped = False

    def run(self, source: Stored) -> Outcome:
        """Do a shard; WorkerDied when the actor or its node is gone, or the model cannot be loaded there."""
        import ray

        if self._stopped:
            raise WorkerDied("the run was stopped")
        try:
            if self._actor is None:
                device = self._bulk.batch_tokenizer.device
                needs_gpu = device != "cpu" and (device != "auto" or "GPU" in ray.cluster_resources())
                options = {"num_cpus": 1, "num_gpus": int(needs_gpu), "max_restarts": 0}
                self._actor = ray.remote(ShardActor).options(**options).remote(asdict(self._bulk))
            return Outcome(**ray.get(self._actor.tokenize.remote(asdict(source))))
        except ray.exceptions.RayError as error:
            self._actor = None
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WorkerDied(f"the Ray actor that tokenized it died ({first})") from error

    def stop(self) -> None:
        """End the actor."""
        import ray

        self._stopped = True
        actor, self._actor = self._actor, None
        if actor is not None:
            ray.kill(actor)


def start(processes: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start one of `processes` CPUs here; ValueError without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray: needs pip install 'pictish[ray]'") from None
    local: dict[str, Any] = {"num_cpus": processes, "object_store_memory": _STORE}
    if os.environ.get("RAY_ADDRESS"):
        local = {}
    try:
        ray.init(include_dashboard=False, log_to_driver=True, logging_level=logging.WARNING, **local)
    except Exception as error:  # Ray raises plain ones
        raise OSError(f"Ray did not start, or cannot be joined: {one_line(error)}") from error


def stop() -> None:
    """Leave the cluster; one that `start` has started ends."""
    import ray

    ray.shutdown()
