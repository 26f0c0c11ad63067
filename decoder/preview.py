"""The preview: codes to a small image in one forward, no sampling.

A tokenizer that places its codes reconstructs pixels itself, and a head is not needed.

Legend: B images, N = grid x grid cells, F feature channels, C channels, S side of the image in pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pictish.configs import parse
from pictish.data.tokens import TokenizedImage
from pictish.decoder.config import PreviewConfig
from pictish.io.budget import sized_like
from pictish.io.model_folder import (
    find_decoder,
    load_strictly,
    need,
    read_model_folder,
    storage_dtype,
    write_model_folder,
)
from pictish.tokenizer.dynamic import Tokenizer
from pictish.training.isolation import inference, loading


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        groups = min(8, channels)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PreviewHead(nn.Module):
    """Corrects the pixels that the reconstructor predicts as part of the features.

    The side doubles from the grid to the image's, each time by a convolution and a pixel shuffle, the last
    time straight into colours: at full side blocks would cost most and codes have nothing to say. The last
    convolution starts at zero, so that training starts from the reconstructor's own pixels.
    """

    def __init__(self, config: PreviewConfig, features: int, grid: int, side: int):
        super().__init__()
        doublings = (side // grid).bit_length() - 1
        if doublings < 1 or grid << doublings != side:
            raise ValueError(
                f"preview: a cell must have 2, 4, 8, ... pixels a side for a preview, not {side // grid}"
            )
        self.grid = grid
        self.enter = nn.Conv2d(features, config.width, 1)
        stages: list[nn.Module] = []
        channels = config.width
        for doubling in range(doublings):
            if doubling:
                narrower = max(channels // 2, config.smallest)
                stages += [nn.Conv2d(channels, 4 * narrower, 1), nn.PixelShuffle(2)]
                channels = narrower
            stages += [ResidualBlock(channels) for _ in range(config.blocks)]
        self.stages = nn.Sequential(*stages)
        last = nn.Conv2d(channels, 3 * 4, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.leave = nn.Sequential(last, nn.PixelShuffle(2))

    def forward(self, predicted: Tensor, pixels: Tensor) -> Tensor:
        """RGB (B, 3, S, S), unclamped, from features (B, N, F) and the image (B, 3, S, S) they contain."""
        x = rearrange(predicted, "b (y x) f -> b f y x", y=self.grid)
        return pixels + self.leave(self.stages(self.enter(x)))


class Preview:
    """The tokenizer's reconstructed images, corrected by a trained head where there is one."""

    def __init__(self, head: PreviewHead | None, tokenizer: Tokenizer, device: str | torch.device = "cpu"):
        self.head = None if head is None else head.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        side = tokenizer.network.pixel_side
        assert side is not None, "this tokenizer reconstructs no pixels"
        self.side = side

    @classmethod
    @loading
    def from_folder(
        cls, folder: str | Path, tokenizer: Tokenizer, device: str | torch.device = "cpu"
    ) -> "Preview":
        """Load a model folder, or the shipped `"starter"`; ValueError when it fits another tokenizer."""
        path = find_decoder(folder, "preview")
        if path is None and tokenizer.places_codes:
            return cls(None, tokenizer, device)
        if path is None:
            raise ValueError(f"{folder}: a preview decoder was asked for, and it holds none")
        stored = read_model_folder(path)
        need(stored.config, ("tokenizer", "model"), path)
        if stored.config["tokenizer"] != tokenizer.fingerprint:
            raise ValueError(
                f"{folder}: decodes tokens of {stored.config['tokenizer']}, not of {tokenizer.fingerprint}"
            )
        with sized_like(path, str(path)):
            head = build_preview(parse(PreviewConfig, stored.config["model"], str(folder)), tokenizer)
        load_strictly(head, stored.tensors, str(folder))
        return cls(head, tokenizer, device)

    @inference
    def decode(self, tokens: Sequence[TokenizedImage]) -> Tensor:
        """Images as uint8 (B, S, S, 3), squashed to a square as the tokenizer saw them.

        Same codes, same image, whatever else is in the batch. Raises ValueError for another tokenizer's
        tokens.
        """
        if not tokens:
            return torch.empty(0, self.side, self.side, 3, dtype=torch.uint8)
        predicted = self.tokenizer.reconstruct(tokens).to(self.device)
        size = self.tokenizer.micro_batch
        pictures = []
        for group in predicted.split(size):
            padded = F.pad(group, (0, 0, 0, 0, 0, size - len(group)))  # with blanks
            pixels = self.tokenizer.pixels_in(padded)
            assert pixels is not None
            pictures.append((pixels if self.head is None else self.head(padded, pixels))[: len(group)])
        rgb = torch.cat(pictures).clamp(0, 1) * 255
        return rearrange(rgb.round().to(torch.uint8), "b c h w -> b h w c").cpu()


def build_preview(config: PreviewConfig, tokenizer: Tokenizer) -> PreviewHead:
    """An untrained head that fits `tokenizer`; ValueError when its features hold no pixels."""
    side = tokenizer.network.pixel_side
    if side is None:
        raise ValueError("preview: the tokenizer's features hold no pixels, as those of LaVIT")
    return PreviewHead(config, tokenizer.network.features, tokenizer.grid[0], side)


def save_preview(
    folder: Path, head: PreviewHead, config: PreviewConfig, tokenizer: str, *, overwrite: bool = False
) -> None:
    """Write a model folder in fp16, tensors beyond its range in fp32.

    `tokenizer` is the fingerprint of the weights whose codes it decodes.
    """
    tensors = {
        name: tensor.to(storage_dtype([tensor], torch.float16)) for name, tensor in head.state_dict().items()
    }
    document = {"part": "decoder", "kind": "preview", "format": 1, "tokenizer": tokenizer}
    write_model_folder(
        folder, {**document, "model": config.model_dump(mode="json")}, tensors, overwrite=overwrite
    )
