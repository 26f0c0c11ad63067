"""What a decoder is and how it is trained, as typed settings."""

from typing import Literal

from pydantic import Field, model_validator

from pictish.configs import Config
from pictish.tokenizer.config import DataConfig
from pictish.training.schedule import check_warmup


class PreviewConfig(Config):
    """A feed-forward head from the reconstructor's features to a small picture."""

    kind: Literal["preview"] = "preview"
    width: int = Field(192, gt=0, description="channels at the grid; halved by each doubling of the side")
    blocks: int = Field(2, gt=0, description="residual blocks at each side")
    smallest: int = Field(32, gt=0, description="channels never fall below this")


class TrainConfig(Config):
    """An experiment: `pictish train decoder CONFIG`."""

    part: Literal["decoder"] = "decoder"
    model: PreviewConfig
    tokenizer: str = Field(
        "starter", description="the model whose codes are decoded: a folder or a shipped name"
    )
    data: DataConfig
    steps: int = Field(gt=0)
    batch_size: int = Field(48, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    budgets: float = Field(0.2, ge=0, le=1, description="share of pictures whose number of tokens is drawn")
    seed: int = 0
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    tensorboard: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"

    @model_validator(mode="after")
    def _warmup_ends(self) -> "TrainConfig":
        check_warmup(self.warmup, self.steps)
        return self
