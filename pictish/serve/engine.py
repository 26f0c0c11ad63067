"""The thread that computes: jobs join between two steps of the language model, and leave when they are done."""

import asyncio
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from pictish.pipelines import drawing
from pictish.serve.config import ServeConfig
from pictish.serve.errors import ApiError
from pictish.serve.jobs import Compute, Draw, Job, Picture, Text, Work, Write

if TYPE_CHECKING:
    from pictish.pipelines.pipeline import Pipeline

logger = logging.getLogger(__name__)


class Engine:
    """Runs jobs of one model; `submit` may be called from any event loop."""

    def __init__(self, pipeline: "Pipeline", config: ServeConfig) -> None:
        self.pipeline, self.config = pipeline, config
        self.ready = threading.Event()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pictish-engine", daemon=True)

    def start(self) -> None:
        """Load the model and begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what was submitted, within `timeout` seconds, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether jobs are accepted and worked on."""
        return self._thread.is_alive() and self.ready.is_set() and not self._stopping

    def submit(self, works: list[Work]) -> list[Job]:
        """Jobs for all of `works`, or ApiError 429 when they do not fit the queue, 503 when stopping."""
        jobs = [Job(work, asyncio.get_running_loop()) for work in works]
        with self._changed:
            if self._stopping:
                raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
            if len(self._waiting) + len(jobs) > self.config.queue_length:
                raise ApiError(429, "too many requests wait", code="queue_full", headers={"Retry-After": "1"})
            self._waiting.extend(jobs)
            self._changed.notify()
        return jobs

    def _run(self) -> None:
        self.pipeline.text_to_image(self.pipeline.reconstructor())
        self.ready.set()
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            if job.cancelled:
                continue
            try:
                job.finish(self._do(job.work))
            except Exception as error:
                job.fail(error)

    def _do(self, work: Work) -> object:
        match work:
            case Draw():
                preview = work.config.num_inference_steps == 0
                drawer = self.pipeline.text_to_image(self.pipeline.reconstructor(preview=preview))
                shapes = None if work.shape is None else [work.shape]
                (drawn,) = drawing.generate(drawer, [work.said], [work.seed], work.config, shapes=shapes)
                return Picture(drawn.image, drawn.tokens, 0)
            case Write():
                text = self.pipeline.describe(work.image, work.question, max_new_tokens=work.max_new_tokens)
                return Text(text, 0, 0)
            case Compute():
                return work.function()
