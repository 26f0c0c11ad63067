"""Soft targets cost what a dense target distribution would, and only codes have them."""

import pytest
import torch
import torch.nn.functional as F

from pictish.lm.config import NeighborsConfig
from pictish.lm.neighbors import neighbors_of
from pictish.lm.packing import IGNORED
from pictish.lm.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=5, codes=12, eos=0)
CONFIG = NeighborsConfig(share=0.3, temperature=0.7, count=4)


def vectors() -> torch.Tensor:
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def dense_targets(targets: torch.Tensor) -> torch.Tensor:
    """(N, V) written out: the share goes to the four nearest others by their distance."""
    apart = torch.cdist(vectors(), vectors())
    unit = (apart + torch.eye(12) * 1e9).min(dim=1).values.median()
    dense = torch.zeros(len(targets), VOCABULARY.size)
    for row, target in enumerate(targets.tolist()):
        dense[row, target] = 1
        if VOCABULARY.is_code(torch.tensor(target)):
            code = int(VOCABULARY.codes_of(torch.tensor(target)))
            nearest = sorted(set(range(12)) - {code}, key=lambda other: float(apart[code, other]))[:4]
            weights = (-apart[code, nearest] / unit / 0.7).softmax(dim=0)
            dense[row, target] = 0.7
            dense[row, VOCABULARY.ids_of(torch.tensor(nearest))] = 0.3 * weights
    return dense


def test_losses_and_gradients_are_those_of_the_dense_distribution():
    neighbors = neighbors_of(vectors(), VOCABULARY, CONFIG)
    targets = torch.tensor([*VOCABULARY.ids_of(torch.arange(12)), 3, VOCABULARY.end])
    logits = torch.randn(len(targets), VOCABULARY.size + 2, generator=torch.Generator().manual_seed(1))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = F.cross_entropy(ours, targets, reduction="none") + neighbors.added(ours, targets)
    dense = F.pad(dense_targets(targets), (0, 2))
    expected = F.cross_entropy(theirs, dense, reduction="none")
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[:12], F.cross_entropy(logits, targets, reduction="none")[:12], atol=1e-2)
    found.sum().backward()
    expected.sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_ignored_targets_and_text_add_nothing():
    neighbors = neighbors_of(vectors(), VOCABULARY, CONFIG)
    logits = torch.randn(3, VOCABULARY.size, generator=torch.Generator().manual_seed(1))
    assert not neighbors.added(logits, torch.tensor([IGNORED, 2, VOCABULARY.begin])).any()
    first = Vocabulary(text=0, codes=12, eos=None)
    assert not neighbors_of(vectors(), first, CONFIG).added(logits[:1], torch.tensor([IGNORED])).any()


def test_more_neighbors_than_codes_are_refused():
    with pytest.raises(ValueError, match=r"neighbors.count 12: this tokenizer has 12 codes; 11 at most"):
        neighbors_of(vectors(), VOCABULARY, NeighborsConfig(count=12))
