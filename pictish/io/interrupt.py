"""Ctrl-C and SIGTERM: long work stops between two units of its own, keeps what is done, says how to go on.

Signals are the whole process's, and so is what is known of them here.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_units: list[str] = []  # what is being worked through, the innermost last; empty: work that stops anywhere
_asked = False


class Stopped(BaseException):
    """Work was asked to stop and has; the text says what is done and how to go on."""


class StoppedAtFailure(Exception):
    """--strict met something that could not be done, which has been reported."""


class CutOff(KeyboardInterrupt):
    """A signal cut work off.

    A class of its own: a plain KeyboardInterrupt that passes through `exec` of a string, as when
    a dataclass is made, leaves a mark by which `python -m` ends with SIGINT whatever exit code was returned.
    """


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside, a first signal only asks `in_units` work to stop; a second one, or any other work, is cut off.

    What is cut off gets CutOff. In a thread other than the main one nothing is changed, and a
    signal that is ignored stays ignored.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    _asked = False
    try:
        yield
    finally:
        _asked = False
        for number, earlier in before.items():
            signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)


@contextlib.contextmanager
def in_units(unit: str) -> Iterator[None]:
    """Work that asks `asked` or `stop_here` between two units, such as `step` or `shard`."""
    _units.append(unit)
    try:
        yield
    finally:
        _units.pop()


def asked() -> bool:
    """Whether the work under way has been asked to stop."""
    return _asked


def stop_here(done: str) -> None:
    """Raise Stopped with `done`, what is done and how to go on, if that has been asked for."""
    if _asked:
        raise Stopped(done)


def _on_signal(number: int, frame: FrameType | None) -> Any:
    global _asked
    if not _units or _asked:
        raise CutOff
    _asked = True
    said = f"pictish: stopping after this {_units[-1]}; once more stops at once\n"
    with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
        os.write(2, said.encode())
