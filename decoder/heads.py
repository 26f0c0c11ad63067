"""LaVIT's way from codes to a denoiser (arXiv 2309.04669): linear heads on the features that codes give back.

Written from a description of the released weights, not from LaVIT's code.

Legend: B images, N cells, K codes (padded), C code dimension, F feature channels, D width of the sequence.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pictish.decoder.condition import Conditioning, EncodedConditions
from pictish.decoder.config import HeadsConfig
from pictish.tokenizer.reconstructor import Reconstructor


class AttentionPool(nn.Module):
    """CLIP's: one attention of the mean row, set before the others, over all of them."""

    def __init__(self, rows: int, width: int, out: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(rows + 1, width) * width**-0.5)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P) of rows (B, N, F)."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions
        query, key, value = (
            rearrange(rows, "b n (h d) -> b h n d", h=self.heads)
            for rows in (self.query(x[:, :1]), self.key(x), self.value(x))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, d)
        return self.out(rearrange(pooled, "b h 1 d -> b (h d)"))


class HeadCondition(nn.Module):
    """Features to the sequence and the pooled embedding, and what stands for no codes."""

    def __init__(self, config: HeadsConfig, features: int, code: int, cells: int):
        super().__init__()
        self.config, self.cells = config, cells
        self.trunk: Reconstructor | None = None
        if config.trunk:
            sizes = (features, config.heads, config.trunk.mlp_ratio, config.trunk.layers)
            self.trunk = Reconstructor(cells, code, features, *sizes, "lavit")
        self.to_sequence = nn.Linear(features, config.width)
        self.pool: AttentionPool | None = None
        if config.pooled:
            self.pool = AttentionPool(cells, features, config.pooled, config.heads)
        if config.null:
            self.null = nn.Parameter(torch.zeros(config.null, config.width))

    def forward(
        self, conditioning: Conditioning, drop: Tensor, size: tuple[int, int] | None = None
    ) -> EncodedConditions:
        """Conditions of images, those of no codes where `drop` (B,) bool; of maps of any `size`."""
        kept = conditioning.each(lambda tensor: tensor[~drop])
        features = kept.features
        if self.trunk is not None:
            features = self.trunk(kept.codes, kept.real)
        assert features is not None
        count = len(drop)
        sequence = features.new_zeros(count, self.cells, self.config.width)
        sequence[~drop] = self.to_sequence(features)
        pooled = None
        if self.pool is not None and self.config.pooled:
            pooled = features.new_zeros(count, self.config.pooled)
            pooled[~drop] = self.pool(features)
        real = None
        if self.config.null:
            real = torch.ones(count, self.cells, dtype=torch.bool, device=drop.device)
            real[drop] = torch.arange(self.cells, device=drop.device) < self.config.null
            sequence[drop, : self.config.null] = self.null.to(sequence.dtype)
        return EncodedConditions(None, sequence, real, pooled)
