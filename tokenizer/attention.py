"""Attention over a subset of tokens: exact, through PyTorch's fused kernel, and LaVIT's, whose masks leak.

Legend: B images, H heads, Q queries, K keys, D width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LEAK = 1e-6  # what LaVIT adds to the sum of a row's weights, spread over all keys
_LOGITS = 1 << 18  # at most this many numbers at a time


class Attention(nn.Module):
    """Multi-head attention of `x` over `context`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend from `x` (B, Q, D) to `context` (B, K, D).

        `allowed` (B, 1, Q or 1, K) bool says who may see whom; every query must see at least one key.
        """
        q = rearrange(self.query(x), "b q (h d) -> b h q d", h=self.heads)
        k, v = rearrange(self.key_value(context), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out(rearrange(mixed, "b h q d -> b q (h d)"))

    def leaky(self, x: Tensor, context: Tensor, allowed: Tensor) -> Tensor:
        """The same with LaVIT's masks (`leaky_attention`), of which a row may be empty.

        `allowed` (B, 1, Q or 1, A) bool is about the first A rows of `context` (B, K, D); none of the others
        may be seen, so of these no values are computed.
        """
        split = "b n (h d) -> b h n d"
        weights, biases = self.key_value.weight.chunk(2), self.key_value.bias.chunk(2)
        seen, mean = context[:, : allowed.shape[-1]], context.mean(1, keepdim=True)
        q = rearrange(self.query(x), split, h=self.heads)
        k = rearrange(F.linear(context, weights[0], biases[0]), split, h=self.heads)
        v, centre = (rearrange(F.linear(c, weights[1], biases[1]), split, h=self.heads) for c in (seen, mean))
        return self.out(rearrange(leaky_attention(q, k, v, centre, allowed), "b h q d -> b q (h d)"))


def leaky_attention(q: Tensor, k: Tensor, v: Tensor, centre: Tensor, allowed: Tensor) -> Tensor:
    """The masked softmax of LaVIT's released merger, which gives every key a little weight.

    With s the logits of a row, M the largest over ALL N keys and e_j = exp(s_j - M) where j is allowed, else
    0, the weight of each of the N keys is (e_j + LEAK/N) / (sum e + LEAK). That is a plain softmax with one
    more key, of logit M + ln LEAK and the mean of all values, which is how it is computed: where the largest
    logit is masked the leak is large, and where nothing is allowed the values' mean comes out. In float32.

    A few heads of one image at a time, so that logits stay in the cache: on a CPU that is faster than the
    fused kernel, which needs the maximum over masked keys and so needs all logits beforehand.

    q (B, H, Q, d), k (B, H, N, d), of the first A keys v (B, H, A, d) and allowed (B, 1, Q or 1, A) bool, the
    mean of the values of all keys centre (B, H, 1, d); returns (B, H, Q, d).
    """
    parts = []
    size = max(1, _LOGITS // (q.shape[2] * k.shape[2]))
    with torch.autocast(q.device.type, enabled=False):
        for picture, mask in enumerate(allowed):
            for heads in (slice(n, n + size) for n in range(0, q.shape[1], size)):
                one_q, one_k, one_v = (t[picture, heads].float() for t in (q, k, v))
                logits = one_q @ one_k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (h, Q, N)
                peak = logits.amax(-1, keepdim=True)
                weights = (logits[..., : v.shape[2]] - peak).exp() * mask  # (h, Q, A)
                leak = LEAK * centre[picture, heads].float()
                parts.append((weights @ one_v + leak) / (weights.sum(-1, keepdim=True) + LEAK))
    return torch.cat(parts).view(q.shape).to(q.dtype)


def mlp(width: int, ratio: float) -> nn.Sequential:
    """The two-layer GELU network of a transformer block."""
    hidden = int(width * ratio)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
