"""What a language model is trained on; a config chooses by `kind`.

The loop asks an objective alone what a model sees, which tokens count and what they cost, and assumes no
order of them itself.

Legend: B rows, L tokens, V ids, T tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.lm.packing import IGNORED, Packed
from pictish.lm.sequence import TASKS


class Losses(NamedTuple):
    """Sums over learned tokens: their losses, and by task losses and numbers (T,), in the order of TASKS."""

    total: Tensor
    by_task: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Objective:
    """One way to train: all that the loop must not decide by itself."""

    # Rows as `pack` laid them out to what the model reads and its targets, which `Packed.learned` counts;
    # whatever is random comes from the generator, a CPU one that the step alone has seeded.
    prepare: Callable[[Packed, torch.Generator], Packed]
    causal: bool  # whether a token sees only the earlier ones of its document, or all
    losses: Callable[[Tensor, Packed], Losses]  # of logits (B, L, V) and what `prepare` gave


def cross_entropy(logits: Tensor, packed: Packed) -> Losses:
    """What logits (B, L, V) say of `packed.targets`, place by place."""
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), packed.targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    learned = (packed.targets != IGNORED).flatten()
    by_task = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), losses.detach())
    counts = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), learned.to(losses.dtype))
    return Losses(losses.sum(), by_task, counts)


def _as_laid_out(packed: Packed, generator: torch.Generator) -> Packed:
    """`pack` has put the next id behind each place already."""
    return packed


# Cross entropy of each learned token given those before it in its document.
autoregressive = Objective(_as_laid_out, causal=True, losses=cross_entropy)

OBJECTIVES: dict[str, Objective] = {"autoregressive": autoregressive}


def means(losses: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean loss a learned token from sums by task (T,), of all and of each task that occurred."""
    each = {f"loss_{task}": float(losses[i] / counts[i]) for i, task in enumerate(TASKS) if counts[i] > 0}
    return {"loss": float(losses.sum() / counts.sum().clamp_min(1)), **each}
