"""diffusers' denoisers and autoencoders behind one face; their quirks stay in this file.

Legend: B images, C channels of what is denoised (RGB, or a latent's), H x W its size, S pixels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictish.decoder.condition import EncodedConditions
from pictish.decoder.config import (
    AutoencoderConfig,
    DiffusionConfig,
    MeanFlowNoise,
    ShuffleConfig,
    TransformerConfig,
    UNetConfig,
)
from pictish.io.budget import sized_like
from pictish.io.model_folder import refuse_foreign_code

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


class Denoiser(nn.Module):
    """Noisy maps, times and conditions to a prediction."""

    def __init__(self, network: "ModelMixin", config: DiffusionConfig, channels: int, sample_size: int):
        super().__init__()
        self.network, self.config = network, config
        self.shrink = config.side // sample_size
        self.patch = int(network.config.get("patch_size", 1))  # what sizes of maps are multiples of
        _check_fits(network, config, channels)
        if sample_size % self.patch:
            raise ValueError(
                f"side: {config.side} pixels give maps of {sample_size}; "
                f"make that a multiple of patch_size {self.patch}"
            )

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        conditions: EncodedConditions,
        prior: Tensor | None,
        source: tuple[Tensor, Tensor] | None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Prediction (B, C, H, W) for `noisy` of the same shape at `times` (B,).

        `prior` (B, C, H, W) is what a residual is about. `source` is what is seen of a source image
        (B, C, H, W) and where (B, 1, H, W); None: nothing is. `lengths` (B,) of the steps are for MeanFlow.
        """
        beside = [noisy]
        if prior is not None:
            beside.append(prior.to(noisy.dtype))
        if conditions.maps is not None:
            beside.append(conditions.maps.to(noisy.dtype))
        if self.config.condition.source:
            hidden, nowhere = torch.zeros_like(noisy), torch.zeros_like(noisy[:, :1])
            beside += list(source) if source is not None else [hidden, nowhere]
        half = self.network.dtype in (torch.float16, torch.bfloat16)
        kind = self.network.dtype if half else noisy.dtype
        sequence, pooled = conditions.sequence, conditions.pooled
        if half:  # the network alone has fewer digits; noise and steps keep theirs
            sequence = None if sequence is None else sequence.to(kind)
            pooled = None if pooled is None else pooled.to(kind)
        mask = None if conditions.real is None else conditions.real.to(kind)
        said: dict[str, Any] = {
            "encoder_hidden_states": sequence,
            "encoder_attention_mask": mask,
            "return_dict": False,
        }
        if pooled is not None:
            height, width = (self.shrink * n for n in noisy.shape[-2:])
            # SDXL's micro-conditioning: original size, crop, target size
            sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device)
            said["added_cond_kwargs"] = {
                "text_embeds": pooled,
                "time_ids": sizes.to(kind).expand(len(noisy), -1),
            }
        elif isinstance(self.config.denoiser, TransformerConfig):
            # PixArt's two sizes and aspect ratio: three embeddings beside the time's, here of the length
            twice = None if lengths is None else lengths[:, None].expand(-1, 2)
            said["added_cond_kwargs"] = {"resolution": twice, "aspect_ratio": lengths}
        if lengths is not None and isinstance(self.config.denoiser, UNetConfig):
            said["class_labels"] = lengths  # embedded as times are, by class_embed_type
        seen = torch.cat(beside, dim=1)
        predicted: Tensor = self.network(seen.to(kind) if half else seen, timestep=times, **said)[0]
        predicted = predicted.to(noisy.dtype) if half else predicted
        return predicted[:, : noisy.shape[1]]  # PixArt's own weights also predict a variance


def build_denoiser(config: DiffusionConfig, channels: int, sample_size: int) -> Denoiser:
    """A denoiser for maps of `channels` and `sample_size`, with random weights or a folder's.

    Raises ValueError for settings that diffusers refuses and for a folder that does not fit.
    """
    cls, name = _class_of(config.denoiser)
    if config.denoiser.folder is not None:
        return Denoiser(load_part(cls, Path(config.denoiser.folder), name), config, channels, sample_size)
    condition = config.condition
    ours: dict[str, Any] = {
        "in_channels": _input_channels(config, channels),
        "out_channels": channels,
        "sample_size": sample_size,
        "cross_attention_dim": condition.width,
    }
    if condition.pooled and isinstance(config.denoiser, UNetConfig):
        each = config.denoiser.settings.get("addition_time_embed_dim", 256)
        ours |= {"addition_embed_type": "text_time", "addition_time_embed_dim": each}
        ours["projection_class_embeddings_input_dim"] = condition.pooled + 6 * each
    two_times = isinstance(config.noise, MeanFlowNoise)
    if two_times and isinstance(config.denoiser, UNetConfig):
        ours["class_embed_type"] = "timestep"
    if isinstance(config.denoiser, TransformerConfig):
        settings = config.denoiser.settings
        inner = settings.get("num_attention_heads", 16) * settings.get("attention_head_dim", 72)
        if condition.sequence:
            ours |= {"caption_channels": condition.width, "cross_attention_dim": inner}
        else:
            ours |= {"caption_channels": None, "cross_attention_dim": None}
        if two_times and inner % 3:
            raise ValueError(
                f"denoiser.settings: num_attention_heads x attention_head_dim is {inner}; noise of kind "
                "meanflow needs a multiple of 3"
            )
        ours |= {"use_additional_conditions": two_times, "interpolation_scale": 1}
    taken = sorted(set(ours) & set(config.denoiser.settings) - {"addition_time_embed_dim"})
    if taken:
        raise ValueError(
            f"denoiser.settings: {', '.join(taken)} follow from the rest of the config; omit them"
        )
    unknown = sorted(set(config.denoiser.settings) - set(cls._get_init_keys(cls)))
    if unknown:
        raise ValueError(f"denoiser.settings: {cls.__name__} knows no {', '.join(unknown)}")
    try:
        network = cls(**{**config.denoiser.settings, **ours})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"denoiser.settings: {cls.__name__} refuses them: {error}") from None
    return Denoiser(network, config, channels, sample_size)


class Latents(nn.Module):
    """A frozen autoencoder between images in [-1, 1] and latents of about unit variance."""

    def __init__(self, autoencoder: "ModelMixin"):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        settings = autoencoder.config
        self.channels = int(settings["latent_channels"])
        self.scale = float(settings.get("scaling_factor") or 1.0)
        self.shift = float(settings.get("shift_factor") or 0.0)
        self.shrink = 2 ** (
            len(settings.get("block_out_channels") or settings["encoder_block_out_channels"]) - 1
        )

    def train(self, mode: bool = True) -> "Latents":
        return super().train(False)  # frozen, whatever happens around it

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (B, C, S / shrink, S / shrink), the mean of each, of images (B, 3, S, S)."""
        found = self.autoencoder.encode(pictures)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (latents - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents; gradients flow to the latents."""
        decoded: Tensor = self.autoencoder.decode(latents / self.scale + self.shift).sample
        return decoded


class Shuffle(nn.Module):
    """Blocks of pixels as channels, and back."""

    def __init__(self, block: int):
        super().__init__()
        self.shrink, self.channels = block, 3 * block**2

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3 block^2, S / block, S / block) of images (B, 3, S, S)."""
        return F.pixel_unshuffle(pictures, self.shrink)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of what `encode` gave."""
        return F.pixel_shuffle(latents, self.shrink)


def build_latents(config: AutoencoderConfig | ShuffleConfig) -> Latents | Shuffle:
    """What a decoder works on; ValueError when a folder holds no autoencoder of this kind."""
    if isinstance(config, ShuffleConfig):
        return Shuffle(config.block)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    cls = {"kl": AutoencoderKL, "tiny": AutoencoderTiny}[config.kind]
    return Latents(load_part(cls, Path(config.folder), "vae"))


def load_part(cls: type, folder: Path, name: str) -> "ModelMixin":
    """A diffusers model of class `cls` in `folder` or its subfolder `name`, strictly and from safetensors.

    Raises ValueError when it is missing, damaged, of another class, incomplete, or not finite.
    """
    place = folder / name if (folder / name).is_dir() else folder
    if not (place / "config.json").is_file():
        raise ValueError(f"{folder}: no diffusers model; looked for {name}/config.json and config.json")
    try:
        refuse_foreign_code(place)
        settings = cls.load_config(place, local_files_only=True)  # type: ignore[attr-defined]
        if settings.get("_class_name") != cls.__name__:
            raise ValueError(f"it holds a {settings.get('_class_name')}, not a {cls.__name__}")
        with sized_like(place, str(place)):
            network, found = cls.from_pretrained(  # type: ignore[attr-defined]
                place, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # diffusers raises many kinds for a folder that is not whole
        raise ValueError(f"{place}: not a usable {cls.__name__}: {str(error).splitlines()[0]}") from None
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{place}: {len(wrong)} weights missing, unknown or misshapen, first {wrong[0]}")
    check_finite(network, str(place))
    return network


def check_finite(module: nn.Module, source: str) -> None:
    """ValueError when a weight is NaN or infinite."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{source}: {name} is not finite; the file is damaged or the training diverged")


def _class_of(config: UNetConfig | TransformerConfig) -> tuple[Any, str]:
    """diffusers' class and its usual subfolder; from its own module, since all of diffusers loads slowly."""
    if isinstance(config, UNetConfig):
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel, "unet"
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    return PixArtTransformer2DModel, "transformer"


def _input_channels(config: DiffusionConfig, channels: int) -> int:
    """Channels of the noisy maps and all that lies beside them; `Denoiser.forward` lays it there."""
    prior = channels if config.residual else 0
    source = channels + 1 if config.condition.source else 0
    return channels + prior + config.condition.channels + source


def _check_fits(network: "ModelMixin", config: DiffusionConfig, channels: int) -> None:
    """ValueError when a network, of a folder perhaps, takes other inputs than the config gives it."""
    settings, condition = network.config, config.condition
    ours = _input_channels(config, channels)
    if settings["in_channels"] != ours:
        raise ValueError(
            f"denoiser: takes {settings['in_channels']} channels, but the image has {channels} and what is "
            f"beside it {ours - channels}; set condition.channels, condition.source and residual to fit"
        )
    pooled = None
    two_times = settings.get("class_embed_type") == "timestep"
    if isinstance(config.denoiser, TransformerConfig):
        two_times = bool(network.use_additional_conditions)
        width = settings["caption_channels"]
    else:
        blocks = [*settings["down_block_types"], str(settings["mid_block_type"]), *settings["up_block_types"]]
        width = settings["cross_attention_dim"] if any("CrossAttn" in block for block in blocks) else None
        if settings["addition_embed_type"] == "text_time":
            pooled = (
                settings["projection_class_embeddings_input_dim"] - 6 * settings["addition_time_embed_dim"]
            )
    if isinstance(config.noise, MeanFlowNoise) and not two_times:
        raise ValueError(
            "noise: kind meanflow needs a denoiser that embeds two times (a UNet with class_embed_type: "
            "timestep, a transformer with use_additional_conditions: true)"
        )
    if condition.sequence and width is None:
        raise ValueError("condition.sequence: this denoiser has no cross-attention to read it; set it to []")
    if width is not None and not condition.sequence:
        raise ValueError("condition.sequence: empty, but this denoiser has cross-attention")
    if condition.sequence and width != condition.width:
        raise ValueError(
            f"denoiser: attends to rows of width {width}, not {condition.width}; set condition.width"
        )
    if pooled != condition.pooled:
        raise ValueError(f"condition.pooled: this denoiser takes {pooled}, not {condition.pooled}")
