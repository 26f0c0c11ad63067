"""Bodies of requests and responses, as OpenAI's API has them, with the extra fields of this server.

A field of OpenAI's that makes no difference here is accepted with the values that ask for nothing else.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pictish.data.tokens import TokenizedImage
from pictish.pipelines.settings import GenerationConfig

SEEDS = 2**63  # clients in other languages have signed 64-bit integers
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Words = Annotated[str, StringConstraints(min_length=1)]
Format = Literal["png", "jpeg", "webp"]
_SIZE = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}")


class Body(BaseModel):
    """Base of requests: an unknown field is an error, since it would be ignored in silence."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class DecodingFields(Body):
    """How tokens become pixels; null is the model's default."""

    num_inference_steps: int | None = Field(None, ge=0, le=1000, description="0: the preview decoder.")
    decoder_guidance_scale: float | None = Field(None, ge=0, le=100)
    upscale: Literal[1, 2, 4] | None = None


class SamplingFields(DecodingFields):
    """How tokens are sampled; null is the model's default."""

    guidance_scale: float | None = Field(None, ge=-100, le=100, description="1 disables guidance.")
    image_guidance_scale: float | None = Field(None, ge=-100, le=100)
    temperature: float | None = Field(None, ge=0, le=1000)
    top_k: int | None = Field(None, ge=1, le=2**31 - 1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    min_codes: int | None = Field(None, ge=1, le=2**31 - 1)
    max_codes: int | None = Field(None, ge=1, le=2**31 - 1)


class OutputFields(Body):
    """What images are asked for, and in which form they are returned."""

    model: str | None = None
    n: int = Field(1, ge=1, le=128)
    size: str = Field("auto", description="WIDTHxHEIGHT in pixels, or auto: the model's own.")
    seed: Seed = Field(0, description="Of the first image; each further one adds 1.")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Format = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp.")
    stream: bool = False
    partial_images: int = Field(0, ge=0, description="Previews of each image, with stream.")
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto", "standard"] | None = None
    user: str | None = None

    def shape(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None for auto. ValueError for other text."""
        if self.size == "auto":
            return None
        if not _SIZE.fullmatch(self.size):
            raise ValueError("size: write it as WIDTHxHEIGHT, such as 256x256, or auto")
        width, height = map(int, self.size.split("x"))
        return width, height


class GenerationRequest(OutputFields, SamplingFields):
    """Body of /v1/images/generations."""

    prompt: Words
    style: Literal["vivid", "natural"] | None = Field(None, description="Accepted, and makes no difference.")
    moderation: Literal["auto", "low"] | None = None


class TokensBody(Body):
    """The tokens of one image, as `pictish.TokenizedImage`."""

    ids: list[int] = Field(max_length=65_536)
    cells: list[int] | None = Field(None, max_length=65_536)
    grid: tuple[int, int]
    size: tuple[int, int] = Field(description="Height and width of the original in pixels.")
    tokenizer: str = Field(max_length=64, description="Fingerprint of the tokenizer.")
    codebook_size: int

    @classmethod
    def of(cls, tokens: TokenizedImage) -> "TokensBody":
        """The JSON of tokens."""
        cells = None if tokens.cells is None else tokens.cells.tolist()
        return cls(
            ids=tokens.ids.tolist(),
            cells=cells,
            grid=tokens.grid,
            size=tokens.size,
            tokenizer=tokens.tokenizer,
            codebook_size=tokens.codebook_size,
        )


class ImageData(BaseModel):
    """One image of a response, with the seed and the tokens that it was decoded from."""

    b64_json: str
    url: None = None
    revised_prompt: None = None
    seed: int
    tokens: TokensBody


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: int = 0
    image_tokens: int = 0


class ImageUsage(BaseModel):
    """Tokens read and written."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails


class ImagesResponse(BaseModel):
    """Body of a response with images."""

    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    size: str
    usage: ImageUsage


class ModelCard(BaseModel):
    """One model of the list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pictish"


class ModelList(BaseModel):
    """Body of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every error."""

    error: ErrorDetail


def generation_config(fields: DecodingFields, **more: Any) -> GenerationConfig:
    """The settings of a request; ValueError if out of range."""
    names = GenerationConfig.__dataclass_fields__.keys() & type(fields).model_fields.keys()
    return GenerationConfig(**{name: getattr(fields, name) for name in names}, **more)
