"""/v1/tokenize and /v1/detokenize: images to tokens, and back."""

import asyncio
import base64
import time

from fastapi import APIRouter, Request

from pictish.serve.errors import error_responses
from pictish.serve.images import encoded, size_of, usage
from pictish.serve.jobs import Compute, Picture
from pictish.serve.schemas import (
    DetokenizeRequest,
    ImageData,
    ImagesResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokensBody,
    generation_config,
)
from pictish.serve.serving import Served

router = APIRouter(prefix="/v1", tags=["tokens"], responses=error_responses)


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest, serving: Served) -> TokenizeResponse:
    """The tokens of an image; the same image gives the same tokens."""
    serving.check_base_model(body.model)
    serving.engine.check_room(1)
    image = await serving.uploads.data_url(body.image, "image")
    choice = {name: getattr(body, name) for name in ("budget", "threshold", "quality", "seed")}
    (tokens,) = await serving.results(request, [Compute(lambda: serving.pipeline.tokenize(image, **choice))])
    return TokenizeResponse(
        tokens=TokensBody.of(tokens),
        count=len(tokens),
        bits=tokens.bits,
        bits_per_pixel=tokens.bits_per_pixel,
    )


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest, serving: Served) -> ImagesResponse:
    """The image that tokens stand for, in the aspect ratio of the original."""
    serving.check_base_model(body.model)
    serving.check_most(size=body.size, num_inference_steps=body.num_inference_steps)
    tokens = body.tokens.image()
    config = generation_config(body)
    (image,) = await serving.results(
        request, [Compute(lambda: serving.pipeline.detokenize(tokens, seed=body.seed, config=config))]
    )
    blob = await asyncio.to_thread(encoded, image, body.output_format, body.output_compression)
    text = base64.b64encode(blob).decode()
    return ImagesResponse(
        created=int(time.time()),
        data=[ImageData(b64_json=text, seed=body.seed, tokens=body.tokens)],
        output_format=body.output_format,
        size=size_of(image),
        usage=usage([Picture(image, tokens)]),
    )
