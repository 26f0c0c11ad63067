"""The diffusion decoder: condition, denoiser, noise and latent space joined, and its model folder.

Legend: B images, N cells, F feature channels, C channels of what is denoised, H x W its size, S pixels.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictish.configs import parse
from pictish.decoder import denoiser as parts
from pictish.decoder.condition import ConditionEncoder, Conditioning
from pictish.decoder.config import AutoencoderConfig, ConditionConfig, DiffusionConfig
from pictish.decoder.heads import HeadCondition
from pictish.decoder.noise import Noise
from pictish.decoder.schedulers import build_scheduler, check_scheduler
from pictish.io.budget import sized_like
from pictish.io.model_folder import (
    CONFIG,
    WEIGHTS,
    load_strictly,
    need,
    read_model_folder,
    storage_dtype,
    whole_folder,
)
from pictish.io.plain_yaml import to_yaml
from pictish.tokenizer.dynamic import Tokenizer

DENOISER, AUTOENCODER, SCHEDULER = "denoiser", "autoencoder", "scheduler"  # its subfolders


class DiffusionDecoder(nn.Module):
    """Codes to the prediction of a denoiser. Training calls `forward`; `Decoder` in pixel.py draws."""

    def __init__(self, config: DiffusionConfig, tokenizer: Tokenizer):
        super().__init__()
        self.config = config
        self.noise = Noise(config.noise)
        for sampling in filter(None, (config.sampling, config.redraw)):
            check_scheduler(sampling.scheduler, config.noise)
        self.latents = parts.build_latents(config.autoencoder) if config.autoencoder else None
        self.channels = self.latents.channels if self.latents else 3
        shrink = self.latents.shrink if self.latents else 1
        learned = isinstance(config.condition, ConditionConfig)
        grid = tokenizer.grid[0] if learned else 1  # heads lay no maps of cells beside the image
        if config.side % shrink or (config.side // shrink) % grid:
            raise ValueError(
                f"side: {config.side} pixels do not fit {grid} x {grid} cells; "
                f"give a multiple of {shrink * grid}"
            )
        self.sample_size = config.side // shrink
        self.condition = _condition(config, tokenizer, self.sample_size // grid)
        network = tokenizer.network
        if config.residual and (isinstance(self.latents, parts.Latents) or network.pixel_side is None):
            raise ValueError(
                "residual: it is about the pixels that a tokenizer reconstructs; it needs them there, and "
                "pixels here"
            )
        self.denoiser = parts.build_denoiser(config, self.channels, self.sample_size)

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        conditioning: Conditioning,
        drop: Tensor,
        prior: Tensor | None = None,
        source: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Prediction (B, C, H, W) for `noisy` maps at `times` (B,); unconditional where `drop` (B,).

        `prior` is what `self.prior` gives; `lengths` as for the denoiser.
        """
        conditions = self.condition(conditioning, drop, (noisy.shape[-2], noisy.shape[-1]))
        return self.denoiser(noisy, times, conditions, prior, source, lengths)

    def prior(self, conditioning: Conditioning, size: tuple[int, int] | None = None) -> Tensor | None:
        """What residuals are about: the pixels that codes tell as maps (B, C, H, W). None: no residuals here.

        `size` is H x W where it is not the square of training. Guidance leaves it alone: both of its branches
        are about one prior.
        """
        if self.config.residual is None:
            return None
        assert conditioning.pixels is not None
        height, width = size or (self.sample_size, self.sample_size)
        shrink = self.config.side // self.sample_size
        pixels = conditioning.pixels
        if pixels.shape[-2:] != (height * shrink, width * shrink):
            pixels = F.interpolate(
                pixels, size=(height * shrink, width * shrink), mode="bilinear", align_corners=False
            )
        return self._to_maps(pixels)

    def encode(self, pictures: Tensor, prior: Tensor | None) -> Tensor:
        """What is denoised, (B, C, H, W), of RGB images (B, 3, S, S) in [0, 1] and their prior, if any."""
        maps = self._to_maps(pictures)
        if prior is None:
            return maps
        assert self.config.residual is not None
        return (maps - prior) / self.config.residual

    def decode(self, x: Tensor, prior: Tensor | None) -> Tensor:
        """RGB images (B, 3, S, S), about in [0, 1], of what was denoised."""
        if prior is not None:
            assert self.config.residual is not None
            x = prior + self.config.residual * x
        return ((self.latents.decode(x) if self.latents else x) + 1) / 2

    @property
    def free(self) -> bool:
        """Whether what is denoised has no bounds, as latents."""
        return isinstance(self.latents, parts.Latents)

    def within(self, x: Tensor, prior: Tensor | None) -> Tensor:
        """The same, kept where images have pixels in [0, 1]."""
        if self.free:
            return x
        return self.encode(self.decode(x, prior).clamp(0, 1), prior)

    def _to_maps(self, pictures: Tensor) -> Tensor:
        scaled = pictures * 2 - 1
        return self.latents.encode(scaled) if self.latents else scaled


def _condition(
    config: DiffusionConfig, tokenizer: Tokenizer, enlarge: int
) -> ConditionEncoder | HeadCondition:
    network = tokenizer.network
    sizes = network.features, network.quantizer.dim, tokenizer.cells
    if isinstance(config.condition, ConditionConfig):
        return ConditionEncoder(config.condition, *sizes, enlarge)
    return HeadCondition(config.condition, *sizes)


def save_diffusion(
    folder: Path, model: DiffusionDecoder, tokenizer: str, *, half: bool = True, overwrite: bool = False
) -> None:
    """Write a model folder whose `denoiser`, `autoencoder` and `scheduler` are plain diffusers folders.

    `half` stores the weights in fp16, parts with values beyond its range in fp32; `tokenizer` is the
    fingerprint of whose codes are decoded. ValueError for weights that are no finite numbers.
    """
    from safetensors.torch import save_file

    config = model.config
    parts.check_finite(model, str(folder))
    with whole_folder(folder, overwrite, _belongs) as temp:
        _save_part(model.denoiser.network, temp / DENOISER, half)
        if isinstance(model.latents, parts.Latents):
            _save_part(model.latents.autoencoder, temp / AUTOENCODER, half)
        if config.sampling.scheduler is not None:
            build_scheduler(config.sampling.scheduler, config.noise).save_pretrained(temp / SCHEDULER)
        (temp / CONFIG).write_text(to_yaml(folder_document(temp, config, tokenizer)), encoding="utf-8")
        weights = {
            name: (tensor.to(storage_dtype([tensor], torch.float16)) if half else tensor)
            .detach()
            .cpu()
            .contiguous()
            for name, tensor in model.condition.state_dict().items()
        }
        save_file(weights, temp / WEIGHTS)


def folder_document(folder: Path, config: DiffusionConfig, tokenizer: str) -> dict[str, Any]:
    """What `config.yaml` of a model folder says, when its parts are written."""
    subfolders = [DENOISER, *([AUTOENCODER] if isinstance(config.autoencoder, AutoencoderConfig) else [])]
    return {
        "part": "decoder",
        "kind": "diffusion",
        "format": 1,
        "tokenizer": tokenizer,
        "sha256": {name: _digest(folder / name) for name in subfolders},
        "model": _at_home(config, None).model_dump(mode="json"),
    }


def load_diffusion(folder: Path, tokenizer: Tokenizer) -> DiffusionDecoder:
    """Read what `save_diffusion` wrote; ValueError when it is damaged or for another tokenizer's codes."""
    stored = read_model_folder(folder)
    part, kind = stored.config.get("part"), stored.config.get("kind")
    if (part, kind) != ("decoder", "diffusion"):
        raise ValueError(
            f"{folder}: a diffusion decoder was asked for, this folder holds part {part!r}, kind {kind!r}"
        )
    need(stored.config, ("tokenizer", "sha256", "model"), folder)
    if stored.config["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(
            f"{folder}: decodes tokens of {stored.config['tokenizer']}, not of {tokenizer.fingerprint}"
        )
    config = parse(DiffusionConfig, stored.config["model"], str(folder))
    has_autoencoder = isinstance(config.autoencoder, AutoencoderConfig)
    for name in (DENOISER, *([AUTOENCODER] if has_autoencoder else [])):
        if stored.config["sha256"].get(name) != _digest(folder / name):
            raise ValueError(f"{folder / name}: not the files this folder was written with; copy it again")
    with sized_like(folder, str(folder)):
        model = DiffusionDecoder(_at_home(config, folder), tokenizer)
    load_strictly(model.condition, stored.tensors, str(folder))
    parts.check_finite(model, str(folder))
    return model


def _belongs(name: str) -> bool:
    return name in (CONFIG, WEIGHTS, DENOISER, AUTOENCODER, SCHEDULER)


def _at_home(config: DiffusionConfig, folder: Path | None) -> DiffusionConfig:
    """The config with its parts in a model folder, or without a place."""
    changes: dict[str, Any] = {
        "denoiser": config.denoiser.model_copy(update={"folder": str(folder / DENOISER) if folder else None})
    }
    if isinstance(config.autoencoder, AutoencoderConfig):
        place = str(folder / AUTOENCODER) if folder else AUTOENCODER
        changes["autoencoder"] = config.autoencoder.model_copy(update={"folder": place})
    return config.model_copy(update=changes)


def _save_part(network: Any, folder: Path, half: bool) -> None:
    plain = copy.deepcopy(network).to("cpu")
    if half:
        # not its own `to`, which warns of modules to be kept in float32 where it has none
        torch.nn.Module.to(plain, storage_dtype(plain.parameters(), torch.float16))
    plain.register_to_config(_name_or_path="")  # where it was read from, which another machine has not
    plain.save_pretrained(folder, safe_serialization=True)


def _digest(folder: Path) -> str:
    """sha256 over the names and bytes of a part's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_file():
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()
