"""Settings of `pictish serve`: where it listens, who may call it, and how much a request may ask for."""

from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator

from pictish.configs import Config

Count = Annotated[int, Field(ge=1)]


class ServeConfig(Config):
    """Limits are per request unless they say otherwise; what exceeds one is answered by a 4xx error."""

    name: str | None = Field(None, description="name of the model in /v1/models; none: that of its folder")
    api_keys: tuple[SecretStr, ...] = Field((), description="accepted bearer tokens; none: no key is needed")
    max_body_bytes: Count = 10 << 20
    max_pixels: Count = Field(16_000_000, description="of the input images of a request, in equal shares")
    max_images: Count = Field(4, description="input images of a request")
    max_n: Count = Field(10, description="images that a request may ask for")
    max_size: int = Field(1024, ge=16, le=16_384, description="longer side of an image in pixels")
    max_prompt_chars: Count = 4_000
    max_new_tokens: Count = Field(256, description="text tokens of an answer")
    max_steps: int = Field(100, ge=1, le=1000, description="denoising steps")
    max_previews: int = Field(16, ge=0, description="streamed previews of an image")
    max_best_of: Count = Field(8, description="candidates that a request may ask for, for each image")
    max_batch: Count = Field(
        16, description="answers and images written together, each candidate counted; below it one more joins"
    )
    max_requests: Count = Field(64, description="requests that are open at the same time; more get 503")
    queue_length: Count = Field(64, description="images and answers that wait; more requests get 429")
    timeout: float = Field(120.0, gt=0, description="seconds until a request is given up with 504")
    stop_timeout: float = Field(60.0, gt=0, description="seconds that a stopping server waits for what runs")
    decode_workers: Count = Field(1, description="processes that decode input images")

    @model_validator(mode="after")
    def _fits_queue(self) -> Self:
        if self.max_n > self.queue_length:
            raise ValueError(f"max_n {self.max_n} is more than queue_length {self.queue_length} can hold")
        return self
