"""/v1/chat/completions: texts about images, and images drawn from messages."""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.responses import Response

from pictish.lm.sampling import Sampling
from pictish.serve.errors import error_responses, invalid
from pictish.serve.images import drawings, png_of
from pictish.serve.jobs import Draw, Picture, Piece, Text, Write
from pictish.serve.schemas import (
    ChatChoice,
    ChatMessage,
    ChatRequest,
    ChatResponse,
    ChatUsage,
    ImagePart,
    ImageUrl,
    Message,
    OutputFields,
)
from pictish.serve.serving import Served, Serving, begun
from pictish.serve.sse import DONE, EVENT_STREAM, event_stream, server_sent

router = APIRouter(prefix="/v1", tags=["chat"], responses=error_responses)


@dataclass(frozen=True)
class _Asked:
    """What a conversation comes to."""

    words: str | None  # of the last user message
    images: tuple[Image.Image, ...]  # of the last user message
    latest: Image.Image | None  # the last image of the whole conversation


@router.post("/chat/completions", response_model=ChatResponse, responses=EVENT_STREAM)
async def complete(request: Request, body: ChatRequest, serving: Served) -> Response:
    """Answer the last user message about the last image of the conversation, or describe that image.

    With `modalities: ["image"]`, draw what the last user message says; an image in it is changed. Images
    are given as data URLs. With `stream`, chunks of `chat.completion.chunk`.
    """
    adaptor = serving.adaptor_of(body.model)
    serving.check_most(
        n=body.n,
        best_of=body.best_of,
        max_tokens=body.max_tokens,
        num_inference_steps=body.num_inference_steps,
    )
    serving.check_most(max_tokens=body.max_completion_tokens)
    serving.engine.check_room(1)
    asked = await _read(serving, body.messages)
    works: Sequence[Draw | Write]
    if "image" in body.modalities:
        works = _drawings(serving, body, asked, adaptor)
    else:
        works = [_text(body, asked, adaptor)]
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": adaptor or serving.name,
    }
    if body.stream:
        events = await begun(serving.follow(request, works))
        return event_stream(_streamed(serving, body, works, events, head))
    results = await serving.results(request, works)
    contents = [await _content(serving, work, result) for work, result in zip(works, results, strict=True)]
    choices = [
        ChatChoice(index=place, message=ChatMessage(content=content), finish_reason=_reason(result))
        for place, (content, result) in enumerate(zip(contents, results, strict=True))
    ]
    response = ChatResponse(**head, choices=choices, usage=_usage(results))
    return JSONResponse(response.model_dump(exclude_none=True))


async def _read(serving: Serving, messages: Sequence[Message]) -> _Asked:
    """The words and images that count; every image that does is decoded, and no other."""
    last = next((place for place in reversed(range(len(messages))) if messages[place].role == "user"), None)
    if last is None:
        raise invalid("messages: none of them is the user's", "messages")
    texts, urls = _parts(messages[last])
    serving.check_most(image=len(urls))
    words = "\n".join(texts).strip() or None
    if words is not None:
        serving.check_words("messages", words)
    images = tuple(await serving.uploads.data_urls(urls, f"messages.{last}.image_url"))
    latest = images[-1] if images else None
    if latest is None:
        earlier = [(place, url) for place, one in enumerate(messages) for url in _parts(one)[1]]
        if earlier:
            place, url = earlier[-1]
            latest = await serving.uploads.data_url(url, f"messages.{place}.image_url")
    return _Asked(words, images, latest)


def _parts(message: Message) -> tuple[list[str], list[str]]:
    """Texts and addresses of images of a message."""
    if message.content is None or isinstance(message.content, str):
        return [message.content or ""], []
    urls = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
    return [part.text for part in message.content if not isinstance(part, ImagePart)], urls


def _drawings(serving: Serving, body: ChatRequest, asked: _Asked, adaptor: str | None) -> list[Draw]:
    output = OutputFields(n=body.n, size=body.size, seed=body.seed)
    shape = output.shape()
    serving.check_most(size=None if shape is None else max(shape))
    if not asked.images and asked.words is None:
        raise invalid("messages: the last user message says nothing to draw", "messages")
    return drawings(asked.words, asked.images, body, output, adaptor)


def _text(body: ChatRequest, asked: _Asked, adaptor: str | None) -> Write:
    if asked.latest is None:
        raise invalid(
            'messages: no image to write about; add an image_url part, or ask for modalities ["image"]',
            "messages",
        )
    if body.n > 1:
        raise invalid(f"n: {body.n} asked for; of a text there is one", "n")
    sampling = None
    if (body.temperature, body.top_k, body.top_p, body.min_p) != (None, None, None, None):
        temperature = 1.0 if body.temperature is None else body.temperature
        sampling = Sampling(temperature, body.top_k, body.top_p, body.min_p)
    limit = body.max_completion_tokens or body.max_tokens
    return Write(asked.latest, asked.words, limit, sampling, body.seed, adaptor)


async def _content(serving: Serving, work: Draw | Write, result: Picture | Text) -> str | list[ImagePart]:
    """A text, or an image as the one part of a message."""
    if isinstance(result, Text):
        return result.text
    assert isinstance(work, Draw)
    blob = await asyncio.to_thread(png_of, serving, work, result)
    url = "data:image/png;base64," + base64.b64encode(blob).decode()
    return [ImagePart(type="image_url", image_url=ImageUrl(url=url))]


async def _streamed(
    serving: Serving,
    body: ChatRequest,
    works: Sequence[Draw | Write],
    events: AsyncGenerator[Any, None],
    head: dict[str, Any],
) -> AsyncGenerator[str, None]:
    def chunk(place: int, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": place, "delta": delta, "finish_reason": reason}
        return server_sent({**head, "object": "chat.completion.chunk", "choices": [choice]})

    for place in range(len(works)):
        yield chunk(place, {"role": "assistant"})
    results = []
    async for place, event, last in events:
        work = works[place]
        if isinstance(event, Piece):
            yield chunk(place, {"content": event.text})
        elif last:
            results.append(event)
            if isinstance(work, Draw):
                parts = await _content(serving, work, event)
                assert not isinstance(parts, str)
                yield chunk(place, {"content": [part.model_dump(exclude_none=True) for part in parts]})
            yield chunk(place, {}, _reason(event))
    if body.stream_options is not None and body.stream_options.include_usage:
        usage = _usage(results).model_dump()
        yield server_sent({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield DONE


def _reason(result: Picture | Text) -> Literal["stop", "length"]:
    return "length" if isinstance(result, Text) and result.cut else "stop"


def _usage(results: Sequence[Picture | Text]) -> ChatUsage:
    read = sum(one.prompt_tokens for one in results)
    written = sum(one.new_tokens if isinstance(one, Text) else len(one.tokens) for one in results)
    return ChatUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
