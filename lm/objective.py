"""What a language model is trained on; a config chooses by `kind`.

The loop asks an objective alone what a model sees, which tokens count and what they cost, and assumes no
order of them itself.

Legend: B rows, L tokens, V ids, T tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.lm.config import Autoregressive
from pictish.lm.packing import IGNORED, Packed
from pictish.lm.sequence import TASKS
from pictish.lm.vocabulary import Vocabulary


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


def corrupt(packed: Packed, generator: torch.Generator, *, vocabulary: Vocabulary, most: float) -> Packed:
    """Exchange codes that are being learned for any others, as they are read; what is learned stays.

    The share is drawn for each document from 0 to `most`. A model that has only read true codes learns
    pictures by their beginnings and is lost after its own first mistake; this one must look at the words
    again at each code (random flips in training: arXiv 2412.04431).
    """
    length = packed.documents.shape[1]
    shares = most * torch.rand(len(packed.ids), length + 1, generator=generator)  # of documents 0 .. L
    learned = packed.targets.roll(1, dims=1) != IGNORED
    chosen = torch.rand(packed.ids.shape, generator=generator) < shares.gather(1, packed.documents)
    others = torch.randint(vocabulary.codes, packed.ids.shape, generator=generator)
    wrong = chosen & learned & vocabulary.is_code(packed.ids)
    return replace(packed, ids=torch.where(wrong, vocabulary.ids_of(others), packed.ids))


def _as_laid_out(packed: Packed, generator: torch.Generator) -> Packed:
    """`pack` has put the next id behind each place already."""
    return packed


def autoregressive(config: Autoregressive, vocabulary: Vocabulary) -> Objective:
    """Cross entropy of each learned token given those before it in its document."""
    if not config.corrupt:
        return Objective(_as_laid_out, causal=True, losses=cross_entropy)
    prepare = partial(corrupt, vocabulary=vocabulary, most=config.corrupt)
    return Objective(prepare, causal=True, losses=cross_entropy)


OBJECTIVES: dict[str, Callable[[Autoregressive, Vocabulary], Objective]] = {"autoregressive": autoregressive}


def means(losses: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean loss a learned token from sums by task (T,), of all and of each task that occurred."""
    each = {f"loss_{task}": float(losses[i] / counts[i]) for i, task in enumerate(TASKS) if counts[i] > 0}
    return {"loss": float(losses.sum() / counts.sum().clamp_min(1)), **each}
