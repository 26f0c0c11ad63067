"""Residual convolutions and self-attention on the grid: the tokenizer's own encoder and the reconstructor.

Dense 3 x 3 convolutions are what processors do fastest: bf16 units run them ten times as fast as depthwise
ones (docs/log.md).

Legend: B images, S side in pixels, G x G = N cells, P side of a cell in pixels, D width, C code dimension.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pictish.tokenizer.attention import Attention, mlp
from pictish.tokenizer.config import ConvEncoderConfig, GridReconstructorConfig

DETAILS = 8  # channels beside the colours of every pixel


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity; the second starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for tensor in self.second.parameters():
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, G, G) to the same shape."""
        return x + self.second(F.silu(self.first(self.norm(x))))


class AttentionBlock(nn.Module):
    """Self-attention among all cells, and an MLP."""

    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.attention = Attention(width, heads)
        self.mlp = mlp(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, G, G) to the same shape."""
        rows = to_rows(x)
        normed = self.norms[0](rows)
        rows = rows + self.attention(normed, normed)
        return to_map(rows + self.mlp(self.norms[1](rows)), x.shape[-1])


class ConvEncoder(nn.Module):
    """Images to a row for each cell; trained with the tokenizer."""

    def __init__(self, config: ConvEncoderConfig, width: int):
        super().__init__()
        self.config = config
        self.cells = config.grid**2
        self.features = width
        patch = config.image_size // config.grid
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.Sequential(*[ConvBlock(width) for _ in range(config.blocks)])

    def forward(self, pixels: Tensor) -> Tensor:
        """Rows (B, N, D) of uint8 `pixels` (B, S, S, 3)."""
        return to_rows(self.blocks(self.embed(as_maps(pixels, self.embed.weight.dtype) * 2 - 1)))


class GridReconstructor(nn.Module):
    """Codes at their cells to pixels. A learned vector stands on the cells whose patch was dropped."""

    def __init__(
        self, config: GridReconstructorConfig, grid: int, code_dim: int, width: int, ratio: float, heads: int
    ):
        super().__init__()
        self.grid, self.patch = grid, config.patch
        self.project_in = nn.Linear(code_dim, width)
        self.dropped = nn.Parameter(torch.randn(width) * 0.02)
        self.position = nn.Parameter(torch.randn(grid**2, width) * 0.02)
        every = config.blocks // config.attention if config.attention else config.blocks + 1
        blocks: list[nn.Module] = []
        for number in range(1, config.blocks + 1):
            blocks.append(ConvBlock(width))
            if number % every == 0 and number // every <= config.attention:
                blocks.append(AttentionBlock(width, config.heads or heads, ratio))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, 3 * config.patch**2)
        self.to_details = nn.Linear(width, DETAILS * config.patch**2)
        self.refine = nn.Sequential(
            nn.Conv2d(3 + DETAILS, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1)
        )
        for tensor in self.refine[-1].parameters():
            nn.init.zeros_(tensor)

    @property
    def side(self) -> int:
        """Of the reconstructed image, in pixels."""
        return self.grid * self.patch

    def forward(self, codes: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, N, D) and images (B, 3, S, S), about in [0, 1], from `codes` (B, N, C) at their cells.

        Of cells that are not `kept` (B, N) bool the codes are not read.
        """
        x = torch.where(kept[..., None], self.project_in(codes), self.dropped) + self.position
        rows = self.norm(to_rows(self.blocks(to_map(x, self.grid))))
        pixels, details = (
            rearrange(to(rows), "b (y x) (p q c) -> b c (y p) (x q)", y=self.grid, p=self.patch, q=self.patch)
            for to in (self.to_pixels, self.to_details)
        )
        # cells alone leave seams; these convolutions look across
        return rows, pixels + self.refine(torch.cat([pixels, details], dim=1)) + 0.5


def as_maps(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 3, S, S) in [0, 1], laid out channels last, of uint8 `pixels` (B, S, S, 3)."""
    return pixels.permute(0, 3, 1, 2).to(dtype) / 255


def cell_errors(pictures: Tensor, originals: Tensor, grid: int) -> Tensor:
    """Mean squared error of each cell (B, N), of (B, 3, S, S) twice."""
    errors = (pictures.float() - originals.float()).square().mean(dim=1)  # (B, S, S)
    return F.adaptive_avg_pool2d(errors[:, None], grid).flatten(1)


def to_rows(x: Tensor) -> Tensor:
    """(B, D, G, G) to (B, N, D); no copy where the map is laid out channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(rows: Tensor, grid: int) -> Tensor:
    """(B, N, D) to (B, D, G, G), laid out channels last."""
    return rows.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
