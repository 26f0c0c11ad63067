"""What the tokenizer is trained on (arXiv 2309.04669, equation 5).

Legend: B pictures, N cells, F feature channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity of each cell's features, averaged: (B, N, F) and (B, N, F) to a scalar."""
    return (1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)).mean()


def rate_loss(gate: Tensor, free: Tensor, rate: float) -> Tensor:
    """(mean keep rate - rate)^2 over the whole batch, so that easy pictures may give tokens to hard ones.

    `gate` (B, N); pictures whose length was not the selector's own choice (`free` (B,) False) do not count.
    """
    weights = free.float()
    mean = (gate.float().mean(dim=1) * weights).sum() / weights.sum().clamp_min(1)
    return torch.where(free.any(), (mean - rate) ** 2, mean * 0)
