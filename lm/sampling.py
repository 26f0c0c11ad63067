"""Choosing the next id from logits: temperature, filters, and a draw that does not depend on its batch.

Legend: B rows, V ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = float("-inf")
LARGEST_TEMPERATURE = 1000
_SMALLEST = 1e-37  # temperatures below are no numbers, or zero, in float32


@dataclass(frozen=True)
class Sampling:
    """How to draw; the filters apply in this order. ValueError for a setting out of range."""

    temperature: float = 1.0  # 0: always the likeliest id
    top_k: int | None = None  # of the k likeliest
    top_p: float | None = None  # of the likeliest that together reach this probability
    min_p: float | None = None  # of those at least this share as likely as the likeliest

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= LARGEST_TEMPERATURE:
            raise ValueError(
                f"temperature {self.temperature} asked for; 0 (greedy) to {LARGEST_TEMPERATURE} would fit"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} asked for; 1 or more would fit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} asked for; above 0, at most 1 would fit")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} asked for; 0 to 1 would fit")


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """Logits (B, V) with all below the `count`-th largest at minus infinity; equals of it stay."""
    smallest = logits.topk(min(count, logits.shape[1]), dim=1).values[:, -1:]
    return logits.masked_fill(logits < smallest, NEVER)


def keep_top_p(logits: Tensor, share: float) -> Tensor:
    """Logits (B, V) of the likeliest ids that together reach `share`, the rest at minus infinity."""
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=1)
    before = (
        probabilities.cumsum(dim=1) - probabilities
    )  # what the likelier ones have reached; 0 for the first
    return logits.masked_fill((before >= share).scatter(1, order, before >= share), NEVER)


def keep_min_p(logits: Tensor, share: float) -> Tensor:
    """Logits (B, V) of ids at least `share` as likely as the row's likeliest, the rest at minus infinity."""
    probabilities = logits.softmax(dim=1)
    return logits.masked_fill(probabilities < share * probabilities.amax(dim=1, keepdim=True), NEVER)


def draw(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One id (B,) a row from floating-point logits (B, V), by that row's own generator.

    An id at minus infinity is never drawn; each row has another. Greedy takes the lowest of equals and leaves
    the generators alone.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    assert len(generators) == len(logits), (len(generators), len(logits))
    probabilities = filtered(logits, sampling)
    # An exponential race, as in torch.multinomial: the first of clocks that ring at these rates. Unlike the
    # inverse of a running sum it cannot hit an id of probability 0.
    clocks = [torch.empty(logits.shape[1], device=g.device).exponential_(generator=g) for g in generators]
    return (probabilities / torch.stack(clocks).to(logits)).argmax(dim=1)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, V) at the temperature, 0 for what the filters leave out."""
    # from 0 downwards, so that no temperature, however small, overflows
    logits = (logits - logits.amax(dim=1, keepdim=True)) / max(sampling.temperature, _SMALLEST)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits.softmax(dim=1)
