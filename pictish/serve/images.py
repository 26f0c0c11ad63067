"""/v1/images: images drawn from text, and images changed by an instruction."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.responses import Response

from pictish.data.images import png_bytes
from pictish.data.provenance import digest_of, png_with_origin
from pictish.pipelines.drawing import Drawn
from pictish.pipelines.language import Said
from pictish.pipelines.recipe import origin_of
from pictish.pipelines.settings import LARGEST_SIZE
from pictish.pipelines.text_to_image import shape_in
from pictish.serve.errors import error_responses, invalid
from pictish.serve.jobs import Draw, Picture, Preview
from pictish.serve.schemas import (
    EditRequest,
    GenerationRequest,
    ImageData,
    ImagesResponse,
    ImageUsage,
    OutputFields,
    SamplingFields,
    TokenDetails,
    TokensBody,
    generation_config,
)
from pictish.serve.serving import Served, Serving, begun
from pictish.serve.sse import EVENT_STREAM, event_stream, server_sent

router = APIRouter(prefix="/v1", tags=["images"], responses=error_responses)


@router.post("/images/generations", response_model=ImagesResponse, responses=EVENT_STREAM)
async def generate(request: Request, body: GenerationRequest, serving: Served) -> Response:
    """Draw what a prompt says. The same model, prompt, settings and seed give the same image.

    With `stream`, server-sent events `image_generation.partial_image` and `image_generation.completed`.
    """
    adaptor = check(serving, body)
    serving.check_words("prompt", body.prompt)
    works = drawings(body.prompt, [], body, body, adaptor)
    return await answer(serving, request, body, works, "image_generation")


@router.post("/images/edits", response_model=ImagesResponse, responses=EVENT_STREAM)
async def edit(request: Request, body: Annotated[EditRequest, Form()], serving: Served) -> Response:
    """Change an image as the prompt says; with several images, draw what they and the prompt say together.

    The result has the aspect ratio of the first image. Where `mask` is opaque its pixels stay. With `stream`,
    server-sent events `image_edit.partial_image` and `image_edit.completed`.
    """
    adaptor = check(serving, body)
    serving.check_words("prompt", body.prompt)
    files = [*body.image, *body.images]
    if not files:
        raise invalid("image: required; one file, or several as image[]", "image")
    if body.mask is not None and len(files) > 1:
        raise invalid("mask: goes with one image", "mask")
    serving.check_most(image=len(files))
    serving.engine.check_room(body.n)
    images = await serving.uploads.images([await file.read() for file in files], "image")
    works = drawings(body.prompt, images, body, body, adaptor)
    if body.mask is not None:
        mask = await serving.uploads.mask(await body.mask.read(), images[0], "mask")
        works = [replace(work, mask=mask) for work in works]
    return await answer(serving, request, body, works, "image_edit")


def check(serving: Serving, body: GenerationRequest | EditRequest) -> str | None:
    """The adaptor that is asked for; ApiError or ValueError for what this server does not allow."""
    adaptor = serving.adaptor_of(body.model)
    shape = body.shape()
    serving.check_most(
        n=body.n,
        best_of=body.best_of,
        size=None if shape is None else max(shape),
        num_inference_steps=body.num_inference_steps,
        partial_images=body.partial_images,
    )
    return adaptor


def drawings(
    words: str | None,
    images: Sequence[Image.Image],
    settings: SamplingFields,
    output: OutputFields,
    adaptor: str | None,
) -> list[Draw]:
    """The images that a request asks for, with words, images or both; ValueError for what does not fit."""
    shape = output.shape()
    config = generation_config(settings, size=None if shape is None else max(shape))
    height_width = None if shape is None else shape_in(*shape)
    source = None
    if images:  # the result is like the first of them
        first = images[0]
        if max(first.size) > LARGEST_SIZE:
            raise ValueError(f"image: {size_of(first)} pixels; up to {LARGEST_SIZE} on a side fit")
        source = first if len(images) == 1 and words is not None else None
        if source is not None and adaptor is not None:
            raise ValueError(f"model: {adaptor} is an adaptor, and edits are made without one")
        height_width = (first.height, first.width) if source else shape_in(first.width, first.height)
    said: tuple[Said, ...] = (*images, *([] if words is None else [words]))
    seeds = range(output.seed, output.seed + output.n)
    return [
        Draw(said, seed, config, height_width, source, previews=output.previews, adaptor=adaptor)
        for seed in seeds
    ]


async def answer(
    serving: Serving, request: Request, body: OutputFields, works: Sequence[Draw], kind: str
) -> Response:
    """The finished images of a request, or a stream of them with their previews."""
    if body.stream:
        events = await begun(serving.follow(request, works))
        return event_stream(_streamed(serving, body, works, events, kind))
    pictures: list[Picture] = await serving.results(request, works)
    data = [await image_data(serving, body, *pair) for pair in zip(works, pictures, strict=True)]
    response = ImagesResponse(
        created=int(time.time()),
        data=data,
        output_format=body.output_format,
        size=size_of(pictures[0].image),
        usage=usage(pictures),
    )
    return JSONResponse(response.model_dump())


async def _streamed(
    serving: Serving, body: OutputFields, works: Sequence[Draw], events: AsyncGenerator[Any, None], kind: str
) -> AsyncGenerator[str, None]:
    async for place, event, _ in events:
        image = event.image
        facts = {
            "created_at": int(time.time()),
            "size": size_of(image),
            "background": "opaque",
            "quality": "auto",
            "output_format": body.output_format,
            "index": place,
        }
        if isinstance(event, Preview):
            blob = await asyncio.to_thread(encoded, image, body.output_format, body.output_compression)
            facts |= {"b64_json": base64.b64encode(blob).decode(), "partial_image_index": event.number}
            yield server_sent({"type": f"{kind}.partial_image", **facts})
        else:
            data = (await image_data(serving, body, works[place], event)).model_dump()
            facts |= {**data, "usage": usage([event]).model_dump()}
            yield server_sent({"type": f"{kind}.completed", **facts})


async def image_data(serving: Serving, body: OutputFields, work: Draw, picture: Picture) -> ImageData:
    """One image of a response."""
    if body.output_format == "png":
        blob = await asyncio.to_thread(png_of, serving, work, picture)
    else:
        blob = await asyncio.to_thread(encoded, picture.image, body.output_format, body.output_compression)
    text = base64.b64encode(blob).decode()
    return ImageData(b64_json=text, seed=work.seed, tokens=TokensBody.of(picture.tokens))


def png_of(serving: Serving, work: Draw, picture: Picture) -> bytes:
    """A PNG that holds its settings and tokens, as files of `pictish generate` do, where they say it all."""
    if work.mask is not None:  # what it kept is not in them
        return png_bytes(picture.image)
    aspect = None
    if work.shape is not None and work.source is None:
        height, width = work.shape
        aspect = f"{width}:{height}"
    origin = origin_of(
        serving.pipeline,
        next((one for one in work.said if isinstance(one, str)), None),
        tuple(digest_of(one) for one in work.said if not isinstance(one, str)),
        work.seed,
        work.config,
        Drawn(picture.image, picture.tokens, picture.kept),
        aspect=aspect,
        edit=work.source is not None,
        adaptor=work.adaptor,
    )
    return png_with_origin(picture.image, origin)


def encoded(image: Image.Image, kind: str, quality: int | None) -> bytes:
    """An image as the bytes of a file."""
    if kind == "png":
        return png_bytes(image)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=90 if quality is None else quality)
    return buffer.getvalue()


def size_of(image: Image.Image) -> str:
    """WIDTHxHEIGHT."""
    return f"{image.width}x{image.height}"


def usage(pictures: Sequence[Picture]) -> ImageUsage:
    """Tokens read and written for some images."""
    read, written = sum(one.prompt_tokens for one in pictures), sum(len(one.tokens) for one in pictures)
    return ImageUsage(
        input_tokens=read,
        output_tokens=written,
        total_tokens=read + written,
        input_tokens_details=TokenDetails(text_tokens=read),
    )
