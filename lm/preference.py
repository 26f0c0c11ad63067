"""Direct preference optimization (DPO, arXiv 2305.18290): pairs of answers or of drawings to one prompt.

Both sequences of a pair lie in one row: the chosen one has an odd number among `Packed.documents`, the
rejected one the next. The reference is the model as training began, which is the model itself with the
starting values of what is trained: all weights, or LoRA's adapters, or those of an inner adaptor.

Legend: B rows, L tokens, M targets, P places of pairs in a row, V ids.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.lm.config import Preference
from pictish.lm.model import UnifiedModel
from pictish.lm.packing import IGNORED, Packed
from pictish.training.sharding import local


class Reference:
    """What a model said of targets before its first step; to be made then."""

    def __init__(self, model: UnifiedModel, trained: set[str]) -> None:
        """`trained` names the parameters that change; of sharded ones each process keeps its own rows."""
        self._model = model
        self._starts = {
            name: local(parameter).detach().clone()
            for name, parameter in model.named_parameters()
            if name in trained
        }

    @torch.no_grad()
    def __call__(self, packed: Packed) -> Tensor:
        """Log-probability (B, L) of each target, without dropout; the model is as it was afterwards.

        To be called before the forward pass whose gradient is wanted: weights are exchanged in place.
        """
        training = self._model.training
        self._swap()
        try:
            return log_probabilities(self._model.eval()(packed, True).logits, packed.targets)
        finally:
            self._swap()
            self._model.train(training)

    def _swap(self) -> None:
        """Exchange what the parameters hold with what is kept here."""
        named = dict(self._model.named_parameters())
        for name, kept in self._starts.items():
            own = local(named[name])  # in the parameter's memory
            now = own.clone()
            own.copy_(kept)
            kept.copy_(now)


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability (B, L) of `targets` (B, L) by logits (M, V) at those that count; 0 elsewhere."""
    at = targets != IGNORED
    found = -F.cross_entropy(logits.float(), targets[at], reduction="none")
    return found.new_zeros(targets.shape).masked_scatter(at, found)


def count_pairs(packed: Packed) -> Packed:
    """The same rows with losses divided by the number of pairs, each counted at its first token."""
    assert (packed.documents.amax(dim=1) % 2 == 0).all(), "rows of pairs"
    first = (packed.positions == 0) & (packed.documents % 2 == 1)
    return replace(packed, counts=first.float())


def rewards(logits: Tensor, packed: Packed, config: Preference) -> Tensor:
    """Implicit rewards of all pairs in order, chosen and rejected, (pairs, 2).

    beta times how much more likely the model finds a sequence than the reference does, as the log of their
    ratio; by token where `config.length_normalized` (arXiv 2411.15124).
    """
    assert packed.reference is not None, "a pair is compared with the reference"
    assert packed.counts is not None
    ratios = log_probabilities(logits, packed.targets) - packed.reference  # (B, L)
    by_sequence = _sums(ratios, packed.documents)
    if config.length_normalized:
        by_sequence = by_sequence / _sums((packed.targets != IGNORED).float(), packed.documents).clamp_min(1)
    pairs = by_sequence.unflatten(1, (-1, 2))  # (B, P, 2)
    real = _sums(packed.counts, packed.documents).unflatten(1, (-1, 2))[:, :, 0] > 0
    return config.beta * pairs[real]


def _sums(values: Tensor, documents: Tensor) -> Tensor:
    """Sums of `values` (B, L) over each document, (B, most documents of a row), padding left out."""
    most = int(documents.max())
    sums = values.new_zeros(len(values), most + 1).scatter_add(1, documents, values)
    return sums[:, 1:]
