"""Which vision tower a language model looks through, and how images are laid out, as typed settings."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pictish.configs import Config

Channels = tuple[float, float, float]


class TimmTower(Config):
    """A network of timm that gives its intermediate features."""

    kind: Literal["timm"] = "timm"
    model: str = Field(description="timm's name, such as vit_base_patch14_reg4_dinov2")
    settings: dict[str, Any] = Field({}, description="of timm's class, such as img_size")
    weights: str | None = Field(None, description="safetensors file in timm's names; none: random")


class TransformersTower(Config):
    """A vision transformer of transformers: SigLIP, CLIP, DINO and others."""

    kind: Literal["transformers"] = "transformers"
    architecture: str | None = Field(
        None, description="transformers' `model_type`, such as siglip_vision_model; none: as `weights` says"
    )
    settings: dict[str, Any] = Field({}, description="of transformers' config class, such as hidden_size")
    weights: str | None = Field(None, description="folder of a pretrained model; none: random")

    @model_validator(mode="after")
    def _known(self) -> "TransformersTower":
        if self.architecture is None and self.weights is None:
            raise ValueError("a tower needs an architecture, or a folder of weights that says which")
        return self


class LinearProjector(Config):
    """One matrix."""

    kind: Literal["linear"] = "linear"


class MlpProjector(Config):
    """Linear layers with GELU between them; two are LLaVA's."""

    kind: Literal["mlp"] = "mlp"
    layers: int = Field(2, ge=2, le=8)


class ResamplerProjector(Config):
    """Learned queries that attend to a view's rows: every view becomes `queries` rows."""

    kind: Literal["resampler"] = "resampler"
    queries: int = Field(64, gt=0, le=4096)
    heads: int = Field(8, gt=0)


ProjectorConfig = Annotated[LinearProjector | MlpProjector | ResamplerProjector, Field(discriminator="kind")]


class TilesConfig(Config):
    """LLaVA's anyres: the image as a whole, and in tiles."""

    wide: int = Field(6, gt=0, le=16, description="tiles side by side, at most")
    high: int = Field(6, gt=0, le=16, description="tiles one above the other, at most")
    grids: tuple[tuple[int, int], ...] | None = Field(
        None, description="the (wide, high) to choose from; none: all within those bounds"
    )
    largest: int | None = Field(
        4, gt=0, description="views whose cells an image's tiles may have together; none: any"
    )


class VisionConfig(Config):
    """A vision tower, the projector behind it, and the layout of images."""

    tower: Annotated[TimmTower | TransformersTower, Field(discriminator="kind")]
    layer: int = Field(-1, lt=0, description="block whose output is read, counted from the last, -1")
    norm: bool = Field(False, description="whether the tower's last norm follows it")
    mean: Channels = Field((0.5, 0.5, 0.5), description="subtracted from channels in [0, 1]")
    std: Channels = Field((0.5, 0.5, 0.5), description="they are divided by")
    projector: ProjectorConfig = MlpProjector()
    tiles: TilesConfig | None = Field(
        None, description="higher resolution for a single image; none: it is squashed to one view"
    )
    pool: int = Field(2, gt=0, description="how many times smaller each side of a video frame's map is")
    micro_batch: int = Field(8, gt=0, description="views a forward of the tower")

    @model_validator(mode="after")
    def _fits(self) -> "VisionConfig":
        if self.norm and self.layer != -1:
            raise ValueError(f"norm: it follows the last block, and layer is {self.layer}; -1 would fit")
        if min(self.std) <= 0:
            raise ValueError(f"std: {min(self.std)} is among them; more than 0 would fit")
        if self.tiles is not None and isinstance(self.projector, ResamplerProjector):
            raise ValueError(
                "tiles are put together by their cells, which a resampler does not keep; mlp would fit"
            )
        return self
