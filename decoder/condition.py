"""Conditioning of a denoiser: maps concatenated to the image, and a sequence for its cross-attention.

Legend: B images, N = grid x grid cells, F feature channels, C code dimension, D width of
the sequence, L its length, H x W the denoiser's own map.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pictish.decoder.config import ConditionConfig, HeadsConfig
from pictish.tokenizer.dynamic import Tokenizer
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup


class Conditioning(NamedTuple):
    """What the decoder is conditioned on, for B images."""

    features: Tensor | None  # (B, N, F) of the tokenizer's reconstructor, standardised, where they are read
    codes: Tensor  # (B, N, C) code vectors at their cells, or in their order where cells are not known
    real: Tensor  # (B, N) bool: where there are any
    pixels: Tensor | None  # (B, 3, s, s) in [0, 1]: those among the features, where there are any

    def each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same with every tensor changed."""
        features = None if self.features is None else change(self.features)
        pixels = None if self.pixels is None else change(self.pixels)
        return Conditioning(features, change(self.codes), change(self.real), pixels)


def conditioning_on(features: Tensor, tokenizer: Tokenizer) -> Conditioning:
    """Conditions of features (B, N, F) alone, with no codes behind them: `check_reads_features` says when."""
    count, cells, _ = features.shape
    codes = features.new_zeros(count, cells, tokenizer.network.quantizer.dim)
    real = torch.zeros(count, cells, dtype=torch.bool, device=features.device)
    return Conditioning(features, codes, real, tokenizer.pixels_in(features))


def check_reads_features(condition: ConditionConfig | HeadsConfig) -> None:
    """ValueError for a decoder that reads codes, and not the tokenizer's features alone."""
    own = isinstance(condition, HeadsConfig) and condition.trunk is not None
    if own or "codes" in condition.sequence:
        raise ValueError(
            "decoder: it reads codes; one that reads the tokenizer's features alone (condition.sequence: "
            "[features] or []) would fit"
        )


class EncodedConditions(NamedTuple):
    """What the denoiser reads."""

    maps: Tensor | None  # (B, channels, H, W)
    sequence: Tensor | None  # (B, L, D)
    real: Tensor | None  # (B, L) bool
    pooled: Tensor | None  # (B, P)


class ConditionEncoder(nn.Module):
    """Learned projections of codes and features, and the null condition that guidance starts from."""

    def __init__(self, config: ConditionConfig, features: int, code: int, cells: int, enlarge: int):
        """`enlarge` is the side of a cell in the denoiser's map."""
        super().__init__()
        self.config, self.enlarge = config, enlarge
        self.grid = round(cells**0.5)
        if config.channels:
            self.to_maps = nn.Linear(features, config.channels * enlarge**2)
            self.no_maps = nn.Parameter(torch.zeros(config.channels, 1, 1))
        if "features" in config.sequence:
            self.from_features = nn.Linear(features, config.width)
            self.cells = nn.Parameter(torch.randn(cells, config.width) * 0.02)
        if "codes" in config.sequence:
            self.from_codes = nn.Linear(code, config.width)
            self.order = nn.Parameter(torch.randn(cells, config.width) * 0.02)
        if config.sequence:
            self.norm = nn.LayerNorm(config.width)
            self.nothing = nn.Parameter(torch.randn(config.width) * 0.02)
        if config.pooled:
            self.to_pooled = nn.Linear(features, config.pooled)
            self.no_pooled = nn.Parameter(torch.zeros(config.pooled))

    def forward(
        self, conditioning: Conditioning, drop: Tensor, size: tuple[int, int] | None = None
    ) -> EncodedConditions:
        """Conditions of images, the null condition where `drop` (B,) bool.

        `size` is the denoiser's map (H, W) where it is not the square it was trained on.
        """
        assert conditioning.features is not None
        rows, real, maps, pooled = None, None, None, None
        if self.config.sequence:
            rows, real = self._sequence(conditioning)
            first = torch.zeros_like(real)
            first[:, 0] = True  # attention must see something: the null condition is one row
            rows = torch.where((drop[:, None] & first)[..., None], self.nothing.to(rows.dtype), rows)
            real = torch.where(drop[:, None], first, real)
        if self.config.channels:
            maps = rearrange(
                self.to_maps(conditioning.features),
                "b (y x) (c p q) -> b c (y p) (x q)",
                y=self.grid,
                p=self.enlarge,
                q=self.enlarge,
            )
            if size is not None and size != maps.shape[-2:]:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            maps = torch.where(drop[:, None, None, None], self.no_maps.to(maps.dtype), maps)
        if self.config.pooled:
            pooled = self.to_pooled(conditioning.features.mean(dim=1))
            pooled = torch.where(drop[:, None], self.no_pooled.to(pooled.dtype), pooled)
        return EncodedConditions(maps, rows, real, pooled)

    def _sequence(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Rows (B, L, D), and which are real (B, L)."""
        assert conditioning.features is not None
        rows, real = [], []
        if "features" in self.config.sequence:
            rows.append(self.from_features(conditioning.features) + self.cells)
            real.append(torch.ones_like(conditioning.features[..., 0], dtype=torch.bool))
        if "codes" in self.config.sequence:
            rows.append(self.from_codes(conditioning.codes) + self.order[: conditioning.codes.shape[1]])
            real.append(conditioning.real)
        return self.norm(torch.cat(rows, dim=1)), torch.cat(real, dim=1)


def hide(
    pictures: Tensor,
    generator: torch.Generator,
    rate: float,
    grid: int,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """A source for training: images (B, C, H, W) with cells hidden, and where they are seen (B, 1, H, W).

    A part `rate` of the images show some of their cells at random, the others nothing. An edit sees what is
    to stay: the cells where the codes of source and target agree. `pictures` may be one process's rows.
    """
    count, _, height, width = pictures.shape
    shown = process_group.drawn(torch.rand, (count,), generator) < rate
    part = process_group.drawn(torch.rand, (count, 1, 1), generator)
    seen = (process_group.drawn(torch.rand, (count, grid, grid), generator) < part) & shown[:, None, None]
    mask = repeat(seen.to(pictures), "b y x -> b 1 (y p) (x q)", p=height // grid, q=width // grid)
    return pictures * mask, mask
