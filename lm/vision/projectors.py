"""From a vision tower's features to embeddings of the language model; a config chooses by `kind`.

Legend: V views, K rows (h x w cells), F channels of the tower, D width of the language model, Q queries.
"""

import torch
from torch import Tensor, nn

from pictish.lm.vision.config import LinearProjector, MlpProjector, ProjectorConfig, ResamplerProjector


def build_projector(config: ProjectorConfig, features: int, width: int, cells: tuple[int, int]) -> nn.Module:
    """A module from (V, K, F) to (V, K, D), or to (V, Q, D) for a resampler."""
    match config:
        case LinearProjector():
            return nn.Linear(features, width)
        case MlpProjector(layers=layers):
            return mlp(features, width, layers)
        case ResamplerProjector(queries=queries, heads=heads):
            return Resampler(features, width, cells, queries, heads)


def mlp(features: int, width: int, layers: int = 2) -> nn.Sequential:
    """Linear layers with GELU between them, from (..., F) to (..., D)."""
    modules: list[nn.Module] = [nn.Linear(features, width)]
    for _ in range(layers - 1):
        modules += [nn.GELU(), nn.Linear(width, width)]
    return nn.Sequential(*modules)


def cells_behind(config: ProjectorConfig, cells: tuple[int, int]) -> tuple[int, int]:
    """The cells (h, w) of what a projector gives for a view of `cells`; a resampler's rows have no places."""
    return (1, config.queries) if isinstance(config, ResamplerProjector) else cells


class Resampler(nn.Module):
    """Learned queries attend once to a view's rows and their places (as in Qwen-VL, arXiv 2308.12966)."""

    positions: Tensor

    def __init__(self, features: int, width: int, cells: tuple[int, int], queries: int, heads: int):
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"projector: width {width} is no multiple of 4 and of its {heads} heads")
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.rows = nn.Linear(features, width, bias=False)
        self.rows_norm, self.queries_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.register_buffer("positions", sinusoids(cells, width), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(V, K, F) to (V, Q, D)."""
        values = self.rows_norm(self.rows(rows))
        queries = self.queries_norm(self.queries).expand(len(rows), -1, -1)
        attended, _ = self.attention(queries, values + self.positions, values, need_weights=False)
        return self.out(attended)


def sinusoids(cells: tuple[int, int], width: int) -> Tensor:
    """Places of cells (h x w, D) as sines and cosines: half of the channels for lines, half for columns."""
    rates = 10000 ** (-torch.arange(width // 4) / (width // 4))
    lines, columns = torch.meshgrid(*(torch.arange(n).float() for n in cells), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (lines, columns)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
