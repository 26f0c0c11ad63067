"""Which patches to keep: scores, the straight-through draw of training, and the deterministic choice of
inference.

After LaVIT (arXiv 2309.04669, section 3.1), whose released code also draws at inference, so that the same
picture gets other tokens each time; here a draw must be asked for, and brings its generator.

Legend: B pictures, N cells, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictish.training.share import ALONE, Share

ERROR_SCALE = 10.0  # logits for an error of 1: errors of 0.05 and 0.35 differ by as much as Gumbel noise does
LEVEL_STEP = 0.05  # share of one batch in the remembered level


class Selector(nn.Module):
    """Scores each patch from its own features and the mean over the picture.

    It predicts what a patch's absence costs (`guide`), changed by the straight-through gate to what its
    presence gives. A kept patch speaks for its neighbours too: each at its edge then counts `relief` less, so
    patches are taken one after the other, the dearest first (`spread`). How many are kept is not learned: one
    `level`, added to all scores, holds the mean rate. LaVIT's penalty lambda (mean - rho)^2 had a gradient
    ten times that which tells patches apart (docs/log.md).
    """

    level: Tensor
    near: Tensor

    def __init__(self, width: int, grid: int, relief: float):
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
        self.relieves = relief > 0
        self.register_buffer("level", torch.zeros(()))
        cells = torch.arange(grid**2)
        down, right = cells // grid, cells % grid
        apart = (down[:, None] - down).abs() + (right[:, None] - right).abs()  # (N, N)
        self.register_buffer("near", relief * (apart == 1), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (B, N) of keeping each patch of `hidden` (B, N, D)."""
        return self.spread(self.costs(hidden)) + self.level

    def costs(self, hidden: Tensor) -> Tensor:
        """What dropping each patch costs (B, N), in `ERROR_SCALE` times an error."""
        own, shared = self.project(hidden).chunk(2, dim=-1)
        shared = shared.mean(dim=1, keepdim=True).expand_as(own)
        return self.score(torch.cat([own, shared], dim=-1)).squeeze(-1)

    def spread(self, cost: Tensor) -> Tensor:
        """Scores (B, N): the `cost` (B, N) of each patch less the relief by neighbours taken before it.

        They fall from one taken patch to the next, so a threshold and a number cut the same order.
        """
        if not self.relieves:
            return cost
        left = cost.detach().float()
        relief = torch.zeros_like(left)
        for _ in range(left.shape[1]):
            taken = left.argmax(dim=1)  # the first of equals
            left = left - self.near[taken]
            left.scatter_(1, taken[:, None], -torch.inf)
            relief = relief + self.near[taken] * left.isfinite()
        return cost - relief

    @torch.no_grad()
    def level_for(self, scores: Tensor, rate: float, share: Share = ALONE) -> Tensor:
        """The level at which a share `rate` of `scores` (B, N) comes out above 0, a scalar.

        Of several processes it is that of all their scores.
        """
        return -torch.quantile(share.gathered(scores.float()).flatten(), 1 - rate)

    @torch.no_grad()
    def remember(self, level: Tensor) -> None:
        """Move the level of inference towards that of a batch; called once a training step."""
        self.level.lerp_(level, LEVEL_STEP)


def guide_loss(cost: Tensor, errors: Tensor, counted: Tensor, share: Share = ALONE) -> Tensor:
    """How far costs (B, N) are from reconstruction `errors` (B, N) of the `counted` (B, N) cells, a scalar.

    Only dropped cells may be counted, and only those dropped without regard to their cost: else cells that
    are dear to drop would have no say.
    """
    misses = F.smooth_l1_loss(cost.float(), ERROR_SCALE * errors.detach().float(), reduction="none")
    return share.mean(misses, counted)


class Draw(NamedTuple):
    """A training draw: `gate` (B, N) of zeros and ones; cells (B, N) and pictures (B,), bool."""

    gate: Tensor
    free: Tensor  # pictures whose number of tokens is their own; of the rest it was set
    blind: Tensor  # cells of free pictures that a coin decided, whatever their score


def draw_gate(
    logits: Tensor,
    noise: float,
    generator: torch.Generator,
    *,
    budgets: float,
    blind: float,
    share: Share = ALONE,
) -> Draw:
    """Draw a keep gate by straight-through Gumbel-softmax from `logits` (B, N).

    The two-class Gumbel-softmax is a sigmoid of logit plus logistic noise; with `noise` 1 a patch is kept
    with its keep probability, with 0 the draw is the threshold of inference. A share `budgets` of the
    pictures keep their N best, N drawn from 1 to all and more often small, so that `--budget` works at any N.
    In the others a share `blind` of the cells falls to a coin that keeps as often as the scores do: what is
    lost where it drops is what a drop costs among neighbours chosen by score. At least one patch is kept.
    `logits` may be a process's `share` of the batch.
    """
    count = logits.shape[1]
    drawn = share.drawn(torch.rand, (3, *logits.shape), generator, dim=1)
    uniform, chance, coin = drawn.to(logits.device).clamp(1e-6, 1 - 1e-6)
    rows = share.drawn(torch.rand, (2, len(logits), 1), generator, dim=1).to(logits.device)
    noisy = logits.float() + noise * torch.logit(uniform)
    relaxed = torch.sigmoid(noisy)
    is_free = rows[1] >= budgets  # (B, 1)
    is_blind = is_free & (chance < blind)  # (B, N)
    wanted = noisy > 0
    rank = _rank(noisy.detach())
    number = (1 + (count - 1) * rows[0] ** 2).round()
    wanted_rate = share.total(wanted.float().mean()) / share.processes
    keep = torch.where(is_free, torch.where(is_blind, coin < wanted_rate, wanted), rank < number)
    keep = keep | ((rank == 0) & ~keep.any(dim=1, keepdim=True))
    # Where the number was set the gate's gradient means nothing: with one token kept, any other is worth a
    # lot. What is common to all patches belongs to the level, so the gradient is centred.
    own = is_free & ~is_blind
    mean = share.total((relaxed * own).sum()) / share.total(own.sum()).clamp_min(1)
    through = (relaxed - mean) * own
    gate = keep.to(relaxed.dtype) + (through - through.detach())
    return Draw(gate, is_free.squeeze(1), is_blind)


def choose(
    logits: Tensor,
    *,
    threshold: float = 0.5,
    budget: int | None = None,
    generators: Sequence[torch.Generator] | torch.Generator | None = None,
    as_lavit: bool = False,
) -> Tensor:
    """The keep mask (B, N) of inference: by `threshold` on the probability, the `budget` best, or drawn.

    Ties go to the earlier cell. A draw uses one generator a picture, so that a picture's mask does not depend
    on its batch. `as_lavit` draws as the released code does (`draw_as_lavit`), and may use a single generator
    for the batch. At least one patch is kept.
    """
    if budget is not None:
        if not 1 <= budget <= logits.shape[1]:
            raise ValueError(
                f"budget {budget} asked for; a picture of this model has 1 to {logits.shape[1]} tokens"
            )
        return _rank(logits) < budget
    if generators is not None and as_lavit:
        if isinstance(generators, torch.Generator):
            keep = draw_as_lavit(logits, generators)
        else:
            pairs = zip(logits.split(1), generators, strict=True)
            keep = torch.cat([draw_as_lavit(one, generator) for one, generator in pairs])
        return keep | (_rank(logits) == 0) & ~keep.any(dim=1, keepdim=True)
    if generators is not None:
        assert not isinstance(generators, torch.Generator)
        assert len(generators) == len(logits), (len(generators), len(logits))
        drawn = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators]).to(logits.device)
        keep = drawn < torch.sigmoid(logits)
    else:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold} asked for; a keep probability lies between 0 and 1")
        keep = torch.sigmoid(logits) > threshold
    return keep | (_rank(logits) == 0)


def draw_as_lavit(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The keep mask (B, N) that LaVIT's released code draws, from the same random numbers in the same order.

    Its hard Gumbel-softmax takes one exponential number for keeping and one for dropping each cell of the
    whole batch, (B, N, 2) at once, from torch's global generator: `torch.default_generator` after
    `torch.manual_seed` gives the masks of the official code on a CPU.
    """
    waits = torch.empty(*logits.shape, 2).exponential_(generator=generator).log().to(logits.device)
    keep, drop = F.logsigmoid(logits.float()) - waits[..., 0], F.logsigmoid(-logits.float()) - waits[..., 1]
    return keep >= drop  # the first of equals


def _rank(scores: Tensor) -> Tensor:
    """The place (B, N) of each cell among its picture's scores, best 0; equal scores in raster order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
