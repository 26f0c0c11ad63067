"""Attention over a subset of tokens, exact, through PyTorch's fused kernel; and its form that trains the
selector.

Legend: B pictures, H heads, Q queries, K keys, D width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of `x` over `context`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor, allowed: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """Attend from `x` (B, Q, D) to `context` (B, K, D).

        `allowed` (B, 1, Q or 1, K) bool says who may see whom; every query must see at least one key. `gate`
        (B, K) of zeros and ones does the same for whole keys and passes a gradient to the gate of every key,
        closed ones included.
        """
        q = rearrange(self.query(x), "b q (h d) -> b h q d", h=self.heads)
        k, v = rearrange(self.key_value(context), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        if gate is not None:
            mixed = gated_attention(q, k, v, gate)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out(rearrange(mixed, "b h q d -> b q (h d)"))


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """Softmax attention over the keys whose gate is 1, differentiable in the gate.

    The weight of key j is g_j e_j / sum_k g_k e_k. Its derivative in g_j is (e_j / Z)(v_j - output): not zero
    at g_j = 0, so the selector also learns what keeping a dropped patch would have done. A mask inside the
    fused kernel, or a gather, gives that patch no gradient at all.

    q (B, H, Q, d), k and v (B, H, K, d), gate (B, K) with at least one 1 a row; returns (B, H, Q, d).
    """
    gate = gate[:, None, None, :]
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, Q, K)
    peak = logits.detach().masked_fill(gate.detach() == 0, -torch.inf).amax(-1, keepdim=True)
    # The clamp touches closed keys alone (open ones are <= 0 here); it bounds the gradient of a very sharp
    # one.
    weights = (logits - peak).clamp(max=2.0).exp() * gate
    return (weights / weights.sum(-1, keepdim=True)) @ v


def mlp(width: int, ratio: float) -> nn.Sequential:
    """The two-layer GELU network of a transformer block."""
    hidden = int(width * ratio)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
