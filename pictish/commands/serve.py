"""`pictish serve`: an HTTP server with the shapes of OpenAI's API."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pictish.commands import options

if TYPE_CHECKING:
    from fastapi import FastAPI

Config = Annotated[
    Path | None, options.files(metavar="FILE", help="Limits and API keys (YAML); see docs/serving.md.")
]
Host = Annotated[
    str, options.runtime(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is all of them.")
]
Port = Annotated[
    int, options.runtime(metavar="N", min=0, max=65_535, help="Port to listen on; 0 takes a free one.")
]


def run(
    *,
    model: options.Model = "starter",
    adaptor_folder: options.AdaptorFolders = None,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: options.Digits = options.Precision.float32,
    device: options.Device = "auto",
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM; running requests are finished first.

    The OpenAI client draws with it (client.images.generate), and so does any client of that API. The
    interactive documentation is at /docs. Requests name an adaptor as their model.
    """
    run_server(model, config, host, port, precision, device, adaptor_folders=adaptor_folder or ())


def run_server(
    model: str,
    config: Path | None,
    host: str,
    port: int,
    precision: options.Precision,
    device: str,
    extend: "Callable[[FastAPI], None] | None" = None,
    adaptor_folders: Sequence[Path] = (),
) -> None:
    """Serve a model and its adaptors until a signal, with whatever `extend` adds to the app."""
    from pictish.configs import load, parse
    from pictish.serve.config import ServeConfig

    settings = parse(ServeConfig, {} if config is None else load(config), str(config))
    try:
        from pictish.serve.server import serve
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install 'pictish[serve]'") from None
    from pictish.pipelines.adaptors import adaptor_folders as found_in
    from pictish.pipelines.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, device=device, dtype=precision.value)
    serve(pipeline, settings, host, port, extend, found_in(pipeline.model, adaptor_folders))
