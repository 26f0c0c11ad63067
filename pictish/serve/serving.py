"""What the routes share: the model, its engine, and the checks of every request."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from pictish.serve.config import ServeConfig
from pictish.serve.engine import Engine
from pictish.serve.errors import ApiError, invalid

if TYPE_CHECKING:
    from pictish.pipelines.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Serving:
    """One model being served."""

    pipeline: "Pipeline"
    config: ServeConfig
    engine: Engine
    name: str
    started: int  # seconds since the epoch

    def check_model(self, model: str | None) -> None:
        """ApiError 404 for a model that is not served."""
        if model is not None and model != self.name:
            raise ApiError(
                404,
                f"model: {model!r} is not served here; {self.name!r} is",
                param="model",
                code="model_not_found",
            )

    def check_most(self, param: str, value: int | None, most: int) -> None:
        """ApiError 400 for more than the server allows."""
        if value is not None and value > most:
            raise invalid(f"{param}: {value} asked for; this server allows up to {most}", param)

    def check_words(self, param: str, words: str) -> None:
        """ApiError 400 for an empty or overlong text."""
        if not words.strip():
            raise invalid(f"{param}: empty; a few words fit", param)
        if len(words) > self.config.max_prompt_chars:
            most = self.config.max_prompt_chars
            raise invalid(f"{param}: {len(words)} letters; this server reads up to {most}", param)


def serving_of(request: Request) -> Serving:
    """The `Serving` of the app that a request came to."""
    found: Serving = request.app.state.serving
    return found


Served = Annotated[Serving, Depends(serving_of)]
