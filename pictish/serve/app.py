"""The application: `create_app(pipeline, config)` for any ASGI server."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.responses import PlainTextResponse, Response

from pictish import __version__
from pictish.pipelines.pipeline import Pipeline
from pictish.serve import chat, images, tokens
from pictish.serve.config import ServeConfig
from pictish.serve.engine import Engine
from pictish.serve.errors import ApiError, error_responses, install_handlers
from pictish.serve.metrics import Metrics
from pictish.serve.middleware import Guard
from pictish.serve.schemas import ModelCard, ModelList, Status
from pictish.serve.serving import Served, Serving
from pictish.serve.uploads import Uploads

DESCRIPTION = "Draws, edits and describes images with one pictish model, in the shapes of OpenAI's API."


def create_app(
    pipeline: Pipeline, config: ServeConfig | None = None, adaptors: Mapping[str, Path] | None = None
) -> FastAPI:
    """An app that serves one model. Its engine and its worker processes live as long as its lifespan.

    `adaptors`, folders by name, are loaded beside the model's language model, and requests name them as their
    model. ValueError for one that does not fit it, or has the model's name.
    """
    config = config or ServeConfig()
    adaptors = adaptors or {}
    name = config.name or Path(pipeline.model).resolve().name
    if name in adaptors:
        raise ValueError(f"name: {name} is the model and an adaptor; another name of the model would fit")
    for adaptor, folder in adaptors.items():
        pipeline.load_adaptor(folder, adaptor)
    engine = Engine(pipeline, config)
    serving = Serving(pipeline, config, engine, Uploads(config), name, int(time.time()), adaptors)
    metrics = Metrics(engine)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving.uploads.start()
        engine.start()
        try:
            yield
        finally:
            engine.stop(config.stop_timeout)
            serving.uploads.stop()

    app = FastAPIOffline(
        redoc_url=None, title="pictish", version=__version__, description=DESCRIPTION, lifespan=lifespan
    )
    app.state.serving = serving
    app.add_middleware(Guard, config=config, metrics=metrics)
    install_handlers(app)
    for router in (images.router, chat.router, tokens.router):
        app.include_router(router)

    def card(adaptor: str | None) -> ModelCard:
        parent = None if adaptor is None else serving.name
        return ModelCard(id=adaptor or serving.name, created=serving.started, parent=parent)

    @app.get("/v1/models", tags=["models"], responses=error_responses)
    async def models(serving: Served) -> ModelList:
        """The model and its adaptors, which requests may name."""
        return ModelList(data=[card(None), *map(card, serving.adaptors)])

    @app.get("/v1/models/{model}", tags=["models"], responses=error_responses)
    async def model(model: str, serving: Served) -> ModelCard:
        """One of them."""
        return card(serving.adaptor_of(model))

    @app.get("/healthz", tags=["status"])
    async def healthz() -> Status:
        """Answers while the process lives."""
        return Status(status="ok")

    @app.get("/readyz", tags=["status"], responses={503: error_responses[503]})
    async def readyz() -> Status:
        """Answers 200 when the model is loaded and requests are accepted, else 503."""
        if not engine.ready:
            raise ApiError(503, "the model is not loaded, or the server is stopping", code="not_ready")
        return Status(status="ready")

    @app.get("/metrics", tags=["status"], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return metrics.response()

    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; ours is 400
    return app
