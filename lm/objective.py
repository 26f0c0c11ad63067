"""What a language model is trained on; a config chooses by `kind`. The masked one is in lm/masked.py.

The loop asks an objective alone what a model sees, which tokens count and what they cost, and assumes no
order of them itself.

Legend: B rows, L tokens, M targets, V ids, T tasks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.lm.config import Autoregressive, Masked, Preference
from pictish.lm.masked import prepare_masked
from pictish.lm.model import Output
from pictish.lm.neighbors import Neighbors, neighbors_of
from pictish.lm.packing import IGNORED, Packed
from pictish.lm.preference import count_pairs, rewards
from pictish.lm.sequence import TASKS
from pictish.lm.vocabulary import Vocabulary
from pictish.training.loss_guard import SMALL


class Losses(NamedTuple):
    """Sums over targets: the loss, and by task losses and what divides them (T,), in the order of TASKS."""

    total: Tensor
    by_task: Tensor
    counts: Tensor
    alignment: Tensor  # (2,) the heads' errors and how many, see alignment.py; 0 without heads
    preference: Tensor  # (4,) pairs, those preferred rightly, rewards of chosen and rejected; 0 of others


@dataclass(frozen=True)
class Objective:
    """One way to train: all that the loop must not decide by itself."""

    # Rows as `pack` laid them out to what the model reads, who sees whom, and its targets, which
    # `Packed.learned` counts; whatever is random comes from the generator, a CPU one that the step alone has
    # seeded. The number is how much of the training is done, 0 to 1.
    prepare: Callable[[Packed, torch.Generator, float], Packed]
    losses: Callable[[Output, Packed], Losses]  # of what the model says to what `prepare` gave
    # What another model says of that, which the losses need as `Packed.reference`; None: they need nothing.
    reference: Callable[[Packed], Tensor] | None = None
    small: float = SMALL  # a loss that is small; see LossGuard

    def referenced(self, packed: Packed) -> Packed:
        """What `prepare` gave, on the model's device, with what the reference says of it."""
        return packed if self.reference is None else replace(packed, reference=self.reference(packed))


def cross_entropy(
    output: Output, packed: Packed, neighbors: Neighbors | None = None, alignment: float = 0.0
) -> Losses:
    """What `output.logits`, (B, L, V) or those of targets alone (M, V), say of `packed.targets`.

    `alignment` weighs the heads, whose errors are added to the losses of the tokens that they are at.
    """
    at = packed.targets != IGNORED  # (B, L)
    logits, targets = output.logits if output.logits.ndim == 2 else output.logits[at], packed.targets[at]
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")  # (M,)
    if neighbors is not None:
        losses = losses + neighbors.added(logits, targets)
    if packed.weights is not None:
        losses = losses * packed.weights[at]
    numbers = packed.numbers.flatten().to(losses.dtype)
    by_task = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks[at], losses.detach())
    counts = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), numbers)
    total, errors = losses.sum(), losses.new_zeros(2)
    if output.alignment is not None:
        total, errors = total + alignment * output.alignment[0], output.alignment.detach()
    return Losses(total, by_task, counts, errors, losses.new_zeros(4))


def corrupt(
    packed: Packed,
    generator: torch.Generator,
    done: float,
    *,
    vocabulary: Vocabulary,
    most: float,
    anneal: float = 0.0,
    everything: float = 0.0,
    foreign: float = 0.0,
) -> Packed:
    """Exchange codes that are being learned for others, as they are read; what is learned stays.

    The share is drawn for each document from 0 to `most`, which falls linearly to 0 while `done`, the share
    of training that is over, rises to `anneal`; with an `anneal` of 0 it stays. Only codes are exchanged, and
    for codes. A model that has only read true codes learns images by their beginnings and is lost after its
    own first mistake; this one must look at the words again at each code (random flips in
    training: arXiv 2412.04431). Of the share `everything` of documents, all codes are exchanged: what is left
    to learn from are the words, the image that an edit changes, and the cells.

    Of the share `foreign` of images, the codes read in exchange are those of another image of the step, in
    their order; of the rest, any codes. A model recognises any codes as noise, and one that draws goes wrong
    by following another image that it knows.
    """
    most *= max(0.0, 1 - done / anneal) if anneal else 1.0
    length = packed.documents.shape[1]
    shares = most * torch.rand(len(packed.ids), length + 1, generator=generator)  # of documents 0 .. L
    if everything:
        shares[torch.rand(shares.shape, generator=generator) < everything] = 1.0
    learned = packed.targets.roll(1, dims=1) != IGNORED
    chosen = torch.rand(packed.ids.shape, generator=generator) < shares.gather(1, packed.documents)
    others = torch.randint(vocabulary.codes, packed.ids.shape, generator=generator)
    exchangeable = learned & vocabulary.is_code(packed.ids)
    wrong = chosen & exchangeable
    if foreign:
        theirs = _codes_of_others(packed, exchangeable, vocabulary, generator)
        whose = torch.rand(shares.shape, generator=generator) < foreign
        if theirs is not None:
            others = torch.where(whose.gather(1, packed.documents), theirs, others)
    return replace(packed, ids=torch.where(wrong, vocabulary.ids_of(others), packed.ids))


def _codes_of_others(
    packed: Packed, exchangeable: Tensor, vocabulary: Vocabulary, generator: torch.Generator
) -> Tensor | None:
    """For each document's codes those of another, from its start and again if it has fewer: (B, L).

    `exchangeable` (B, L) says where codes are. None where there are no two documents.
    """
    rows = exchangeable.nonzero()[:, 0]
    document = packed.documents[exchangeable] + rows * (packed.documents.shape[1] + 1)
    lengths = document.unique_consecutive(return_counts=True)[1].tolist()
    if len(lengths) < 2:
        return None
    images = vocabulary.codes_of(packed.ids[exchangeable]).split(lengths)
    shift = 1 + int(torch.randint(len(images) - 1, (), generator=generator))
    theirs = [
        other[torch.arange(length) % len(other)]
        for length, other in zip(lengths, images[shift:] + images[:shift], strict=True)
    ]
    return torch.zeros_like(packed.ids).masked_scatter(exchangeable, torch.cat(theirs))


def shifted(packed: Packed) -> Packed:
    """The same rows with each learned id as the target of the token before it in its document."""
    follows = F.pad(packed.documents[:, 1:] == packed.documents[:, :-1], (0, 1))
    return replace(packed, targets=packed.targets.roll(-1, dims=1).masked_fill(~follows, IGNORED))


def autoregressive(
    config: Autoregressive, vocabulary: Vocabulary, code_vectors: Tensor | None = None
) -> Objective:
    """Cross entropy of each learned token given those before it in its document.

    `code_vectors` (C, W): those of the image tokenizer, on the model's device, for soft targets.
    """

    def prepare(packed: Packed, generator: torch.Generator, done: float) -> Packed:
        packed = shifted(packed)
        if not (config.corrupt or config.corrupt_all):
            return packed
        return corrupt(
            packed,
            generator,
            done,
            vocabulary=vocabulary,
            most=config.corrupt,
            anneal=config.corrupt_anneal,
            everything=config.corrupt_all,
            foreign=config.corrupt_foreign,
        )

    neighbors = None
    if config.neighbors is not None:
        assert code_vectors is not None, "neighbors are looked for among code vectors"
        neighbors = neighbors_of(code_vectors, vocabulary, config.neighbors)
    losses = partial(cross_entropy, neighbors=neighbors, alignment=config.alignment)
    return Objective(prepare, losses)


def masked(config: Masked, vocabulary: Vocabulary, code_vectors: Tensor | None = None) -> Objective:
    """Cross entropy of masked tokens given all others that the config lets them see."""
    return Objective(partial(prepare_masked, config=config, vocabulary=vocabulary), cross_entropy)


def preference(config: Preference, vocabulary: Vocabulary, code_vectors: Tensor | None = None) -> Objective:
    """-log sigmoid of how much higher the chosen sequence's reward is, of each pair; takes a `reference`."""

    def prepare(packed: Packed, generator: torch.Generator, done: float) -> Packed:
        return count_pairs(shifted(packed))

    def losses(output: Output, packed: Packed) -> Losses:
        assert packed.counts is not None
        chosen, rejected = rewards(output.logits, packed, config).unbind(dim=1)  # (pairs,)
        each = -F.logsigmoid(chosen - rejected)
        tasks = packed.tasks[packed.counts > 0]
        zeros = each.new_zeros(len(TASKS))
        found = each.new_tensor(len(each)), (chosen > rejected).sum(), chosen.sum(), rejected.sum()
        return Losses(
            each.sum(),
            zeros.index_add(0, tasks, each.detach()),
            zeros.index_add(0, tasks, torch.ones_like(each.detach())),
            each.new_zeros(2),
            torch.stack(found).detach(),
        )

    return Objective(prepare, losses, small=math.log(2))  # that of no preference; it can fall to 0


OBJECTIVES: dict[str, Callable[[Any, Vocabulary, Tensor | None], Objective]] = {
    "autoregressive": autoregressive,
    "masked": masked,
    "preference": preference,
}


def means(losses: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean losses from sums by task (T,) and what divides them, of all and of each task that occurred."""
    each = {f"loss_{task}": float(losses[i] / counts[i]) for i, task in enumerate(TASKS) if counts[i] > 0}
    return {"loss": float(losses.sum() / counts.sum().clamp_min(1)), **each}


def preferences(sums: Tensor) -> dict[str, float]:
    """What to log of `Losses.preference` (4,): means over pairs; nothing where there were none."""
    pairs, right, chosen, rejected = sums.tolist()
    if not pairs:
        return {}
    return {
        "accuracy": right / pairs,
        "margin": (chosen - rejected) / pairs,
        "reward_chosen": chosen / pairs,
        "reward_rejected": rejected / pairs,
    }
