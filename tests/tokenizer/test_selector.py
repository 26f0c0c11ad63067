"""The selector: deterministic choice, seeded draws, and a gradient for kept and dropped patches alike."""

from functools import partial

import pytest
import torch

from pictish.tokenizer.selector import choose, draw_gate, guide_loss
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
    logits = torch.full((300, 16), -8.0)
    logits[:, 3] = -7.0
    draw = draw_gate(logits, 0.1, torch.Generator().manual_seed(0), budgets=0.3, blind=0.3)
    assert set(draw.gate.unique().tolist()) == {0.0, 1.0}
    assert (draw.gate.sum(dim=1) >= 1).all()
    assert not (draw.free & draw.blind).any()
    best = ~draw.free & ~draw.blind
    for rows in (draw.blind, best):
        lengths = draw.gate[rows].sum(dim=1)
        assert len(lengths.unique()) > 4, "the number of tokens should vary"
        assert lengths.max() > 8, "it is drawn whatever the logits say"
    assert draw.gate[best][:, 3].mean() == 1, "the best by score"
    assert draw.gate[draw.blind][:, 3].mean() < 0.6, "any, whatever the score"


def test_a_batch_without_free_pictures_is_finite():
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draw = draw_gate(logits, 0.5, torch.Generator().manual_seed(0), budgets=0.5, blind=0.5)
    assert not draw.free.any()
    draw.gate.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(6, 16))


def test_the_level_holds_the_rate_of_a_batch_and_is_remembered():
    network = tiny_network(spread=1, selector={"rate": 0.25, "noise": 0.0})
    raw = torch.randn(64, 16, network.encoder.features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(100):
            losses = network(raw, torch.Generator().manual_seed(step), quantize=False, noise=0.0)
            assert float(losses.keep_rate) == pytest.approx(0.25, abs=0.08)
    network.eval()
    hidden = network.embed(network.encoder.standardise(raw))
    assert float(choose(network.selector(hidden)).float().mean()) == pytest.approx(0.25, abs=0.02)
    network.set_level([raw[:8]])
    kept = choose(network.selector(hidden[:8])).float().mean()
    assert float(kept) == pytest.approx(0.25, abs=0.02)


def test_the_guide_counts_dropped_patches_alone():
    scores = torch.tensor([[3.0, 0.0], [5.0, 5.0]])
    errors = torch.tensor([[0.3, 0.9], [0.0, 0.0]])
    assert guide_loss(scores, errors, torch.tensor([[True, False], [False, False]])) == 0
    assert guide_loss(scores, errors, torch.tensor([[True, True], [False, False]])) == pytest.approx(8.5 / 2)
    assert guide_loss(scores, errors, torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_kept_and_dropped_patches_both_get_gradient():
    network = tiny_network(spread=1, selector={"rate": 0.5, "guide": 0.0, "budgets": 0.0, "blind": 0.0})
    raw = torch.randn(6, 16, network.encoder.features, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []

    def watch(module, inputs, logits):
        logits.retain_grad()
        seen.append(logits)

    network.selector.score.register_forward_hook(watch)
    network(raw, torch.Generator().manual_seed(5), quantize=False).total.backward()
    gradient = seen[0].grad.squeeze(-1)
    keep = (
        draw_gate(
            seen[0].squeeze(-1).detach() + network.selector.level_for(seen[0].squeeze(-1), 0.5),
            1.0,
            torch.Generator().manual_seed(5),
            budgets=0.0,
            blind=0.0,
        ).gate
        > 0.5
    )
    assert 0.2 < keep.float().mean() < 0.8
    for side in (keep, ~keep):
        assert (gradient[side] != 0).float().mean() > 0.9
        assert gradient[side].abs().mean() > 1e-7


def test_training_moves_the_mask_towards_what_matters():
    """Four cells hold one of two patterns, the rest never change; a trained selector finds the four."""
    network = tiny_network(seed=2, spread=1, selector={"rate": 0.25, "budgets": 0.0, "blind": 0.25})
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
        losses = network(batch(32), torch.Generator().manual_seed(step), quantize=False, noise=0.1)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert before < 0.25, "this seed starts by preferring the empty cells"
    assert precision() > 0.9
    assert float(losses.keep_rate) == pytest.approx(0.25, abs=0.15)
