"""Codes back to the encoder's features: learned queries, one a grid cell, attend to the codes in their order.

The codes' cells are never seen: a generated image has none. Position travels inside the codes.

Legend: B images, N cells, K codes (padded), C code dimension, D width, F feature channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pictish.tokenizer.attention import Attention, mlp


class ReconstructorBlock(nn.Module):
    """Self-attention over the grid, cross-attention to the codes, MLP."""

    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attend_grid = Attention(width, heads)
        self.attend_codes = Attention(width, heads)
        self.mlp = mlp(width, ratio)

    def forward(self, x: Tensor, codes: Tensor, real: Tensor) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.attend_grid(normed, normed)
        x = x + self.attend_codes(self.norms[1](x), codes, real)
        return x + self.mlp(self.norms[2](x))


class Reconstructor(nn.Module):
    """Code vectors to features of every grid cell."""

    def __init__(
        self,
        cells: int,
        code_dim: int,
        features: int,
        width: int,
        heads: int,
        ratio: float,
        layers: int,
        form: Literal["pictish", "lavit"] = "pictish",
    ):
        """`form` is that of `ReconstructorConfig`."""
        super().__init__()
        self.project_in = nn.Linear(code_dim, width)
        self.order = nn.Parameter(torch.randn(cells, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(cells, width) * 0.02)
        self.norm_codes = nn.LayerNorm(width) if form == "pictish" else nn.Identity()
        self.blocks = nn.ModuleList([ReconstructorBlock(width, heads, ratio) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.project_out: nn.Module = nn.Linear(width, features)
        if form == "lavit":
            self.project_out = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, features))

    def forward(self, codes: Tensor, real: Tensor) -> Tensor:
        """Features (B, N, F) from `codes` (B, K, C), of which `real` (B, K) bool are not padding."""
        return self._run(self.project_in(codes) + self.order[: codes.shape[1]], real[:, None, None, :])

    def _run(self, codes: Tensor, real: Tensor) -> Tensor:
        codes = self.norm_codes(codes)
        x = self.queries.expand(len(codes), -1, -1)
        for block in self.blocks:
            x = block(x, codes, real)
        return self.project_out(self.norm(x))
