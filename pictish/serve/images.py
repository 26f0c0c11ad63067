"""/v1/images: pictures drawn from text, and pictures changed by an instruction."""

import asyncio
import base64
import io
import time
from collections.abc import Sequence

from fastapi import APIRouter
from PIL import Image

from pictish.data.images import png_bytes
from pictish.pipelines.text_to_image import shape_in
from pictish.serve.errors import as_api_error
from pictish.serve.jobs import Draw, Job, Picture
from pictish.serve.schemas import (
    GenerationRequest,
    ImageData,
    ImagesResponse,
    ImageUsage,
    OutputFields,
    TokenDetails,
    TokensBody,
    generation_config,
)
from pictish.serve.serving import Served, Serving

router = APIRouter(tags=["images"])


@router.post("/images/generations")
async def generate(body: GenerationRequest, serving: Served) -> ImagesResponse:
    """Draw what a prompt says. The same model, prompt, settings and seed give the same image."""
    works = drawings(serving, body)
    return await answer(serving, body, works)


def drawings(serving: Serving, body: GenerationRequest) -> list[Draw]:
    """The pictures that a request asks for; ApiError or ValueError for what does not fit."""
    serving.check_model(body.model)
    serving.check_words("prompt", body.prompt)
    serving.check_most("n", body.n, serving.config.max_n)
    serving.check_most("num_inference_steps", body.num_inference_steps, serving.config.max_steps)
    shape = body.shape()
    size = None if shape is None else max(shape)
    serving.check_most("size", size, serving.config.max_size)
    config = generation_config(body, size=size)
    height_width = None if shape is None else shape_in(*shape)
    return [Draw((body.prompt,), body.seed + k, config, height_width) for k in range(body.n)]


async def answer(serving: Serving, body: OutputFields, works: Sequence[Draw]) -> ImagesResponse:
    """The finished pictures of a request."""
    jobs = serving.engine.submit(list(works))
    try:
        pictures = [await job.result() for job in jobs]
    except Exception as error:
        raise as_api_error(error) from error
    finally:
        cancel(jobs)
    data = [await image_data(one, work.seed, body) for one, work in zip(pictures, works, strict=True)]
    first = pictures[0].image
    return ImagesResponse(
        created=int(time.time()),
        data=data,
        output_format=body.output_format,
        size=f"{first.width}x{first.height}",
        usage=usage(pictures),
    )


def cancel(jobs: Sequence[Job]) -> None:
    """Drop what is not done of a request that is over."""
    for job in jobs:
        job.cancel()


async def image_data(picture: Picture, seed: int, body: OutputFields) -> ImageData:
    """One image of a response."""
    blob = await asyncio.to_thread(encoded, picture.image, body.output_format, body.output_compression)
    return ImageData(
        b64_json=base64.b64encode(blob).decode(), seed=seed, tokens=TokensBody.of(picture.tokens)
    )


def encoded(image: Image.Image, kind: str, quality: int | None) -> bytes:
    """A picture as the bytes of a file."""
    if kind == "png":
        return png_bytes(image)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=90 if quality is None else quality)
    return buffer.getvalue()


def usage(pictures: Sequence[Picture]) -> ImageUsage:
    """Tokens read and written for some pictures."""
    read, written = sum(one.prompt_tokens for one in pictures), sum(len(one.tokens) for one in pictures)
    return ImageUsage(
        input_tokens=read,
        output_tokens=written,
        total_tokens=read + written,
        input_tokens_details=TokenDetails(text_tokens=read),
    )
