"""What a process has set for itself, kept out of our results, and left as it was.

Notebooks, servers and test suites set torch's default dtype, autocast or matmul precision, draw from its
random stream, load models in several threads and fork workers. The decorators here go around whatever loads,
computes or trains: inside, torch has its own defaults; outside, nothing has changed.
"""

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


def loading(function: Callable[P, Result]) -> Callable[P, Result]:
    """Decorator of what loads or builds a model: one thread at a time, torch's random stream left as it was.

    transformers and diffusers patch torch while they load, and may be imported only half by another thread.
    """

    @functools.wraps(function)
    def load(*args: P.args, **kwargs: P.kwargs) -> Result:
        import torch

        with _locks.loading, own_settings(), own_random_stream(), torch.inference_mode(False):
            return function(*args, **kwargs)

    return _in_usable_thread(load)


def inference(function: Callable[P, Result]) -> Callable[P, Result]:
    """Decorator of what computes with a loaded model: no gradients, and torch's own settings."""

    @functools.wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> Result:
        import torch

        with own_settings(), torch.inference_mode():
            return function(*args, **kwargs)

    return _in_usable_thread(compute)


def training(function: Callable[P, Result]) -> Callable[P, Result]:
    """Decorator of a function that trains by its arguments `config`, `device` and `fsdp`.

    ValueError when a training is under way in another thread, since they would draw from one random stream,
    and for settings of accelerate that the run would not follow (`own_accelerate`).
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def train(*args: P.args, **kwargs: P.kwargs) -> Result:
        import torch

        from pictish.training.accelerate_settings import own_accelerate
        from pictish.training.runtime import resolve_device

        _watch_forks()
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        asked = given.arguments
        device = resolve_device(asked["device"])
        if not _locks.training.acquire(blocking=False):
            raise ValueError(
                "another training is under way in this process; start this one in another process"
            )
        try:
            with (
                own_settings(),
                own_random_stream(),
                own_accelerate(device, asked["config"].mixed_precision, asked["fsdp"]),
                _usable_threads(),
                torch.inference_mode(False),
                torch.enable_grad(),
            ):
                return function(*args, **kwargs)
        finally:
            _locks.training.release()

    return train


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Inside, torch computes in float32 unless a tensor says otherwise, on the CPU, without autocast."""
    import torch

    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        _process_wide.enter()
        try:
            yield
        finally:
            _process_wide.leave()


@contextlib.contextmanager
def own_random_stream() -> Iterator[None]:
    """Inside, torch's global generators may be seeded and drawn from; then they go on as if they had not."""
    import torch

    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if begun else []):
        yield


class _ProcessWide:
    """torch's settings that all threads share: set by the first one in, put back by the last one out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._own = threading.local()  # .inside: how often this thread is
        self._before: list[Callable[[], None]] = []

    def enter(self) -> None:
        with self._lock:
            self._own.inside = getattr(self._own, "inside", 0) + 1
            self._inside += 1
            if self._inside > 1:
                return
            import torch

            if (dtype := torch.get_default_dtype()) != torch.float32:
                self._before.append(functools.partial(torch.set_default_dtype, dtype))
                torch.set_default_dtype(torch.float32)
            for place in _precisions():
                if (precision := place.fp32_precision) not in ("ieee", "none"):
                    self._before.append(functools.partial(setattr, place, "fp32_precision", precision))
                    place.fp32_precision = "ieee"

    def leave(self, times: int = 1) -> None:
        with self._lock:
            self._own.inside -= times
            self._inside -= times
            if not self._inside:
                while self._before:
                    self._before.pop()()

    def after_fork(self) -> None:
        """In the child, where the other threads that were inside are no more."""
        self._lock = threading.Lock()
        self._own.inside = self._inside = getattr(self._own, "inside", 0)
        self.leave(0)


def _precisions() -> list[Any]:
    """Where torch keeps how it multiplies float32; convolutions by cuDNN are its own choice, TF32."""
    import torch

    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv]


# ---- forked processes


def _in_usable_thread(function: Callable[P, Result]) -> Callable[P, Result]:
    """Call in another thread where this one came through a fork: its OpenMP threads are gone.

    It would wait for them for ever (libgomp keeps a team of them for each thread that computes).
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        _watch_forks()
        if threading.get_ident() != _forked.thread:
            return function(*args, **kwargs)
        if _forked.pool is None:
            _forked.pool = ThreadPoolExecutor(1, thread_name_prefix="pictish-forked")
        return _forked.pool.submit(copy_context().run, functools.partial(function, *args, **kwargs)).result()

    return call


@contextlib.contextmanager
def _usable_threads() -> Iterator[None]:
    """In a thread that came through a fork, operations take one core: training is not moved to another."""
    import torch

    before = torch.get_num_threads()
    if forked := threading.get_ident() == _forked.thread:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if forked:
            torch.set_num_threads(before)


class _Forked:
    """The thread that a forked child began with; None in a process that no fork of Python's made."""

    thread: int | None = None
    pool: ThreadPoolExecutor | None = None


class _Locks:
    """One load and one training at a time."""

    def __init__(self) -> None:
        self.loading, self.training = threading.RLock(), threading.Lock()


@functools.cache
def _watch_forks() -> None:
    """From the first use on; a fork waits until no model is half loaded."""
    if hasattr(os, "register_at_fork"):
        lock = _locks.loading
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_after_fork)


def _after_fork() -> None:
    _forked.thread, _forked.pool = threading.get_ident(), None
    _process_wide.after_fork()
    _locks.loading.release()
    _locks.training = threading.Lock()


_locks = _Locks()
_process_wide = _ProcessWide()
_forked = _Forked()
