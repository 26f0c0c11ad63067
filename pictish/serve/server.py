"""The app in uvicorn, from its start to a graceful stop."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from pictish.pipelines.pipeline import Pipeline
from pictish.serve.app import create_app
from pictish.serve.config import ServeConfig


def serve(
    pipeline: Pipeline,
    config: ServeConfig,
    host: str,
    port: int,
    extend: Callable[[FastAPI], None] | None = None,
    adaptors: Mapping[str, Path] | None = None,
) -> None:
    """Serve until a signal, then finish what runs; `extend` adds to the app. OSError for a taken port."""
    pipeline.text_to_image(pipeline.reconstructor())  # a model that cannot be loaded is reported first
    app = create_app(pipeline, config, adaptors)
    if extend is not None:
        extend(app)
    listening = _listen(host, port)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=int(config.stop_timeout) + 1,
            server_header=False,
        )
    )
    where = f"[{host}]" if ":" in host else host
    print(f"serving {pipeline.model} at http://{where}:{listening.getsockname()[1]}", flush=True)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises the signal again once it has stopped
        if not server.should_exit:
            raise
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return listening
