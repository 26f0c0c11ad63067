"""Training runs one after the other, each on so many forked processes over gloo: `forks.py SHARDS RUNS`.

RUNS is a JSON list: `run` (a name), `processes`, `settings`, and perhaps `like` (the run that it goes on
from a copy of), `stop` (the step after which all are killed) and `fsdp`. Forks need not import torch again.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from tests.lm.several import main

SECONDS = 120  # for one run


def one(shards: Path, rank: int, port: int, wanted: dict) -> None:
    """A process of a run; does not return."""
    count = wanted["processes"]
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        stop, fsdp = wanted.get("stop", 0), wanted.get("fsdp", False)
        main(shards, shards / wanted["run"], stop, *wanted["settings"], fsdp=fsdp)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def together(shards: Path, wanted: dict) -> None:
    """All processes of a run; an error of one ends them all."""
    if "like" in wanted:
        shutil.copytree(shards / wanted["like"], shards / wanted["run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(wanted["processes"]):
        if not (child := os.fork()):
            one(shards, rank, port, wanted)
        children.append(child)
    deadline = time.monotonic() + SECONDS
    expected = -signal.SIGKILL if wanted.get("stop") else 0
    try:
        while children:
            for child in list(children):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    children.remove(child)
                    code = os.waitstatus_to_exitcode(status)
                    assert code == expected, f"{wanted['run']}: a process ended with {code}"
            assert time.monotonic() < deadline, f"{wanted['run']}: not done in {SECONDS} seconds"
            time.sleep(0.05)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    for each in json.loads(sys.argv[2]):
        since = time.monotonic()
        together(Path(sys.argv[1]), each)
        print(each["run"], f"{time.monotonic() - since:.1f} s", flush=True)
