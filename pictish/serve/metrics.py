"""Prometheus metrics of one app, in a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from pictish.serve.engine import Engine

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counts requests; what the engine counts is read when it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pictish_requests_total", "Requests.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "pictish_request_seconds",
            "Seconds until a response was complete.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        for name, text, value in (
            ("pictish_jobs_queued", "Images and answers that wait.", lambda: engine.queued),
            ("pictish_jobs_running", "Images and answers under way.", lambda: engine.running),
            ("pictish_steps", "Steps of the language model so far.", lambda: engine.steps),
            ("pictish_images", "Images drawn so far.", lambda: engine.images_drawn),
        ):
            self._gauge(name, text, value)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        known = method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def response(self) -> Response:
        """All of them as text."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
