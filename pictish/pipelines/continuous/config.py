"""How an output projector is trained, as typed settings."""

from typing import Literal

from pydantic import Field, model_validator

from pictish.configs import Config
from pictish.lm.output_projector import OutputProjectorConfig
from pictish.tokenizer.config import DataConfig
from pictish.training.precision import MixedPrecision
from pictish.training.schedule import check_warmup


class AlignmentConfig(Config):
    """What the projected features are compared with."""

    features: float = Field(
        1.0, ge=0, description="weight of the squared error against the tokenizer's features of the image"
    )
    diffusion: float = Field(
        0.0, ge=0, description="weight of the loss of `decoder`, which reads them, against the image itself"
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "AlignmentConfig":
        if not (self.features or self.diffusion):
            raise ValueError("objective: features and diffusion are 0, so nothing would be learned; set one")
        return self


class TrainConfig(Config):
    """An experiment: `pictish train output-projector CONFIG`."""

    part: Literal["output-projector"] = "output-projector"
    language_model: str = Field(
        "starter", description="frozen: a model folder, a folder of transformers, or a shipped name"
    )
    tokenizer: str = Field("starter", description="whose features are predicted: a folder or a shipped name")
    decoder: str | None = Field(
        None,
        description="frozen diffusion decoder for `objective.diffusion`, a folder; it reads features alone",
    )
    model: OutputProjectorConfig = OutputProjectorConfig()
    objective: AlignmentConfig = AlignmentConfig()
    data: DataConfig
    caption_key: str | None = Field(
        None, description="field of a sample's JSON that holds its captions; none: .txt and known fields"
    )
    steps: int = Field(gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    sample_every: int = Field(0, ge=0, description="steps between sheets of images; 0: none")
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    tensorboard: bool = Field(False, description="write the metrics to RUN/tensorboard too")
    wandb: bool = Field(False, description="log the metrics to Weights & Biases too, in project pictish")
    mixed_precision: MixedPrecision = Field(
        "no", description="auto: bf16 where the processor or GPU has units for it, else no"
    )

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        check_warmup(self.warmup, self.steps)
        if self.objective.diffusion and self.decoder is None:
            raise ValueError("objective.diffusion: is the loss of a `decoder`, and none is given")
        return self
