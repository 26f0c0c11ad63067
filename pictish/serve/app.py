"""The application: `create_app(pipeline, config)` for any ASGI server."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from pictish import __version__
from pictish.pipelines.pipeline import Pipeline
from pictish.serve import images
from pictish.serve.config import ServeConfig
from pictish.serve.engine import Engine
from pictish.serve.errors import ApiError, install_handlers
from pictish.serve.schemas import ModelCard, ModelList
from pictish.serve.serving import Serving


def create_app(pipeline: Pipeline, config: ServeConfig | None = None) -> FastAPI:
    """An app that serves one model. Its engine starts and stops with the app's lifespan."""
    config = config or ServeConfig()
    name = config.name or Path(str(pipeline.model)).resolve().name
    serving = Serving(pipeline, config, Engine(pipeline, config), name, int(time.time()))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving.engine.start()
        try:
            yield
        finally:
            serving.engine.stop(config.stop_timeout)

    app = FastAPI(title="pictish", version=__version__, lifespan=lifespan)
    app.state.serving = serving
    install_handlers(app)
    app.include_router(images.router, prefix="/v1")

    @app.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """The models that requests may name."""
        return ModelList(data=[ModelCard(id=serving.name, created=serving.started)])

    @app.get("/healthz", tags=["status"])
    async def healthz() -> dict[str, str]:
        """Answers while the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["status"])
    async def readyz() -> JSONResponse:
        """Answers 200 when the model is loaded and requests are accepted, else 503."""
        if not serving.engine.alive:
            raise ApiError(503, "the model is not loaded, or the server is stopping", code="not_ready")
        return JSONResponse({"status": "ready"})

    return app
