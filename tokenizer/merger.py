"""The merger: kept tokens look back at each other and take in what was dropped (arXiv 2309.04669, section
3.1).

One set of weights in two forms. `forward` is dense: all N rows are queries, which the selector needs to learn
about patches it dropped. `gathered` runs kept rows alone; on those rows both give the same numbers.

Legend: B pictures, N cells, K kept (padded), D width.
"""

import torch
from torch import Tensor, nn

from pictish.tokenizer.attention import Attention, mlp


class MergerBlock(nn.Module):
    """Causal self-attention among kept tokens, cross-attention to dropped ones, MLP."""

    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attend_kept = Attention(width, heads)
        self.attend_dropped = Attention(width, heads)
        self.mlp = mlp(width, ratio)

    def forward(
        self, x: Tensor, causal: Tensor, origin: Tensor, dropped: Tensor, any_dropped: Tensor
    ) -> Tensor:
        """`x` (B, Q, D) over itself by `causal` (B, 1, Q, Q) and over the `dropped` of `origin` (B, N, D)."""
        normed = self.norms[0](x)
        x = x + self.attend_kept(normed, normed, causal)
        # Where nothing was dropped the kernel is given some key and its result is taken out again.
        x = x + self.attend_dropped(self.norms[1](x), origin, dropped | ~any_dropped) * any_dropped[:, 0]
        return x + self.mlp(self.norms[2](x))


class Merger(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, width: int, heads: int, ratio: float, layers: int):
        super().__init__()
        self.norm_origin = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([MergerBlock(width, heads, ratio) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """All rows (B, N, D): a row sees kept rows before it and itself. `keep` is (B, N) bool."""
        count = hidden.shape[1]
        lower = torch.ones(count, count, dtype=torch.bool, device=hidden.device).tril()
        itself = torch.eye(count, dtype=torch.bool, device=hidden.device)
        causal = (keep[:, None, :] & lower | itself)[:, None]  # (B, 1, N, N)
        return self._run(hidden, causal, hidden, ~keep)

    def gathered(self, hidden: Tensor, keep: Tensor, rows: Tensor, real: Tensor) -> Tensor:
        """Kept rows alone (B, K, D): their cells `rows` (B, K) in raster order; padding is not `real`."""
        x = torch.gather(hidden, 1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
        length = rows.shape[1]
        lower = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=hidden.device)
        causal = (real[:, None, :] & lower | itself)[:, None]  # (B, 1, K, K)
        return self._run(x, causal, hidden, ~keep)

    def _run(self, x: Tensor, causal: Tensor, hidden: Tensor, dropped: Tensor) -> Tensor:
        origin = self.norm_origin(hidden)
        dropped = dropped[:, None, None, :]  # (B, 1, 1, N)
        any_dropped = dropped.any(dim=-1, keepdim=True)  # (B, 1, 1, 1)
        for block in self.blocks:
            x = block(x, causal, origin, dropped, any_dropped)
        return self.norm(x)
