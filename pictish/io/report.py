"""Progress bars and reports of failures on stderr, and a thread that writes files."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pictish.io.files import one_line, printable
from pictish.io.finding import Found
from pictish.io.interrupt import StoppedAtFailure


class Bar:
    """A progress bar on stderr; none where stderr is no terminal, or when `quiet`.

    `unit` says in what progress is measured: items are counted, for bytes and steps of other sizes the bar
    alone is shown.
    """

    def __init__(
        self, task: str, total: int | None = None, *, quiet: bool, unit: Literal["items", "none"] = "items"
    ) -> None:
        counts = (MofNCompleteColumn(),) if unit == "items" else ()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            *counts,
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.console = Console(stderr=True)
        hidden = quiet or not self.console.is_terminal
        self._bar = Progress(*columns, console=self.console, disable=hidden, transient=True)
        self._task = self._bar.add_task(task, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, task: str, total: int) -> None:
        """Show another task from its start."""
        self._bar.reset(self._task, description=task, total=total)

    def advance(self, steps: int = 1) -> None:
        """Advance by this many steps."""
        self._bar.advance(self._task, steps)

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done."""
        self._bar.update(self._task, completed=done, total=total)


class Report(Bar):
    """A progress bar on stderr, and a line there for everything that could not be done."""

    def __init__(self, task: str, total: int | None, *, quiet: bool, strict: bool) -> None:
        super().__init__(task, total, quiet=quiet)
        self._strict, self._quiet = strict, quiet
        self._started = time.perf_counter()
        self.failures = 0

    def done(self, count: int = 1) -> None:
        """Move the bar on."""
        self.advance(count)

    def failed(self, name: str, error: str) -> None:
        """Say that `name` could not be done and why; under --strict, raise StoppedAtFailure."""
        self.failures += 1
        self.console.print(Text(f"pictish: {printable(name)}: {printable(error)}"), soft_wrap=True)
        self.advance()
        if self._strict:
            raise StoppedAtFailure

    def tell(self, found: Found) -> None:
        """Say what a search for inputs could not use, as failures, and what it ignored, as a note."""
        if note := found.note():
            self.note(note)
        for name, reason in found.problems:
            self.failed(name, reason)

    def note(self, text: str) -> None:
        """Say something that is no failure; nothing when quiet."""
        if not self._quiet:
            self.console.print(Text(f"pictish: {printable(text)}"), soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Since the report began."""
        return time.perf_counter() - self._started


class Writer:
    """Does the writing in a thread of its own, in order, so that the model does not wait for the disk."""

    def __init__(self, report: Report, waiting: int = 256) -> None:
        self._report, self._limit = report, waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictish-write")
        self._waiting: deque[tuple[str, Future[None]]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._collect(0)
        finally:
            self._thread.shutdown(wait=True)

    def put(self, name: str, job: Callable[[], None]) -> None:
        """Have `job` done; its ValueError counts as a failure of `name`, any other error ends the work."""
        self._waiting.append((name, self._thread.submit(job)))
        self._collect(self._limit)

    def _collect(self, limit: int) -> None:
        while self._waiting and (len(self._waiting) > limit or self._waiting[0][1].done()):
            name, job = self._waiting.popleft()
            try:
                job.result()
            except ValueError as error:
                self._report.failed(name, one_line(error))
            else:
                self._report.done()
