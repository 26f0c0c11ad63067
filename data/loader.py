"""Images decoded and squashed ahead of the model, in worker processes.

A worker is a plain subprocess that speaks over its pipes: it never imports torch, takes nothing but bytes,
dies with its parent even when that is killed, and may be killed by an image without harm to the others.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pictish.data.images import MAX_PIXELS, check_name, fit_square, load_image, load_with_alpha
from pictish.io.files import one_line, read_regular_file
from pictish.io.finding import File

_FRAME = struct.Struct("<II")  # bytes of JSON, bytes after it
_WAITING_BYTES = 256 << 20  # of ImageBytes sent ahead
_ATTEMPTS = 3  # at an image whose worker process dies
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # by the kernel or a user
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pictish.data.loader import _serve
_serve()
"""


@dataclass(frozen=True)
class ImageBytes:
    """An image that is in memory already, such as a member of a shard."""

    blob: bytes
    name: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """What became of one image: `pixels`, or `error`, or neither when it was to be skipped."""

    file: File | ImageBytes
    pixels: npt.NDArray[np.uint8] | None  # (side, side, 3)
    size: tuple[int, int] | None  # height, width of the original, upright
    error: str | None  # one line
    sha256: str | None  # of the source's bytes; None when the error says nothing about them

    @property
    def transient(self) -> bool:
        """Whether the error may pass: reading failed, memory ran out, a process was killed."""
        return self.error is not None and self.sha256 is None


def decode_images(
    files: Iterable[File | ImageBytes],
    side: int,
    workers: "int | WorkerPool",
    max_pixels: int = MAX_PIXELS,
    prefetch: int = 64,
    skip: Callable[[str], str | None] | None = None,
    exact: bool = False,
) -> Generator[Decoded, None, None]:
    """Decode `files` with `workers` processes (0: in this one), results in the order of `files`.

    At most `prefetch` images are under way, so memory does not grow with their number. `skip(name)` may
    give a sha256: an image whose bytes still have it is not decoded. `exact` is that of `fit_square`. Close
    the generator to stop early.
    """
    settings = {"side": side, "exact": exact, "max_pixels": max_pixels}
    requests = ((file, {**settings, "skip": skip and skip(file.name)}) for file in files)
    if isinstance(workers, WorkerPool):
        yield from _decode_ahead(workers, requests, prefetch)
    elif workers:
        with WorkerPool(workers) as pool:
            yield from _decode_ahead(pool, requests, prefetch)
    else:
        for file, request in requests:
            yield _decoded(file, *_decode(file, request))


def _decode_ahead(
    pool: "WorkerPool", requests: Iterable[tuple[File | ImageBytes, dict[str, Any]]], prefetch: int
) -> Generator[Decoded, None, None]:
    waiting: deque[tuple[File | ImageBytes, Future[tuple[dict[str, Any], bytes]]]] = deque()
    bytes_waiting = 0
    try:
        for file, request in requests:
            waiting.append((file, pool.submit(file, request)))
            bytes_waiting += _weight(file)
            while len(waiting) >= max(prefetch, pool.workers) or bytes_waiting > _WAITING_BYTES:
                first, future = waiting.popleft()
                bytes_waiting -= _weight(first)
                yield _decoded(first, *future.result())
        while waiting:
            first, future = waiting.popleft()
            yield _decoded(first, *future.result())
    finally:
        for _, future in waiting:
            future.cancel()


def _weight(file: File | ImageBytes) -> int:
    return len(file.blob) if isinstance(file, ImageBytes) else 0


def _decode(file: File | ImageBytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Facts and raw pixels of one image; its own faults become `error`, a bug is raised."""
    reply: dict[str, Any] = {"error": None, "sha256": None, "size": None, "side": request["side"]}
    try:
        blob = file.blob if isinstance(file, ImageBytes) else read_regular_file(file.path)
        reply["sha256"] = hashlib.sha256(blob).hexdigest()
        check_name(file.name, blob)
        if reply["sha256"] == request["skip"]:
            return reply, b""
        if request["side"] is None:
            whole = load_with_alpha(blob, request["max_pixels"])
            reply["size"], reply["mode"] = (whole.height, whole.width), whole.mode
            return reply, whole.tobytes()
        image = load_image(blob, request["max_pixels"])
        reply["size"] = (image.height, image.width)
        return reply, fit_square(image, request["side"], exact=request["exact"]).tobytes()
    except OSError as error:  # in reading: bytes that are no image are a ValueError
        reply["error"] = error.strerror or one_line(error)
    except ValueError as error:
        reply["error"] = one_line(error)
    except MemoryError:
        reply["error"], reply["sha256"] = "not enough memory to decode it", None
    return reply, b""


def _decoded(file: File | ImageBytes, reply: dict[str, Any], raw: bytes) -> Decoded:
    pixels = np.frombuffer(raw, np.uint8).reshape(reply["side"], reply["side"], 3) if raw else None
    size = (reply["size"][0], reply["size"][1]) if reply["size"] else None
    return Decoded(file, pixels, size, reply["error"], reply["sha256"])


@dataclass(frozen=True, eq=False)
class Whole:
    """What became of one image that was asked for as it is: `image`, RGB or RGBA, or `error`."""

    image: Image.Image | None
    error: str | None  # one line
    transient: bool = False  # whether the error may pass, as `Decoded.transient`


def decoded_whole(pool: "WorkerPool", blob: bytes, max_pixels: int = MAX_PIXELS) -> "Future[Whole]":
    """Have an image decoded by `load_with_alpha` in a process of `pool`, at its own size."""
    request = {"side": None, "exact": False, "max_pixels": max_pixels, "skip": None}
    result: Future[Whole] = Future()
    result.set_running_or_notify_cancel()

    def answered(future: "Future[tuple[dict[str, Any], bytes]]") -> None:
        try:
            reply, raw = future.result()
            if reply["error"] is not None:
                result.set_result(Whole(None, reply["error"], reply["sha256"] is None))
                return
            height, width = reply["size"]
            result.set_result(Whole(Image.frombytes(reply["mode"], (width, height), raw), None))
        except BaseException as error:
            result.set_exception(error)

    pool.submit(ImageBytes(blob, ""), request).add_done_callback(answered)
    return result


class WorkerPool:
    """Worker processes, each driven by a thread that waits on its pipe.

    They start at once: a pool made early is ready when the model is. Close it, or use it in a `with`.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 0 or more, not {workers}")
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pictish-decode")
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker() for _ in range(workers)]
        for worker in self._all:
            self._free.put(worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self, file: File | ImageBytes, request: dict[str, Any]
    ) -> "Future[tuple[dict[str, Any], bytes]]":
        """Have an image decoded."""
        return self._threads.submit(self._ask, file, request)

    def _ask(self, file: File | ImageBytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        worker = self._free.get()
        try:
            return worker.ask(file, request)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for worker in self._all:
            worker.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:  # a thread may have started one again just before it was stopped
            worker.release()


class _Worker:
    """The parent's side of one worker process, started again when it has died."""

    def __init__(self) -> None:
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def ask(self, file: File | ImageBytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The reply for an image, which is tried again in a new process when the one that had it died."""
        blob = file.blob if isinstance(file, ImageBytes) else b""
        path = os.fspath(file.path) if isinstance(file, File) else None
        message = {**request, "path": path, "name": file.name}
        for _ in range(_ATTEMPTS):
            try:
                process = self._process or self._start()
                self._wait_until_ready(process)
                _send(_pipe(process.stdin), message, blob)
                reply, pixels = _receive(_pipe(process.stdout))
                break
            except (EOFError, OSError, ValueError):  # ValueError: `release` has closed the pipe
                if self._process is None and not self._stopped:
                    raise  # no process can be started
                code = self.release()
                if self._stopped:
                    return _died(file, request, code), b""
        else:
            return _died(file, request, code), b""
        if "bug" in reply:
            raise RuntimeError(f"a decoding process failed on {file.name!r}:\n{reply['bug']}")
        return reply, pixels

    def stop(self) -> None:
        """End the process, from another thread, for good."""
        self._stopped = True
        if process := self._process:
            process.kill()

    def release(self) -> int:
        """End the process; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # bytes it will not take any more
                _pipe(pipe).close()
        return code

    def _start(self) -> "subprocess.Popen[bytes]":
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._ready = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads},
            start_new_session=True,  # Ctrl-C goes to the parent alone, which then ends its workers
        )
        return self._process

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        if self._ready:
            return
        try:
            _receive(_pipe(process.stdout))
        except EOFError:
            if not self._stopped and process.wait() >= 0:  # else a signal has ended it
                raise RuntimeError(f"a decoding process did not start: {process.args!r}") from None
            raise
        self._ready = True


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "a worker's pipes are made by Popen"
    return pipe


def _died(file: File | ImageBytes, request: dict[str, Any], code: int) -> dict[str, Any]:
    """The reply for an image whose processes died, the last with this exit code."""
    sha256 = None
    if -code in _FROM_OUTSIDE:
        error = f"the decoding process was killed {_ATTEMPTS} times ({signal.Signals(-code).name})"
    else:
        error = f"the decoding process died on it (exit code {code})"
        with contextlib.suppress(OSError, ValueError):
            blob = file.blob if isinstance(file, ImageBytes) else read_regular_file(file.path)
            sha256 = hashlib.sha256(blob).hexdigest()
    return {"error": error, "sha256": sha256, "size": None, "side": request["side"]}


def _serve() -> None:
    """Main loop of a worker process: one image after the other until the parent is gone."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # image libraries written in C print as they like
    os.dup2(quiet, 2)
    _send(replies, {}, b"")  # ready
    while True:
        try:
            request, blob = _receive(requests)
        except EOFError:
            return
        path, name = request.pop("path"), request.pop("name")
        file = File(Path(path), name) if path is not None else ImageBytes(blob, name)
        try:
            reply, pixels = _decode(file, request)
        except Exception:
            reply, pixels = {"bug": traceback.format_exc()}, b""
        _send(replies, reply, pixels)


def _send(pipe: IO[bytes], message: dict[str, Any], blob: bytes) -> None:
    text = json.dumps(message).encode("ascii")
    pipe.write(_FRAME.pack(len(text), len(blob)) + text)
    pipe.write(blob)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """The next message and the bytes after it; EOFError when the other side is gone."""
    text_length, blob_length = _FRAME.unpack(_read(pipe, _FRAME.size))
    message: dict[str, Any] = json.loads(_read(pipe, text_length))
    return message, _read(pipe, blob_length)


def _read(pipe: IO[bytes], length: int) -> bytes:
    blob = pipe.read(length)
    if len(blob) != length:
        raise EOFError
    return blob
