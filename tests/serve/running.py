"""A real server on a free port, in this process: uvicorn in a thread around the app."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from pictish.pipelines.pipeline import Pipeline
from pictish.serve.app import create_app
from pictish.serve.config import ServeConfig


class Running:
    """A server under test."""

    def __init__(self, app: Any, url: str) -> None:
        self.app, self.url = app, url
        self.serving = app.state.serving


@contextlib.contextmanager
def running(model: Path, adaptors: dict[str, Path] | None = None, **settings: Any) -> Iterator[Running]:
    """A server of a model folder, ready; it is stopped gracefully at the end."""
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    app = create_app(pipeline, ServeConfig(name="tiny", **settings), adaptors)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        found = Running(app, f"http://127.0.0.1:{listening.getsockname()[1]}")
        wait_for(lambda: server.started and found.serving.engine.ready)
        try:
            yield found
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
