"""What the routes share: the model, its engine, the checks of every request, and how results are awaited."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from pictish.serve.config import ServeConfig
from pictish.serve.engine import Engine
from pictish.serve.errors import ApiError, invalid
from pictish.serve.jobs import Event, Failed, Started, Work
from pictish.serve.uploads import Uploads

if TYPE_CHECKING:
    from pictish.pipelines.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Serving:
    """One model being served."""

    pipeline: "Pipeline"
    config: ServeConfig
    engine: Engine
    uploads: Uploads
    name: str
    started: int  # seconds since the epoch
    adaptors: Mapping[str, Path]  # those that are loaded, and their folders

    def adaptor_of(self, model: str | None) -> str | None:
        """The adaptor that a request names as its model; None for the model itself.

        ApiError 404 for a name that is not served.
        """
        if model is None or model == self.name:
            return None
        if model not in self.adaptors:
            names = ", ".join([self.name, *self.adaptors])
            raise ApiError(
                404,
                f"model: {model[:80]!r} is not served here; {names} would fit",
                param="model",
                code="model_not_found",
            )
        return model

    def check_base_model(self, model: str | None) -> None:
        """As `adaptor_of`, and ApiError 400 for an adaptor, where no language model takes part."""
        adaptor = self.adaptor_of(model)
        if adaptor is not None:
            raise invalid(f"model: {adaptor} is an adaptor; {self.name} has the tokenizer", "model")

    def check_most(self, **given: int | None) -> None:
        """ApiError 400 for more than the server allows: `n=3` is checked against `max_n`."""
        for param, value in given.items():
            most = getattr(self.config, LIMITS[param])
            if value is not None and value > most:
                raise invalid(f"{param}: {value} asked for; this server allows up to {most}", param)

    def check_words(self, param: str, words: str) -> None:
        """ApiError 400 for an empty or overlong text."""
        if not words.strip():
            raise invalid(f"{param}: empty; a few words fit", param)
        if len(words) > self.config.max_prompt_chars:
            most = self.config.max_prompt_chars
            raise invalid(f"{param}: {len(words)} characters; this server reads up to {most}", param)

    async def follow(
        self, request: Request, works: Sequence[Work]
    ) -> AsyncGenerator[tuple[int, Event, bool], None]:
        """Events of all works as (place, event, whether it is the result), until each has its result.

        Raises what a work raised, ApiError 429 when there is no room, 504 when the time is over and 499 when
        the client has gone. However it ends, what is not done then is cancelled.
        """
        jobs, events = self.engine.submit(works)
        deadline = asyncio.get_running_loop().time() + self.config.timeout
        gone = asyncio.ensure_future(_gone(request))
        left = len(jobs)
        coming: asyncio.Future[Any] | None = None
        try:
            while left:
                coming = asyncio.ensure_future(events.get())
                seconds = deadline - asyncio.get_running_loop().time()
                await asyncio.wait(
                    {coming, gone}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED
                )
                if coming.done():
                    job, event, last = coming.result()
                    if isinstance(event, Failed):
                        raise event.error
                    left -= last
                    yield job.place, event, last
                elif gone.done():
                    raise ApiError(499, "the client closed the connection", code="client_closed_request")
                else:
                    raise ApiError(504, f"not done in {self.config.timeout:g} seconds", code="timeout")
        finally:
            for job in jobs:
                job.cancel()
            gone.cancel()
            if coming is not None:
                coming.cancel()

    async def results(self, request: Request, works: Sequence[Work]) -> list[Any]:
        """The results of all works, in their order; raises as `follow`."""
        found: dict[int, Event] = {}
        async for place, event, last in self.follow(request, works):
            if last:
                found[place] = event
        return [found[place] for place in range(len(works))]


LIMITS = {
    "n": "max_n",
    "best_of": "max_best_of",
    "size": "max_size",
    "num_inference_steps": "max_steps",
    "partial_images": "max_previews",
    "max_tokens": "max_new_tokens",
    "image": "max_images",
}


async def begun(events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The same events, once the first of them has come: what is refused is refused before a stream begins."""
    first = await anext(events)

    async def all_of_them() -> AsyncGenerator[Any, None]:
        try:
            if not isinstance(first[1], Started):
                yield first
            async for event in events:
                if not isinstance(event[1], Started):
                    yield event
        finally:
            await events.aclose()

    return all_of_them()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def serving_of(request: Request) -> Serving:
    """The `Serving` of the app that a request came to."""
    found: Serving = request.app.state.serving
    return found


Served = Annotated[Serving, Depends(serving_of)]
