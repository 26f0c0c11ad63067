"""Settings of the quantizers; `kind` chooses one."""

from math import prod
from typing import Annotated, Literal

from pydantic import Field

from pictish.configs import Config


class CosineConfig(Config):
    """Nearest code by cosine, EMA updates, k-means start, revival of dead codes."""

    kind: Literal["cosine"] = "cosine"
    codes: int = Field(2048, gt=1)
    dim: int = Field(16, gt=1)
    decay: float = Field(0.99, gt=0, lt=1)
    dead_below: float = Field(
        0.1, ge=0, description="revive a code whose running count a batch is below this"
    )
    commitment: float = Field(0.25, ge=0)


class FSQConfig(Config):
    """Finite scalar quantization: each dimension rounded to its own number of levels."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 4)

    @property
    def codes(self) -> int:
        return prod(self.levels)


class LFQConfig(Config):
    """Lookup-free quantization: the sign of each of log2(codes) dimensions."""

    kind: Literal["lfq"] = "lfq"
    codes: int = Field(2048, gt=1)
    entropy: float = Field(0.1, ge=0)
    commitment: float = Field(0.25, ge=0)


class SimVQConfig(Config):
    """Frozen random codes behind one learned linear map."""

    kind: Literal["simvq"] = "simvq"
    codes: int = Field(2048, gt=1)
    dim: int = Field(16, gt=1)
    commitment: float = Field(1.0, ge=0)


class EuclideanConfig(Config):
    """Nearest row of a fixed codebook by squared distance from a unit vector."""

    kind: Literal["euclidean"] = "euclidean"
    codes: int = Field(16384, gt=1)
    dim: int = Field(32, gt=1)


QuantizerConfig = Annotated[
    CosineConfig | EuclideanConfig | FSQConfig | LFQConfig | SimVQConfig, Field(discriminator="kind")
]
