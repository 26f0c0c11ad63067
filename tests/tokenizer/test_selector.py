"""The selector: deterministic choice, seeded draws, and a gradient for kept and dropped patches alike."""

from functools import partial

import pytest
import torch

from pictish.tokenizer.selector import Selector, choose, draw_gate, guide_loss
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
    logits = torch.full((400, 16), -8.0)
    logits[:, 3] = -7.0
    draw = draw_gate(logits, 0.1, torch.Generator().manual_seed(0), budgets=0.3, blind=0.0)
    assert set(draw.gate.unique().tolist()) == {0.0, 1.0}
    assert (draw.gate.sum(dim=1) >= 1).all()
    lengths = draw.gate[~draw.free].sum(dim=1)
    assert len(lengths.unique()) > 8, "the number of tokens should vary"
    assert lengths.max() > 14, "it is drawn whatever the logits say"
    assert draw.gate[~draw.free][:, 3].mean() == 1, "the best by score"
    assert draw.gate[draw.free].sum(dim=1).unique().tolist() == [1.0], "the rest follows the logits"


def test_blind_cells_fall_to_a_coin_whatever_their_logits():
    logits = torch.cat([torch.full((500, 8), 5.0), torch.full((500, 8), -5.0)], dim=1)
    draw = draw_gate(logits, 0.1, torch.Generator().manual_seed(0), budgets=0.2, blind=0.25)
    assert not (draw.blind & ~draw.free[:, None]).any()
    assert float(draw.blind[draw.free].float().mean()) == pytest.approx(0.25, abs=0.02)
    for half in (slice(None, 8), slice(8, None)):
        assert float(draw.gate[:, half][draw.blind[:, half]].mean()) == pytest.approx(0.5, abs=0.05)
    sighted = draw.free[:, None] & ~draw.blind
    assert torch.equal(draw.gate[sighted] > 0.5, logits[sighted] > 0)


def test_a_batch_without_free_pictures_is_finite():
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draw = draw_gate(logits, 0.5, torch.Generator().manual_seed(0), budgets=1.0, blind=0.5)
    assert not draw.free.any()
    draw.gate.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(6, 16))


def test_the_level_holds_the_rate_of_a_batch_and_is_remembered():
    network = tiny_network(spread=1, selector={"rate": 0.25, "noise": 0.0, "relief": 0.0})
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


def test_patches_are_taken_the_dearest_first_and_relieve_their_neighbours():
    """Against the plain algorithm, one picture and one patch at a time."""
    selector = Selector(8, grid=4, relief=0.4)
    cost = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    cost[1] = 0.0  # all equal
    expected = torch.empty(5, 16)
    for picture in range(5):
        left = cost[picture].view(4, 4).clone()
        taken: list[float] = []
        while len(taken) < 16:
            y, x = divmod(int(left.argmax()), 4)
            taken.append(float(left[y, x]))
            expected[picture, 4 * y + x] = left[y, x]
            left[y, x] = -torch.inf
            for other_y, other_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= other_y < 4 and 0 <= other_x < 4:
                    left[other_y, other_x] -= 0.4
        assert taken == sorted(taken, reverse=True), "later patches never score higher"
    assert torch.allclose(selector.spread(cost), expected, atol=1e-5)
    kept = choose(selector.spread(cost[1:2]), budget=8)
    assert kept.view(4, 4).tolist() == [[y % 2 == x % 2 for x in range(4)] for y in range(4)], (
        "a chequerboard"
    )


def test_the_guide_is_of_counted_patches_alone():
    cost = torch.tensor([[3.0, 0.0], [5.0, 5.0]])
    errors = torch.tensor([[0.3, 0.9], [0.0, 0.0]])
    assert guide_loss(cost, errors, torch.tensor([[True, False], [False, False]])) == 0
    assert guide_loss(cost, errors, torch.tensor([[True, True], [False, False]])) == pytest.approx(8.5 / 2)
    assert guide_loss(cost, errors, torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_kept_and_dropped_patches_both_get_gradient():
    network = tiny_network(spread=1, selector={"rate": 0.5, "guide": 0.0, "budgets": 0.0, "blind": 0.0})
    raw = torch.randn(6, 16, network.encoder.features, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []

    def watch(module, inputs, scores):
        scores.retain_grad()
        seen.append(scores)

    network.selector.score.register_forward_hook(watch)
    network(raw, torch.Generator().manual_seed(5), quantize=False).total.backward()
    gradient = seen[0].grad.squeeze(-1)
    with torch.no_grad():
        scores = network.selector.spread(seen[0].squeeze(-1))
        logits = scores + network.selector.level_for(scores, 0.5)
    keep = draw_gate(logits, 1.0, torch.Generator().manual_seed(5), budgets=0.0, blind=0.0).gate > 0.5
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
    assert before <= 0.25, "no better than chance"
    assert precision() > 0.9, precision()
    assert float(losses.keep_rate) == pytest.approx(0.25, abs=0.15)
