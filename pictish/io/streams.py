"""Standard streams on which a command can rely: none of them closed, none that ends its work.

A reader that leaves, a terminal that hangs up or knows only ASCII, a full disk behind a redirection: what
a command prints may be lost, what it works on is not.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Lasting(io.FileIO):
    """An open descriptor that takes bytes even when they can go nowhere; `lost` says why."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def lasting_streams() -> Iterator[Callable[[], None]]:
    """Inside, `sys.stdout` and `sys.stderr` never raise; closed descriptors 0 to 2 lead to the null device.

    Characters that a stream's encoding lacks are written as escapes. Yields what flushes standard output
    and raises OSError when some of it could not be written, unless its reader has left. Streams that a host
    has put in place of the process's own are left alone.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    output = _stream(1, sys.stdout, sys.__stdout__)
    errors = _stream(2, sys.stderr, sys.__stderr__)

    def finish() -> None:
        sys.stdout.flush()
        if output is not None and (lost := output[1].lost) and not isinstance(lost, BrokenPipeError):
            raise OSError(lost.errno, lost.strerror, "standard output")

    sys.stdout = before[0] if output is None else output[0]
    sys.stderr = before[1] if errors is None else errors[0]
    try:
        yield finish
    finally:
        for stream in (output, errors):
            if stream is not None:
                stream[0].flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Have 0, 1 and 2 lead somewhere, or the next file that is opened would get their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one


def _stream(
    descriptor: int, current: TextIO | None, original: TextIO | None
) -> tuple[TextIO, _Lasting] | None:
    """A lasting stream in place of the process's own; None when a host has already replaced that."""
    if current is not original:
        return None
    if current is not None:
        with contextlib.suppress(OSError):
            current.flush()
    raw = _Lasting(descriptor)
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=None if current is None else current.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )
    return stream, raw
