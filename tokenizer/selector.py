"""Which patches to keep: scores, the straight-through draw of training, and the deterministic choice of
inference.

After LaVIT (arXiv 2309.04669, section 3.1), whose released code also draws at inference, so that the same
picture gets other tokens each time; here a draw must be asked for, and brings its generator.

Legend: B pictures, N cells, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Selector(nn.Module):
    """Scores each patch from its own features and the mean over the picture."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * half), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(2 * half, half),
            nn.GELU(),
            nn.Linear(half, half // 2),
            nn.GELU(),
            nn.Linear(half // 2, 1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (B, N) of keeping each patch of `hidden` (B, N, D)."""
        own, shared = self.project(hidden).chunk(2, dim=-1)
        shared = shared.mean(dim=1, keepdim=True).expand_as(own)
        return self.score(torch.cat([own, shared], dim=-1)).squeeze(-1)


class Draw(NamedTuple):
    """A training draw: `gate` (B, N) of zeros and ones; `free` (B,) False where the length was set."""

    gate: Tensor
    free: Tensor


def draw_gate(logits: Tensor, temperature: float, random_budget: float, generator: torch.Generator) -> Draw:
    """Draw a keep gate by straight-through Gumbel-softmax from `logits` (B, N).

    The two-class Gumbel-softmax is a sigmoid of logit plus logistic noise. For a share `random_budget` of the
    pictures the N best by noisy score are kept instead, N drawn log-uniformly, so that `--budget` works at
    any N; these do not count for the keep rate. At least one patch is kept.
    """
    count = logits.shape[1]
    uniform = torch.rand(logits.shape, generator=generator).to(logits.device).clamp(1e-6, 1 - 1e-6)
    rows = torch.rand((2, len(logits), 1), generator=generator).to(logits.device)
    noisy = logits.float() + torch.logit(uniform)
    relaxed = torch.sigmoid(noisy / temperature)
    rank = _rank(noisy.detach())
    budget = (count ** rows[0]).round().clamp(1, count)
    free = rows[1] >= random_budget  # (B, 1)
    keep = torch.where(free, noisy > 0, rank < budget) | (rank == 0)
    return Draw(keep.to(relaxed.dtype) + (relaxed - relaxed.detach()), free.squeeze(1))


def choose(
    logits: Tensor,
    *,
    threshold: float = 0.5,
    budget: int | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """The keep mask (B, N) of inference: by `threshold` on the keep probability, exactly the `budget` best,
    or drawn.

    Ties go to the earlier cell. A draw uses one generator a picture, so that a picture's mask does not depend
    on its batch. At least one patch is kept.
    """
    if budget is not None:
        if not 1 <= budget <= logits.shape[1]:
            raise ValueError(
                f"budget {budget} asked for; a picture of this model has 1 to {logits.shape[1]} tokens"
            )
        return _rank(logits) < budget
    if generators is not None:
        assert len(generators) == len(logits), (len(generators), len(logits))
        drawn = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators]).to(logits.device)
        keep = drawn < torch.sigmoid(logits)
    else:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold} asked for; a keep probability lies between 0 and 1")
        keep = torch.sigmoid(logits) > threshold
    return keep | (_rank(logits) == 0)


def _rank(scores: Tensor) -> Tensor:
    """The place (B, N) of each cell among its picture's scores, best 0; equal scores in raster order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
