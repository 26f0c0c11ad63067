"""The merger: kept tokens look back at each other and take in what was dropped (arXiv 2309.04669, section
3.1).

One set of weights in two forms. `forward` is dense: all N rows are queries, which the selector needs to learn
about patches it dropped. `gathered` runs kept rows alone; on those rows both give the same numbers.

In the mode `exact` masks are those of LaVIT's released weights, through which every row of every block leaks
into all others (`leaky_attention`): all rows must then run, but for the last block. Running such weights in
the mode `gather` is an approximation.

Legend: B images, N cells, K kept (padded), D width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pictish.tokenizer.attention import Attention, mlp
from pictish.tokenizer.parallel import BUCKET

ROWS = 256  # of an MLP at a time


class MergerBlock(nn.Module):
    """Causal self-attention among kept tokens, cross-attention to dropped ones, MLP."""

    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attend_kept = Attention(width, heads)
        self.attend_dropped = Attention(width, heads)
        self.mlp = mlp(width, ratio)
        # A token starts as its own patch alone and learns to take in others: were it an empty vessel from the
        # start, it would not matter which patches are kept, and the selector would have nothing to learn.
        nn.init.zeros_(self.attend_dropped.out.weight)
        nn.init.zeros_(self.attend_dropped.out.bias)

    def leaky(
        self, x: Tensor, causal: Tensor, origin: Tensor, dropped: Tensor, rows: Tensor | None
    ) -> Tensor:
        """All of `x` (B, N, D), or its `rows` (B, K) alone, by LaVIT's masks.

        `causal` (B, 1, N or K, N) is about the rows of `x`, `dropped` (B, 1, 1, A) about the first A of
        `origin` (B, N, D).
        """
        keys = queries = self.norms[0](x)
        if rows is not None:
            queries, x = _take(queries, rows), _take(x, rows)
        x = x + self.attend_kept.leaky(queries, keys, causal)
        x = x + self.attend_dropped.leaky(self.norms[1](x), origin, dropped)
        parts = (
            self.norms[2](x).flatten(0, 1).split(ROWS)
        )  # its wide inside would be the largest tensor of all
        return x + torch.cat([self.mlp(part) for part in parts]).view(x.shape)

    def forward(self, x: Tensor, causal: Tensor, origin: Tensor, dropped: Tensor) -> Tensor:
        """`x` (B, Q, D) over itself by `causal` (B, 1, Q, Q), over `origin` by `dropped` (B, 1, Q, N)."""
        normed = self.norms[0](x)
        x = x + self.attend_kept(normed, normed, causal)
        # A row that nothing dropped reaches is given every key, and what it finds is taken out again.
        reached = dropped.any(dim=-1, keepdim=True)  # (B, 1, Q, 1)
        x = x + self.attend_dropped(self.norms[1](x), origin, dropped | ~reached) * reached[:, 0]
        return x + self.mlp(self.norms[2](x))


class Merger(nn.Module):
    """Blocks and a final norm."""

    def __init__(
        self,
        width: int,
        heads: int,
        ratio: float,
        layers: int,
        mode: Literal["gather", "exact"] = "gather",
    ):
        super().__init__()
        self.mode = mode
        self.norm_origin = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([MergerBlock(width, heads, ratio) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """All rows (B, N, D), each as if it were kept; `keep` (B, N) bool says which are.

        A row sees kept rows before it, itself, and what was dropped but itself: a dropped row's result is the
        token it would have become, which is what the selector's gradient must judge.
        """
        if self.mode == "exact":
            return self._leak(hidden, keep, None)
        count = hidden.shape[1]
        lower = torch.ones(count, count, dtype=torch.bool, device=hidden.device).tril()
        itself = torch.eye(count, dtype=torch.bool, device=hidden.device)
        causal = (keep[:, None, :] & lower | itself)[:, None]  # (B, 1, N, N)
        return self._run(hidden, causal, hidden, (~keep[:, None, :] & ~itself)[:, None])

    def gathered(self, hidden: Tensor, keep: Tensor, rows: Tensor, real: Tensor) -> Tensor:
        """Kept rows alone (B, K, D): their cells `rows` (B, K) in raster order; padding is not `real`."""
        if self.mode == "exact":
            return self._leak(hidden, keep, rows)
        x = _take(hidden, rows)
        length = rows.shape[1]
        lower = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=hidden.device)
        causal = (real[:, None, :] & lower | itself)[:, None]  # (B, 1, K, K)
        cells, gone = dropped_rows(keep)
        return self._run(x, causal, _take(hidden, cells), gone[:, None, None, :].expand(-1, -1, length, -1))

    def _leak(self, hidden: Tensor, keep: Tensor, rows: Tensor | None) -> Tensor:
        """LaVIT's released computation: all rows (B, N, D), or `rows` (B, K) of the result."""
        count = hidden.shape[1]
        lower = torch.ones(count, count, dtype=torch.bool, device=hidden.device).tril()
        itself = torch.eye(count, dtype=torch.bool, device=hidden.device)
        causal = keep[:, None, :] & lower | itself  # (B, N, N)
        dropped_first = keep.to(torch.int8).argsort(dim=1, stable=True)
        _, gone = dropped_rows(keep)
        origin = self.norm_origin(_take(hidden, dropped_first))
        dropped = gone[:, None, None, :]  # (B, 1, 1, A)
        x = hidden
        *first, last = self._each()
        for block in first:
            x = block.leaky(x, causal[:, None], origin, dropped, None)
        if rows is not None:
            causal = _take(causal, rows)
        return self.norm(last.leaky(x, causal[:, None], origin, dropped, rows))

    def _each(self) -> "list[MergerBlock]":
        return [block for block in self.blocks if isinstance(block, MergerBlock)]

    def _run(self, x: Tensor, causal: Tensor, hidden: Tensor, dropped: Tensor) -> Tensor:
        origin = self.norm_origin(hidden)
        for block in self.blocks:
            x = block(x, causal, origin, dropped)
        return self.norm(x)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """`rows` (B, K) of `x` (B, N, D)."""
    return torch.take_along_dim(x, rows[..., None], dim=1)


def dropped_rows(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Dropped cells (B, A) of `keep` (B, N) in raster order, padded with kept ones; which are real.

    A is the same for all images whose kept rows are padded to one bucket, so that an image's shapes depend
    on it alone.
    """
    least = int(keep.sum(dim=1).min())
    count = keep.shape[1] - (max(least, 1) - 1) // BUCKET * BUCKET
    order = keep.to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    return order, ~torch.gather(keep, 1, order)


def kept_rows(keep: Tensor, bucket: int) -> tuple[Tensor, Tensor]:
    """Kept cells (B, bucket) of `keep` (B, N) in raster order, padded with dropped ones; which are real."""
    order = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :bucket]
    return order, torch.gather(keep, 1, order)
