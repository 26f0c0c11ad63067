"""Diffusion decoders of tiny width for a tokenizer of 4 x 4 cells of 4 pixels, and folders to start from."""

from pathlib import Path
from typing import Any

import torch

from pictish.configs import parse
from pictish.decoder.condition import Conditioning
from pictish.decoder.config import DiffusionConfig, UpscalerConfig
from pictish.decoder.diffusion import DiffusionDecoder
from pictish.decoder.pixel import Decoder
from pictish.decoder.upscaler import CompactUpscaler
from pictish.tokenizer.config import EncoderConfig
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.encoder import Encoder
from tests.tokenizer.conftest import random_pixels

TRANSFORMER = {
    "kind": "transformer",
    "settings": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 4,
        "norm_num_groups": 4,
    },
}
WIDTHS = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
UNET = {
    "kind": "unet",
    "settings": {
        **WIDTHS,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 4,
    },
}
SDXL = {
    "kind": "unet",
    "settings": {
        **WIDTHS,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_time_embed_dim": 8,
    },
}
TEACHER = {
    "model": "test_efficientnet",
    "weights": {"kind": "random", "seed": 0},
    "image_size": 32,
    "grid": 4,
    "levels": [2, 3],
    "level_weights": [0.5, 0.5],
    "pixels": 0,
}
SCHEDULERS = {"diffusion": "DDIMScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}


def config(
    denoiser: dict[str, Any] = TRANSFORMER, *, noise: dict[str, Any] | None = None, **changes
) -> DiffusionConfig:
    """Pixel space, 16 pixels, a transformer that says x0 of a flow, unless told otherwise."""
    noise = noise or {"kind": "flow", "predicts": "x0"}
    raw = {
        "side": 16,
        "denoiser": denoiser,
        "condition": {"channels": 2, "width": 16},
        "noise": noise,
        "sampling": {"scheduler": SCHEDULERS.get(noise["kind"]), "steps": 2, "guidance": 1.5},
    }
    return parse(DiffusionConfig, raw | changes, "test")


def decoder_of(
    tokenizer: Tokenizer, settings: DiffusionConfig | None = None, seed: int = 0
) -> DiffusionDecoder:
    """Random weights, those too that start at zero: else nothing would depend on anything."""
    torch.manual_seed(seed)
    model = DiffusionDecoder(settings or config(), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)
    return model.eval()


def teacher() -> Encoder:
    """What `objective.perceptual` compares images by."""
    return Encoder(parse(EncoderConfig, TEACHER, "test")).at_all_levels()


def conditioning_of(tokenizer: Tokenizer, count: int, seed: int = 3) -> Conditioning:
    """What random features and codes of the right shape tell."""
    generator = torch.Generator().manual_seed(seed)
    network = tokenizer.network
    features = torch.randn(count, tokenizer.cells, network.features, generator=generator)
    codes = torch.randn(count, tokenizer.cells, network.quantizer.dim, generator=generator)
    lengths = torch.randint(1, tokenizer.cells, (count, 1), generator=generator)
    pixels = random_pixels(count, 16, seed).permute(0, 3, 1, 2) / 255
    return Conditioning(features, codes, torch.arange(tokenizer.cells) < lengths, pixels)


def save_autoencoder(folder: Path, kind: str) -> Path:
    """A diffusers folder with `vae`, of 4 latent channels and half the side."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    torch.manual_seed(1)
    if kind == "kl":
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
    else:
        network = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
        )
    network.save_pretrained(folder / "vae")
    return folder


def tiny_upscaler(seed: int = 0) -> CompactUpscaler:
    """Of 8 channels and one inner convolution, with random weights."""
    torch.manual_seed(seed)
    return CompactUpscaler(UpscalerConfig(width=8, layers=1)).eval()


def decode(decoder: Decoder, tokens, generators, **changes) -> torch.Tensor:
    """Images with the decoder's own settings for generated images but for `changes`."""
    own = decoder.model.config.sampling
    settings = {"steps": own.steps, "guidance": own.guidance, "scheduler": own.scheduler}
    return decoder.decode(tokens, generators, **settings | changes)
