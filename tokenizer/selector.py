"""Which patches to keep: what each is worth, the draw of training, and the deterministic choice of inference.

LaVIT (arXiv 2309.04669, section 3.1) scores patches by an MLP; its released code also draws at inference, so
that the same image gets other tokens each time. Here a draw must be asked for, and brings its generator.

Legend: B images, N cells, D width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup

LOGIT_BIAS_MOMENTUM = 0.05  # weight of one batch in the running logit bias
SMALL_GAIN = 1e-4  # of an image's error: scores are linear in gains below it, logarithmic in those above
GOOD_ENOUGH = 5e-4  # mean squared error that needs no codes: 33 dB


class PatchScores(nn.Module):
    """An MLP over each patch's own row and the mean of the image's; base of both selectors."""

    level: Tensor  # the logit bias, under the name it is stored by

    def __init__(self, width: int, outputs: int):
        super().__init__()
        half = width // 2
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * half), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(2 * half, half),
            nn.GELU(),
            nn.Linear(half, half // 2),
            nn.GELU(),
            nn.Linear(half // 2, outputs),
        )
        self.register_buffer("level", torch.zeros(()))  # the name in released weights

    @property
    def logit_bias(self) -> Tensor:
        """What is added to all scores, so that a set fraction of the patches is kept on average; a scalar."""
        return self.level

    def outputs(self, hidden: Tensor) -> Tensor:
        """(B, N, outputs) of `hidden` (B, N, D)."""
        own, shared = self.project(hidden).chunk(2, dim=-1)
        shared = shared.mean(dim=1, keepdim=True).expand_as(own)
        return self.score(torch.cat([own, shared], dim=-1))

    @torch.no_grad()
    def logit_bias_for(
        self, scores: Tensor, rate: float, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> Tensor:
        """The bias at which a fraction `rate` of `scores` (B, N) comes out above 0, a scalar.

        Of several processes it is that of all their scores.
        """
        gathered = process_group.gathered(scores.float()).flatten()
        return -gathered.kthvalue(max(1, round((1 - rate) * len(gathered)))).values

    @torch.no_grad()
    def update_logit_bias(self, logit_bias: Tensor) -> None:
        """Move the bias of inference towards that of a batch; called once a training step."""
        self.logit_bias.lerp_(logit_bias, LOGIT_BIAS_MOMENTUM)


class ErrorSelector(PatchScores):
    """Predicts each patch's reconstruction error where it is dropped and where it is kept.

    Its score rises with the gain relative to the image's own error, so one threshold for all images
    spends codes where they gain most decibels. It learns from the errors of training images whose patches
    were kept and dropped by its own scores and, for a fraction, at random; its gradient reaches no other
    part. A straight-through gradient alone ranked patches worse in a short training (docs/log.md).
    """

    calibration: Tensor

    def __init__(self, width: int):
        super().__init__(width, outputs=2)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0, 0.0, 0.0]))  # of `psnr_terms`

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (B, N) of keeping each patch of `hidden` (B, N, D)."""
        return self.scores(self.errors(hidden)) + self.logit_bias

    def errors(self, hidden: Tensor) -> Tensor:
        """Predicted root mean squared errors (B, N, 2): dropped, kept; pixels in [0, 1]."""
        return F.softplus(self.outputs(hidden).float() - 3)

    @staticmethod
    def scores(errors: Tensor) -> Tensor:
        """Logarithm of what keeping each patch gains of its image's squared error, (B, N).

        `errors` are (B, N, 2). It is an inverse hyperbolic sine, which negative gains have too, and no two
        gains that differ are equal. Relative to the error with no code at all, faint images count like
        strong ones: the mean PSNR of a number of codes is higher than by absolute gains (docs/log.md).
        """
        dropped, kept = errors.detach().square().unbind(-1)
        whole = dropped.sum(dim=1, keepdim=True) + GOOD_ENOUGH * dropped.shape[1]
        return ((dropped - kept) / whole / SMALL_GAIN).asinh()

    def loss(
        self, errors: Tensor, observed: Tensor, keep: Tensor, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> Tensor:
        """How far predicted `errors` (B, N, 2) are from `observed` squared errors (B, N), a scalar.

        Of a patch only one was observed, as it was kept or dropped: `keep` (B, N) bool.
        """
        predicted = torch.where(keep, errors[..., 1], errors[..., 0])
        return process_group.mean(
            F.smooth_l1_loss(predicted, observed.detach().sqrt(), reduction="none", beta=0.05)
        )

    def predicted_psnr(self, hidden: Tensor) -> Tensor:
        """PSNR in dB (B, N) that 1, 2, ... N codes of each image are expected to reach, never falling."""
        dropped, kept = self.errors(hidden).square().unbind(-1)
        order = self.scores(self.errors(hidden)).argsort(dim=1, descending=True, stable=True)
        gains = torch.gather((dropped - kept).clamp_min(0), 1, order).cumsum(dim=1)
        mse = (dropped.sum(dim=1, keepdim=True) - gains).clamp_min(1e-8) / hidden.shape[1]
        return (psnr_terms(-10 * mse.log10()) @ self.calibration).cummax(dim=1).values

    def reaching(self, hidden: Tensor, quality: float) -> Tensor:
        """Which patches (B, N) of `hidden` (B, N, D) are kept to be expected to reach `quality` dB, bool."""
        number = (self.predicted_psnr(hidden) < quality).sum(dim=1, keepdim=True) + 1  # (B, 1)
        return rank(self(hidden)) < number


def psnr_terms(psnr: Tensor) -> Tensor:
    """What an expected PSNR is a weighted sum of, (B, N, 4), from what 1 to N codes add up to, (B, N).

    That itself, one, and the doublings from this many codes to all, once and squared: errors are predicted
    as if the usual number of neighbours were kept, and where few are, each code is worth less.
    """
    numbers = torch.arange(1, psnr.shape[1] + 1, device=psnr.device) / psnr.shape[1]
    doublings = numbers.log2().expand_as(psnr)
    return torch.stack([psnr, torch.ones_like(psnr), doublings, doublings.square()], dim=-1)


def with_all_terms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a tokenizer whose calibration may be an earlier one, of the first two terms."""
    name = "selector.calibration"
    return {n: F.pad(t, (0, 4 - len(t))) if n == name else t for n, t in tensors.items()}


class Selector(PatchScores):
    """LaVIT's scores, or those of earlier pictish tokenizers, for inference.

    With `neighbor_suppression`, patches are taken greedily, best first, and each one lowers
    the scores of its neighbours, as in soft NMS (`suppress_neighbors`).
    """

    near: Tensor

    def __init__(self, width: int, grid: int, neighbor_suppression: float):
        super().__init__(width, outputs=1)
        self.suppresses_neighbors = neighbor_suppression > 0
        cells = torch.arange(grid**2)
        down, right = cells // grid, cells % grid
        apart = (down[:, None] - down).abs() + (right[:, None] - right).abs()  # (N, N)
        self.register_buffer("near", neighbor_suppression * (apart == 1), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (B, N) of keeping each patch of `hidden` (B, N, D)."""
        return self.suppress_neighbors(self.outputs(hidden).squeeze(-1)) + self.logit_bias

    def suppress_neighbors(self, cost: Tensor) -> Tensor:
        """Scores (B, N): the `cost` (B, N) of each patch less its suppression by neighbours taken before it.

        They fall from one taken patch to the next, so a threshold and a number cut the same order.
        """
        if not self.suppresses_neighbors:
            return cost
        left = cost.detach().float()
        neighbor_suppression = torch.zeros_like(left)
        for _ in range(left.shape[1]):
            taken = left.argmax(dim=1)  # the first of equals
            left = left - self.near[taken]
            left.scatter_(1, taken[:, None], -torch.inf)
            neighbor_suppression = neighbor_suppression + self.near[taken] * left.isfinite()
        return cost - neighbor_suppression


class Draw(NamedTuple):
    """A training draw: `keep` (B, N) bool; images (B,) bool whose number of codes was their own."""

    keep: Tensor
    free: Tensor


def draw_keep(
    logits: Tensor,
    noise: float,
    generator: torch.Generator,
    *,
    fixed_length: float,
    exploration: float,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Draw:
    """Draw what is kept in training from `logits` (B, N).

    Gumbel noise on both choices is a logistic one on their difference; with `noise` 0 the draw is the
    threshold of inference. A fraction `fixed_length` of the images keep their N best, N drawn from 1 to
    all and more often small, so that any budget works. Of all cells a fraction `exploration` is kept or
    dropped at random, as often as the image's others, to observe errors where the scores would not look.
    At least one patch is kept. `logits` may be one process's rows of the batch.
    """
    count = logits.shape[1]
    drawn = process_group.drawn(torch.rand, (3, *logits.shape), generator, dim=1)
    uniform, chance, coin = drawn.to(logits.device).clamp(1e-6, 1 - 1e-6)
    rows = process_group.drawn(torch.rand, (2, len(logits), 1), generator, dim=1).to(logits.device)
    noisy = logits.detach().float() + noise * torch.logit(uniform)
    free = rows[1] >= fixed_length  # (B, 1)
    place = rank(noisy)
    number = (1 + (count - 1) * rows[0] ** 2).round()
    keep = torch.where(free, noisy > 0, place < number)
    keep = torch.where(chance < exploration, coin < keep.float().mean(dim=1, keepdim=True), keep)
    keep = keep | ((place == 0) & ~keep.any(dim=1, keepdim=True))
    return Draw(keep, free.squeeze(1))


def choose(
    logits: Tensor,
    *,
    threshold: float = 0.5,
    budget: int | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """The keep mask (B, N) of inference: by `threshold` on the probability, the `budget` best, or drawn.

    Ties go to the earlier cell. A draw uses one generator an image, so that an image's mask does not depend
    on its batch. At least one patch is kept.
    """
    if budget is not None:
        if not 1 <= budget <= logits.shape[1]:
            raise ValueError(
                f"budget {budget} asked for; an image of this model has 1 to {logits.shape[1]} tokens"
            )
        return rank(logits) < budget
    if generators is not None:
        assert len(generators) == len(logits), (len(generators), len(logits))
        drawn = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators]).to(logits.device)
        keep = drawn < torch.sigmoid(logits)
    else:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold} asked for; a keep probability lies between 0 and 1")
        keep = torch.sigmoid(logits) > threshold
    return keep | (rank(logits) == 0)


def rank(scores: Tensor) -> Tensor:
    """The place (B, N) of each cell among its image's scores, best 0; equal scores in raster order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
