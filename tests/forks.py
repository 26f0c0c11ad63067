"""Processes of one world over gloo, forked from one that has imported torch already."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

import accelerate  # noqa: F401 (before the forks, once for all)


def forked(count: int, work: Callable[[], None], seconds: float = 120) -> list[int]:
    """Exit codes of `count` processes that do `work`; when one ends otherwise than well, all are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    children = []
    for rank in range(count):
        if not (child := os.fork()):
            _one(rank, count, port, work)
        children.append(child)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < count:
        for child in children:
            done, status = (0, 0) if child in codes else os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
                codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.02)
    return [codes[child] for child in children]


def _one(rank: int, count: int, port: int, work: Callable[[], None]) -> None:
    """A process; does not return."""
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
