"""Workers on this machine: processes that speak JSON lines over their pipes and load the model once.

They take places of shards, never images. One that dies is started again for the next shard.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from typing import Any

from pictish.bulk.batch_tokenizer import open_batch_tokenizer
from pictish.bulk.engine import WorkerDied
from pictish.bulk.shard import Bulk, Outcome, attempt
from pictish.io.files import one_line
from pictish.io.storage import Stored

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pictish.bulk.local import serve
serve()
"""
_LAUNCHED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)  # the parent has chosen the device already


class LocalWorker:
    """The parent's side of one process; it starts with its first shard."""

    def __init__(self, bulk: Bulk, device: str, threads: int) -> None:
        self._bulk = replace(bulk, batch_tokenizer=replace(bulk.batch_tokenizer, device=device))
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._changing = threading.Lock()  # of the process, which `stop` may end from another thread

    def run(self, source: Stored) -> Outcome:
        """Do a shard; WorkerDied when the process is gone, ValueError when it cannot load the model."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(asdict(source)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):  # ValueError: `stop` has closed the pipe
            line = ""
        if not line.endswith("\n"):
            self._release()
            raise WorkerDied(f"the process that tokenized it died (exit code {process.returncode})")
        return Outcome(**json.loads(line))

    def stop(self) -> None:
        """End the process."""
        with self._changing:
            self._stopped = True
        self._release()

    def _running(self) -> "subprocess.Popen[str]":
        with self._changing:
            if self._stopped:
                raise WorkerDied("the run was stopped")
            if self._process is not None:
                return self._process
            environment = {key: value for key, value in os.environ.items() if key not in _LAUNCHED}
            environment.setdefault("OMP_NUM_THREADS", str(self._threads))
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="ascii",
                env=environment,
                start_new_session=True,  # Ctrl-C goes to the parent alone
            )
            process = self._process
        assert process.stdin
        with contextlib.suppress(OSError):  # it may be dead already, which the first shard will show
            process.stdin.write(json.dumps(asdict(self._bulk)) + "\n")
            process.stdin.flush()
        return process

    def _release(self) -> None:
        with self._changing:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def serve() -> None:
    """Main loop of a worker process: one shard after the other until the parent is gone."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # the parent is gone: a shard under way is nobody's any more

    threading.Thread(target=listen, daemon=True).start()
    bulk = Bulk.from_json(json.loads(lines.get()))
    with contextlib.ExitStack() as stack:
        batch_tokenizer, trouble = None, ""
        try:
            batch_tokenizer = stack.enter_context(open_batch_tokenizer(bulk.batch_tokenizer))
        except (ValueError, OSError) as error:
            trouble = one_line(error)
        while True:
            source = Stored(**json.loads(lines.get()))
            outcome = (
                attempt(batch_tokenizer, bulk, source) if batch_tokenizer else Outcome("stop", reason=trouble)
            )
            answer: dict[str, Any] = asdict(outcome)
            print(json.dumps(answer), file=replies, flush=True)
