"""The thread that computes: jobs join between two steps of the language model, and leave when they are done.

    waiting jobs -> Writer (one id a step for all) -> Renderer (pixels, a micro-batch at a time) -> results

What a job gives depends on its work alone, not on the others (`lm/continuous.py`, and the fixed shapes of
tokenizer and decoder).
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pictish.serve.config import ServeConfig
from pictish.serve.errors import ApiError
from pictish.serve.jobs import Compute, Event, Job, Work
from pictish.serve.rendering import Renderer
from pictish.serve.writing import Writer

if TYPE_CHECKING:
    from pictish.pipelines.pipeline import Pipeline

logger = logging.getLogger(__name__)


class Engine:
    """Runs the jobs of one model, in a thread of its own; `submit` is called from event loops."""

    def __init__(self, pipeline: "Pipeline", config: ServeConfig) -> None:
        self.pipeline, self.config = pipeline, config
        self.images_drawn = self.steps = 0
        self._ready = threading.Event()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # taken from the queue, and not known to be done
        self._changed = threading.Condition()
        self._stopping = False
        self._pace = 0.1  # seconds from one finished job to the next, while busy
        self._thread = threading.Thread(target=self._run, name="pictish-engine", daemon=True)

    def start(self) -> None:
        """Load the model, and begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what was submitted, within `timeout` seconds, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("requests were given up after %s seconds of stopping", timeout)
            for job in [*self._waiting, *self._running]:
                job.cancel()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and jobs are accepted."""
        return self._ready.is_set() and self._thread.is_alive() and not self._stopping

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that are being worked on."""
        return len(self._running)

    def check_room(self, jobs: int) -> None:
        """ApiError 429 when the queue has no room for these jobs, 503 when the engine has stopped."""
        if self._stopping or (self._ready.is_set() and not self._thread.is_alive()):
            raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
        if len(self._waiting) + jobs > self.config.queue_length:
            seconds = math.ceil(max(1.0, len(self._waiting) * self._pace))
            raise ApiError(
                429,
                f"{len(self._waiting)} images and answers wait already; try again in {seconds} seconds",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def submit(self, works: Sequence[Work]) -> tuple[list[Job], "asyncio.Queue[tuple[Job, Event, bool]]"]:
        """Jobs for `works`, and the queue that their events come to; ApiError as `check_room`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[Job, Event, bool]] = asyncio.Queue()
        jobs = [Job(work, place, loop, events) for place, work in enumerate(works)]
        with self._changed:
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
            self.check_room(len(jobs))
            self._waiting.extend(jobs)
            self._changed.notify()
        return jobs, events

    # ---- in its thread

    def _run(self) -> None:
        try:
            self.pipeline.reconstructor()
            writer, renderer = Writer(self.pipeline), Renderer(self.pipeline)
        except Exception:
            logger.exception("the model could not be loaded")
            self._stopping = True
            return
        self._ready.set()
        while self._wait(writer, renderer):
            begun = time.monotonic()
            try:
                done = self._turn(writer, renderer)
            except Exception as error:  # a bug, or no memory: the affected requests fail, and work continues
                logger.exception("a step failed")
                for job in self._running:
                    job.fail(error)
                self._running.clear()
                writer, renderer = Writer(self.pipeline), Renderer(self.pipeline)
                continue
            if done:
                self._pace += 0.1 * ((time.monotonic() - begun) / done - self._pace)
            active = {one.job for one in writer.writing} | {each.job for _, each in renderer.waiting}
            self._running = [job for job in self._running if job in active]

    def _wait(self, writer: Writer, renderer: Renderer) -> bool:
        """Until there is something to do; False when stopping and there is nothing more."""
        with self._changed:
            while not (self._waiting or writer.writing or renderer.waiting):
                if self._stopping:
                    return False
                self._changed.wait()
        return True

    def _turn(self, writer: Writer, renderer: Renderer) -> int:
        """One step of everything; how many images were finished."""
        self._admit(writer)
        if writer.busy:
            self.steps += 1
            for written in writer.step():
                renderer.add(written)
        if renderer.due(idle=not writer.writing):
            drawn = renderer.render()
            self.images_drawn += drawn
            return drawn
        return 0

    def _admit(self, writer: Writer) -> None:
        """Begin jobs in the order they came while there is room; of those done at once, one a turn."""
        while writer.sequences < self.config.max_batch:
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                if job.cancelled:
                    continue
                self._running.append(job)
            try:
                if isinstance(job.work, Compute):
                    job.finish(job.work.function())
                    return
                if not writer.begin(job):
                    return
            except Exception as error:
                job.fail(error)
