"""Bodies of requests and responses, as OpenAI's API has them, with the extra fields of this server.

A field of OpenAI's that makes no difference here is accepted with the values that ask for nothing else.
"""

import re
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pictish.data.tokens import TokenizedImage
from pictish.pipelines.settings import MOST_CANDIDATES, GenerationConfig

SEEDS = 2**63  # clients in other languages have signed 64-bit integers
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Entry = Annotated[int, Field(ge=0, lt=2**32)]
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
    best_of: int | None = Field(
        None,
        ge=1,
        le=MOST_CANDIDATES,
        description="Candidates for a text prompt; that which the model would most likely caption with it is "
        "returned. 1 disables it.",
    )
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

    @property
    def previews(self) -> int:
        """How many are asked for of each image."""
        return self.partial_images if self.stream else 0

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


class EditRequest(OutputFields, SamplingFields):
    """Form of /v1/images/edits (multipart)."""

    prompt: Words
    image: list[UploadFile] = Field([], description="The image to change.")
    images: list[UploadFile] = Field([], alias="image[]", description="The same for several images.")
    mask: UploadFile | None = Field(
        None, description="PNG of the size of the image, transparent where it may change."
    )
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="Accepted, and makes no difference."
    )


class TokensBody(Body):
    """The tokens of one image, as `pictish.TokenizedImage`."""

    ids: list[Entry] = Field(min_length=1, max_length=65_536)
    cells: list[Entry] | None = Field(None, max_length=65_536)
    grid: tuple[Entry, Entry]
    size: tuple[Entry, Entry] = Field(description="Height and width of the original in pixels.")
    tokenizer: str = Field(max_length=64, description="Fingerprint of the tokenizer.")
    codebook_size: int = Field(ge=1, le=2**32)

    def image(self) -> TokenizedImage:
        """The tokens; ValueError when the parts disagree."""
        cells = None if self.cells is None else np.array(self.cells)
        return TokenizedImage(
            np.array(self.ids), cells, self.grid, self.size, self.tokenizer, self.codebook_size
        )

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
    """Tokens read and written, of the images that are returned."""

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


class TextPart(Body):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """An image as a data URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Makes no difference.")


class ImagePart(Body):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None
    name: str | None = None


class StreamOptions(Body):
    """What a stream has beside its pieces."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(SamplingFields):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    model: str | None = None
    modalities: list[Literal["text", "image"]] = Field(["text"], min_length=1, max_length=2)
    max_tokens: int | None = Field(None, ge=1, description="Text tokens of the answer.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same.")
    n: int = Field(1, ge=1, le=128, description="Images to draw; of a text there is one.")
    seed: Seed = 0
    size: str = Field("auto", description="WIDTHxHEIGHT of images, or auto.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None
    store: Literal[False] | None = None


class ChatMessage(BaseModel):
    """What was written or drawn; an image is a data URL."""

    role: Literal["assistant"] = "assistant"
    content: str | list[ImagePart]


class ChatChoice(BaseModel):
    """One of the results."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]


class ChatUsage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """Body of a response without stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class TokenizeRequest(Body):
    """Body of /v1/tokenize: at most one of the settings says how many tokens there are."""

    image: str = Field(description="The image as a data URL.")
    model: str | None = None
    budget: int | None = Field(None, ge=1, description="Exact number of tokens.")
    threshold: float | None = Field(None, gt=0, lt=1, description="Patches scored above this.")
    quality: float | None = Field(None, gt=0, lt=100, description="As few as reach this PSNR in dB.")
    seed: Seed | None = Field(None, description="Sample the patches by their scores.")


class TokenizeResponse(BaseModel):
    """Body of its response."""

    tokens: TokensBody
    count: int
    bits: float
    bits_per_pixel: float


class DetokenizeRequest(DecodingFields):
    """Body of /v1/detokenize."""

    tokens: TokensBody
    model: str | None = None
    size: int | None = Field(None, ge=1, le=16_384, description="Longer side in pixels.")
    seed: Seed = 0
    output_format: Format = "png"
    output_compression: int | None = Field(None, ge=0, le=100)


class ModelCard(BaseModel):
    """One model of the list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pictish"
    parent: str | None = Field(None, description="Of an adaptor: the model that it lies beside.")


class ModelList(BaseModel):
    """Body of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(BaseModel):
    """Body of /healthz and /readyz."""

    status: Literal["ok", "ready"]


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
    """The settings of a request, those of `more` in place of its own; ValueError if out of range."""
    names = GenerationConfig.__dataclass_fields__.keys() & type(fields).model_fields.keys()
    return GenerationConfig(**{name: getattr(fields, name) for name in names} | more)
