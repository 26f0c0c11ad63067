"""A real server on a free port, in this process: uvicorn in a thread around the app. Parts of requests."""

import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from pictish.data.images import png_bytes
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


def image_in(text: str) -> Image.Image:
    """The image of an answer."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def photo(size: tuple[int, int] = (40, 30), colour: str = "red") -> Image.Image:
    """Half blue."""
    image = Image.new("RGB", size, colour)
    image.paste("blue", (0, 0, size[0] // 2, size[1] // 2))
    return image


def data_url(image: Image.Image) -> str:
    """An image as chat messages hold it."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def about(image: Image.Image, words: str | None = None) -> list[dict[str, Any]]:
    """Messages that ask about an image; without words for a caption."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(image)}}]
    return [{"role": "user", "content": parts + ([{"type": "text", "text": words}] if words else [])}]
