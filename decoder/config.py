"""What a decoder is and how it is trained, as typed settings."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pictish.configs import Config
from pictish.tokenizer.config import DataConfig, EncoderConfig
from pictish.training.precision import MixedPrecision
from pictish.training.schedule import check_warmup


class PreviewConfig(Config):
    """A feed-forward head from the reconstructor's features to a small image."""

    kind: Literal["preview"] = "preview"
    width: int = Field(192, gt=0, description="channels at the grid; halved by each doubling of the side")
    blocks: int = Field(2, gt=0, description="residual blocks at each side")
    smallest: int = Field(32, gt=0, description="channels never fall below this")


class UpscalerConfig(Config):
    """A compact super-resolution network behind a decoder."""

    kind: Literal["compact"] = "compact"
    upscale: Literal[4] = Field(4, description="pixels of the output for one of the input, on each side")
    width: int = Field(64, gt=0, description="channels")
    layers: int = Field(16, gt=0, description="convolutions from these channels to as many")


class UNetConfig(Config):
    """diffusers' UNet2DConditionModel; Stable Diffusion 1.5's and SDXL's are settings of it."""

    kind: Literal["unet"] = "unet"
    settings: dict[str, Any] = Field(default={}, description="of the class, such as block_out_channels")
    folder: str | None = Field(
        None, description="local diffusers folder with `unet` to start from, with its own settings"
    )


class TransformerConfig(Config):
    """diffusers' PixArtTransformer2DModel."""

    kind: Literal["transformer"] = "transformer"
    settings: dict[str, Any] = Field(default={}, description="of the class, such as num_layers")
    folder: str | None = Field(
        None, description="local diffusers folder with `transformer` to start from, with its own settings"
    )


class ShuffleConfig(Config):
    """Blocks of pixels as channels: a smaller map that loses nothing, for convolutions on a CPU."""

    kind: Literal["shuffle"] = "shuffle"
    block: int = Field(2, gt=1, description="side of a block in pixels")


class AutoencoderConfig(Config):
    """The latent space to work in: a frozen autoencoder of diffusers."""

    kind: Literal["kl", "tiny"] = Field(description="AutoencoderKL or AutoencoderTiny")
    folder: str = Field(description="local folder of the autoencoder, or a diffusers folder with `vae`")


class ConditionConfig(Config):
    """How codes reach the denoiser, by projections that are trained with it."""

    kind: Literal["learned"] = "learned"
    channels: int = Field(3, ge=0, description="feature maps concatenated to the noisy image; 0 for none")
    sequence: tuple[Literal["features", "codes"], ...] = Field(
        ("features", "codes"), description="what cross-attention reads; empty: there is none"
    )
    width: int = Field(256, gt=0, description="of a row of the sequence, the denoiser's cross_attention_dim")
    pooled: int | None = Field(None, gt=0, description="width of SDXL's pooled embedding")
    source: bool = Field(False, description="whether parts of a source image may be given, for edits")

    @model_validator(mode="after")
    def _tells_something(self) -> "ConditionConfig":
        if not (self.channels or self.sequence):
            raise ValueError(
                "condition: no channels and no sequence, so nothing would be conditioned on codes; set one"
            )
        return self


class TrunkConfig(Config):
    """A decoder's own network from codes to features, of the form `lavit` (`tokenizer/reconstructor.py`)."""

    layers: int = Field(gt=0)
    mlp_ratio: float = Field(gt=0)


class HeadsConfig(Config):
    """LaVIT's (arXiv 2309.04669): linear heads on features, for the shapes of Stable Diffusion."""

    kind: Literal["heads"]
    width: int = Field(gt=0, description="of a row of the sequence, the denoiser's cross_attention_dim")
    pooled: int | None = Field(None, gt=0, description="width of SDXL's pooled embedding")
    heads: int = Field(gt=0, description="attention heads of the trunk and of what pools")
    trunk: TrunkConfig | None = Field(None, description="none: the tokenizer's reconstructor")
    null: int = Field(0, ge=0, description="stored rows that stand for no codes; 0: zeros, all of them seen")

    @property
    def channels(self) -> int:
        """No maps beside the image."""
        return 0

    @property
    def sequence(self) -> tuple[str, ...]:
        """What cross-attention reads."""
        return ("features",)

    @property
    def source(self) -> bool:
        """No parts of a source image."""
        return False


def _condition_kind(value: Any) -> str:
    """Folders and files from before there were two kinds name none."""
    kind = value.get("kind", "learned") if isinstance(value, dict) else getattr(value, "kind", "learned")
    return str(kind)


AnyCondition = Annotated[
    Annotated[ConditionConfig, Tag("learned")] | Annotated[HeadsConfig, Tag("heads")],
    Discriminator(_condition_kind),
]


class DiffusionNoise(Config):
    """x_t = a x_0 + b n with a^2 + b^2 = 1, by the betas of DDPM (arXiv 2006.11239)."""

    kind: Literal["diffusion"] = "diffusion"
    predicts: Literal["epsilon", "v", "x0"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = Field(0.0001, gt=0)
    beta_end: float = Field(0.02, gt=0, lt=1)
    spacing: Literal["trailing", "leading"] = Field(
        "trailing",
        description="which times few steps visit; leading: as Stable Diffusion does, plus one",
    )


class FlowNoise(Config):
    """x_t = (1 - t) x_0 + t n: rectified flow (arXiv 2209.03003)."""

    kind: Literal["flow"] = "flow"
    predicts: Literal["velocity", "x0"] = "velocity"
    shift: float = Field(1.0, gt=0, description="above 1 sampling spends more of its steps on high noise")


class MeanFlowNoise(Config):
    """x_t = (1 - t) x_0 + t n, and its average velocity between two times (`decoder/meanflow.py`)."""

    kind: Literal["meanflow"] = "meanflow"
    predicts: Literal["x0"] = "x0"


AnyNoise = DiffusionNoise | FlowNoise | MeanFlowNoise


class SamplingConfig(Config):
    """How images are drawn unless the user says otherwise."""

    scheduler: str | None = Field(
        None, description="class name of a diffusers scheduler; noise of kind meanflow is sampled without"
    )
    steps: int = Field(gt=0, le=1000)
    guidance: float = Field(ge=0, le=100, description="1 is none")


class DiffusionConfig(Config):
    """A diffusion decoder."""

    kind: Literal["diffusion"] = "diffusion"
    side: int = Field(gt=0, le=4096, description="pixels of the square image it is trained on")
    shapes: tuple[tuple[int, int], ...] = Field(
        (), description="sizes (height, width) to draw images in, by aspect; none: a square, stretched"
    )
    denoiser: Annotated[UNetConfig | TransformerConfig, Field(discriminator="kind")]
    autoencoder: Annotated[AutoencoderConfig | ShuffleConfig, Field(discriminator="kind")] | None = Field(
        None, description="none: in pixel space"
    )
    residual: float | None = Field(
        None,
        gt=0,
        description="what is denoised is the image less the pixels that codes tell, both from -1 to 1, "
        "divided by this; none: the image itself",
    )
    condition: AnyCondition = ConditionConfig()
    noise: Annotated[AnyNoise, Field(discriminator="kind")]
    sampling: SamplingConfig
    redraw: SamplingConfig | None = Field(
        None,
        description="the same for images that are reconstructed (`detokenize`, `evaluate decoder`), where "
        "`sampling` is for generated ones; none: no different",
    )
    micro_batch: int = Field(4, gt=0, le=1024, description="images of one forward, so that shapes never vary")


class ObjectiveConfig(Config):
    """What a diffusion decoder's training draws and weighs."""

    weighting: Literal["none", "min_snr", "velocity", "adaptive"] = Field(
        "none",
        description="min_snr: arXiv 2303.09556; velocity: an x0 error as that of the velocity; adaptive: of "
        "meanflow, each image's error and distance divided by themselves",
    )
    gamma: float = Field(5.0, gt=0, description="of min_snr")
    times: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = Field(0.0, description="of logit_normal (arXiv 2403.03206)")
    deviation: float = Field(1.0, gt=0, description="of logit_normal")
    flow_matching: float = Field(
        0.5, ge=0, le=1, description="of meanflow: fraction of images whose two times are equal"
    )
    dropout: float = Field(0.1, ge=0, le=1, description="share of images that lose their condition")
    source: float = Field(0.2, ge=0, le=1, description="share that see parts of the image, if it may")
    perceptual: float = Field(
        0.0,
        ge=0,
        description="weight of the distance between the predicted x_0 and the image in the feature maps of "
        "`teacher` (arXiv 2409.02529)",
    )
    perceptual_below: float = Field(
        1.0, gt=0, le=1, description="time, 1 being noise, from which on images are not compared so"
    )
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the weights' average, which is what is saved")


class TrainConfig(Config):
    """An experiment: `pictish train decoder CONFIG`."""

    renamed: ClassVar = {"budgets": "fixed_length_probability"}

    part: Literal["decoder"] = "decoder"
    model: Annotated[PreviewConfig | DiffusionConfig, Field(discriminator="kind")]
    objective: ObjectiveConfig = ObjectiveConfig()
    tokenizer: str = Field(
        "starter", description="the model whose codes are decoded: a folder or a shipped name"
    )
    teacher: EncoderConfig | None = Field(
        None, description="frozen timm network that `objective.perceptual` compares images by"
    )
    data: DataConfig
    steps: int = Field(gt=0)
    batch_size: int = Field(48, gt=0)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices and convolutions of the blocks; AdamW for the rest"
    )
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    fixed_length_probability: float = Field(
        0.2, ge=0, le=1, description="share of images whose number of tokens is drawn"
    )
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    sample_every: int = Field(0, ge=0, description="steps between grids of images; 0: none")
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    tensorboard: bool = Field(False, description="write the metrics to RUN/tensorboard too")
    wandb: bool = Field(False, description="log the metrics to Weights & Biases too, in project pictish")
    mixed_precision: MixedPrecision = Field(
        "no", description="auto: bf16 where the processor or GPU has units for it, else no"
    )

    @model_validator(mode="after")
    def _objective_fits(self) -> "TrainConfig":
        if isinstance(self.model, DiffusionConfig):
            noise, weighting = self.model.noise, self.objective.weighting
            if self.objective.perceptual and noise.predicts == "epsilon":
                raise ValueError(
                    "objective.perceptual: of noise.predicts epsilon, whose x_0 is unsound at high noise; "
                    "take another prediction, or 0"
                )
            if self.objective.perceptual and self.teacher is None:
                raise ValueError("objective.perceptual: needs a `teacher`, and none is given")
            own = {"diffusion": "min_snr", "flow": "velocity", "meanflow": "adaptive"}
            for kind, name in own.items():
                if weighting == name and noise.kind != kind:
                    raise ValueError(
                        f"objective.weighting: {name} is for noise of kind {kind}; use {own[noise.kind]}"
                    )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "TrainConfig":
        check_warmup(self.warmup, self.steps)
        return self
