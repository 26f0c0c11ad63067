"""The selector: deterministic choice, seeded draws, and a gradient for kept and dropped patches alike."""

from functools import partial

import pytest
import torch

from pictish.tokenizer.losses import rate_loss
from pictish.tokenizer.selector import choose, draw_gate
from tests.tokenizer.conftest import tiny_network


def test_threshold_budget_and_ties():
    logits = torch.tensor([[0.1, -1.0, 2.0, 0.1], [-5.0, -4.0, -6.0, -4.0]])
    assert choose(logits).tolist() == [[True, False, True, True], [False, True, False, False]]
    assert choose(logits, threshold=0.8).tolist()[0] == [False, False, True, False]
    assert choose(logits, budget=2).tolist() == [[True, False, True, False], [False, True, False, True]]


@pytest.mark.parametrize("count", [1, 4, 16])
def test_budget_keeps_exactly_that_many(count):
    logits = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    assert choose(logits, budget=count).sum(dim=1).tolist() == [count] * 20


@pytest.mark.parametrize("budget", [0, 17, -1])
def test_budget_out_of_range_is_refused(budget):
    with pytest.raises(ValueError, match="1 to 16"):
        choose(torch.zeros(2, 16), budget=budget)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose(torch.zeros(2, 16), threshold=threshold)


def test_draws_follow_their_generator_alone():
    logits = torch.zeros(3, 64)
    seeds = [torch.Generator().manual_seed(s) for s in (1, 2, 1)]
    drawn = choose(logits, generators=seeds)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    alone = choose(logits[1:2], generators=[torch.Generator().manual_seed(2)])
    assert torch.equal(alone[0], drawn[1])


def test_training_draw_is_hard_and_never_empty():
    draw = draw_gate(torch.full((200, 16), -8.0), 1.0, 0.5, torch.Generator().manual_seed(0))
    assert set(draw.gate.unique().tolist()) == {0.0, 1.0}
    assert (draw.gate.sum(dim=1) >= 1).all()
    lengths = draw.gate[~draw.free].sum(dim=1)
    assert len(lengths.unique()) > 4, "random budgets should vary"
    assert lengths.max() > 8, "random budgets are drawn whatever the scores say"


def test_rate_loss_ignores_pictures_whose_length_was_set():
    gate = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    assert rate_loss(gate, torch.tensor([True, False]), 0.25) == 0
    assert rate_loss(gate, torch.tensor([True, True]), 0.25) == pytest.approx((0.625 - 0.25) ** 2)
    assert rate_loss(gate, torch.tensor([False, False]), 0.25) == 0


def test_kept_and_dropped_patches_both_get_gradient():
    network = tiny_network(spread=1, selector={"rate": 0.5, "rate_weight": 0.0, "random_budget": 0.0})
    raw = torch.randn(6, 16, network.encoder.features, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []

    def watch(module, inputs, logits):
        logits.retain_grad()
        seen.append(logits)

    network.selector.register_forward_hook(watch)
    # rate_weight 0: what is left of the gradient comes from the reconstruction
    network(raw, torch.Generator().manual_seed(5), quantize=False).total.backward()
    gradient = seen[0].grad
    keep = draw_gate(seen[0].detach(), 1.0, 0.0, torch.Generator().manual_seed(5)).gate > 0.5
    assert 0.2 < keep.float().mean() < 0.8
    for side in (keep, ~keep):
        assert (gradient[side] != 0).float().mean() > 0.9
        assert gradient[side].abs().mean() > 1e-7


def test_training_moves_the_mask_towards_what_matters():
    """Four cells hold one of two patterns, the rest never change; a trained selector finds the four."""
    network = tiny_network(spread=1, selector={"rate": 0.25, "rate_weight": 5.0, "random_budget": 0.0})
    with torch.no_grad():
        network.selector.score[-1].weight.neg_()  # with this seed: starts by preferring the empty cells
    source = torch.Generator().manual_seed(0)
    useful = torch.zeros(16, dtype=torch.bool)
    useful[[0, 1, 4, 5]] = True
    patterns = torch.randn(2, network.encoder.features, generator=source)

    def batch(size: int) -> torch.Tensor:
        chosen = patterns[torch.randint(0, 2, (size, 16), generator=source)]
        return torch.where(useful[:, None], chosen, torch.ones(1))

    def precision(budget: int = 4) -> float:
        """Share of useful cells among the four best of each picture."""
        kept = network.round_trip(probe, quantize=False, draw=partial(choose, budget=budget)).keep
        return float((kept & useful).sum() / kept.sum())

    probe = batch(64)
    before = precision()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(200):
        losses = network(batch(32), torch.Generator().manual_seed(step), quantize=False)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert before < 0.25, "nothing to learn if the start is good already"
    assert precision() > 0.9
