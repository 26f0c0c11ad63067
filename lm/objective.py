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
from pictish.lm.model import Output
from pictish.lm.neighbors import Neighbors, neighbors_of
from pictish.lm.packing import IGNORED, Packed
from pictish.lm.sequence import TASKS
from pictish.lm.vocabulary import Vocabulary


class Losses(NamedTuple):
    """Sums over learned tokens: the loss, and by task losses and numbers (T,), in the order of TASKS."""

    total: Tensor
    by_task: Tensor
    counts: Tensor
    alignment: Tensor  # (2,) the heads' errors and how many, see alignment.py; 0 without heads


@dataclass(frozen=True)
class Objective:
    """One way to train: all that the loop must not decide by itself."""

    # Rows as `pack` laid them out to what the model reads and its targets, which `Packed.learned` counts;
    # whatever is random comes from the generator, a CPU one that the step alone has seeded. The number is how
    # much of the training is done, 0 to 1.
    prepare: Callable[[Packed, torch.Generator, float], Packed]
    causal: bool  # whether a token sees only the earlier ones of its document, or all
    losses: Callable[[Output, Packed], Losses]  # of what the model says to what `prepare` gave


def cross_entropy(
    output: Output, packed: Packed, neighbors: Neighbors | None = None, alignment: float = 0.0
) -> Losses:
    """What `output.logits` (B, L, V) say of `packed.targets`, place by place; `alignment` weighs the heads.

    The heads' errors are added to the losses of the tokens that they are at.
    """
    logits, targets = output.logits.flatten(0, 1).float(), packed.targets.flatten()
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    if neighbors is not None:
        losses = losses + neighbors.added(logits, targets)
    learned = (packed.targets != IGNORED).flatten()
    by_task = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), losses.detach())
    counts = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), learned.to(losses.dtype))
    total, errors = losses.sum(), losses.new_zeros(2)
    if output.alignment is not None:
        total, errors = total + alignment * output.alignment[0], output.alignment.detach()
    return Losses(total, by_task, counts, errors)


def corrupt(
    packed: Packed,
    generator: torch.Generator,
    done: float,
    *,
    vocabulary: Vocabulary,
    most: float,
    anneal: float = 0.0,
) -> Packed:
    """Exchange codes that are being learned for any others, as they are read; what is learned stays.

    The share is drawn for each document from 0 to `most`, which falls linearly to 0 while `done`, the share
    of training that is over, rises to `anneal`; with an `anneal` of 0 it stays. Only codes are exchanged, and
    for codes. A model that has only read true codes learns pictures by their beginnings and is lost after its
    own first mistake; this one must look at the words again at each code (random flips in
    training: arXiv 2412.04431).
    """
    most *= max(0.0, 1 - done / anneal) if anneal else 1.0
    length = packed.documents.shape[1]
    shares = most * torch.rand(len(packed.ids), length + 1, generator=generator)  # of documents 0 .. L
    learned = packed.targets.roll(1, dims=1) != IGNORED
    chosen = torch.rand(packed.ids.shape, generator=generator) < shares.gather(1, packed.documents)
    others = torch.randint(vocabulary.codes, packed.ids.shape, generator=generator)
    wrong = chosen & learned & vocabulary.is_code(packed.ids)
    return replace(packed, ids=torch.where(wrong, vocabulary.ids_of(others), packed.ids))


def _as_laid_out(packed: Packed, generator: torch.Generator, done: float) -> Packed:
    """`pack` has put the next id behind each place already."""
    return packed


def autoregressive(
    config: Autoregressive, vocabulary: Vocabulary, code_vectors: Tensor | None = None
) -> Objective:
    """Cross entropy of each learned token given those before it in its document.

    `code_vectors` (C, W): those of the image tokenizer, on the model's device, for soft targets.
    """
    prepare: Callable[[Packed, torch.Generator, float], Packed] = _as_laid_out
    if config.corrupt:
        prepare = partial(corrupt, vocabulary=vocabulary, most=config.corrupt, anneal=config.corrupt_anneal)
    neighbors = None
    if config.neighbors is not None:
        assert code_vectors is not None, "neighbors are looked for among code vectors"
        neighbors = neighbors_of(code_vectors, vocabulary, config.neighbors)
    losses = partial(cross_entropy, neighbors=neighbors, alignment=config.alignment)
    return Objective(prepare, causal=True, losses=losses)


OBJECTIVES: dict[str, Callable[[Autoregressive, Vocabulary, Tensor | None], Objective]] = {
    "autoregressive": autoregressive
}


def means(losses: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean loss a learned token from sums by task (T,), of all and of each task that occurred."""
    each = {f"loss_{task}": float(losses[i] / counts[i]) for i, task in enumerate(TASKS) if counts[i] > 0}
    return {"loss": float(losses.sum() / counts.sum().clamp_min(1)), **each}
