"""The selectors: deterministic choice, seeded draws, and errors that are predicted."""

import pytest
import torch

from pictish.tokenizer.selector import ErrorSelector, Selector, choose, draw_keep, psnr_terms, rank
from pictish.tokenizer.train import least_squares
from pictish.training.process_group import SINGLE_PROCESS
from tests.tokenizer.conftest import random_pixels, tiny_network


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


def test_a_training_draw_keeps_a_patch_at_least_and_varies_the_number_of_codes():
    logits = torch.full((400, 16), -8.0)
    logits[:, 3] = -7.0
    draw = draw_keep(logits, 0.1, torch.Generator().manual_seed(0), fixed_length=0.3, exploration=0.0)
    assert draw.keep.dtype == torch.bool
    assert draw.keep.any(dim=1).all()
    assert 0.6 < draw.free.float().mean() < 0.8
    lengths = draw.keep[~draw.free].sum(dim=1)
    assert len(lengths.unique()) > 8, "the number of codes should vary"
    assert lengths.max() > 14, "it is drawn whatever the logits say"
    assert draw.keep[~draw.free][:, 3].all(), "the best by score"
    assert draw.keep[draw.free].sum(dim=1).unique().tolist() == [1], "the rest follows the logits"


def test_without_noise_and_exploration_the_draw_is_the_choice_of_inference():
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    draw = draw_keep(logits, 0.0, torch.Generator().manual_seed(1), fixed_length=0.0, exploration=0.0)
    assert draw.free.all()
    assert torch.equal(draw.keep, choose(logits))


def test_explored_cells_are_kept_as_often_as_the_others_whatever_their_logits():
    logits = torch.cat([torch.full((800, 4), 9.0), torch.full((800, 12), -9.0)], dim=1)
    generator = torch.Generator().manual_seed(0)
    keep = draw_keep(logits, 0.0, generator, fixed_length=0.0, exploration=0.4).keep.float()
    # of a cell that is always kept 0.4 are explored, and 3/4 of these are dropped
    assert float(keep[:, :4].mean()) == pytest.approx(1 - 0.4 * 0.75, abs=0.03)
    assert float(keep[:, 4:].mean()) == pytest.approx(0.4 * 0.25, abs=0.02)
    assert float(keep.mean()) == pytest.approx(0.25, abs=0.02)


def test_the_level_holds_the_rate_of_a_batch_and_is_remembered():
    selector = {"kind": "error", "rate": 0.25, "fixed_length_probability": 0, "exploration_probability": 0}
    network = tiny_network(selector=selector)
    pixels = random_pixels(64, 32)
    with torch.no_grad():
        for step in range(60):
            drawn = network(
                pixels, pixels[:, ::2, ::2], None, torch.Generator().manual_seed(step), False, 0.0
            )
            assert float(drawn.keep_rate) == pytest.approx(0.25, abs=0.02)
    network.eval()
    logits = network.selector(network.embed(pixels))
    assert float(choose(logits).float().mean()) == pytest.approx(0.25, abs=0.03)
    for rate in (0.25, 0.5):
        network.set_level([pixels[:16], pixels[16:]], rate)
        kept = choose(network.selector(network.embed(pixels)))
        assert float(kept.float().mean()) == pytest.approx(rate, abs=0.02)


def test_patches_are_taken_the_dearest_first_and_relieve_their_neighbours():
    """Against the plain algorithm, one image and one patch at a time."""
    selector = Selector(8, grid=4, neighbor_suppression=0.4)
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
    assert torch.allclose(selector.suppress_neighbors(cost), expected, atol=1e-5)
    kept = choose(selector.suppress_neighbors(cost[1:2]), budget=8)
    assert kept.view(4, 4).tolist() == [[y % 2 == x % 2 for x in range(4)] for y in range(4)], (
        "a chequerboard"
    )


class Toy:
    """Images of 16 cells, four of them marked: a dropped one costs 0.2, any other 0.05, a kept one 0.05.

    Cells 8 and 9 are hard whether they are kept or not: their error is large and there is nothing to gain.
    """

    def __init__(self, width: int = 32):
        self.source = torch.Generator().manual_seed(0)
        self.width = width

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden rows (B, 16, D), and which cells are marked (B, 16)."""
        hidden = torch.randn(size, 16, self.width, generator=self.source)
        hidden[..., 0] = -2.0
        hidden[:, 8:10, 0] = 2.0
        marked = torch.rand(size, 16, generator=self.source).argsort(dim=1) < 4
        hidden[..., 1] = torch.where(marked, 2.0, -2.0)
        return hidden, marked

    def errors(self, marked: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Squared errors (B, 16) of a reconstruction."""
        rmse = torch.where(marked & ~keep, 0.2, 0.05)
        rmse[:, 8:10] = 0.3
        return rmse.square()


@pytest.fixture(scope="module")
def trained() -> tuple[ErrorSelector, Toy]:
    torch.manual_seed(0)
    toy, selector = Toy(), ErrorSelector(32)
    optimizer = torch.optim.Adam(selector.parameters(), lr=1e-2)
    for step in range(250):
        hidden, marked = toy.batch(32)
        errors = selector.errors(hidden)
        scores = selector.scores(errors)
        logit_bias = selector.logit_bias_for(scores, 0.25)
        selector.update_logit_bias(logit_bias)
        generator = torch.Generator().manual_seed(step)
        keep = draw_keep(scores + logit_bias, 0.3, generator, fixed_length=0.5, exploration=0.1).keep
        optimizer.zero_grad()
        selector.loss(errors, toy.errors(marked, keep), keep).backward()
        optimizer.step()
    return selector.eval(), toy


def test_it_learns_which_cells_gain_from_a_code(trained):
    """Not those of the largest error: what counts is the difference that a code makes."""
    selector, toy = trained
    hidden, marked = toy.batch(64)
    marked[:, 8:10] = False  # nothing is gained there
    with torch.no_grad():
        order = rank(selector(hidden))
        errors = selector.errors(hidden)
    assert float(order[marked].float().mean()) < 2.0, "marked cells come first"
    assert float(errors[..., 0][marked].mean()) == pytest.approx(0.2, abs=0.04)
    assert float(errors[..., 1][marked].mean()) == pytest.approx(0.05, abs=0.03)
    hard = errors[:, 8:10]
    assert float(hard.mean()) == pytest.approx(0.3, abs=0.05)


def test_predicted_psnr_rises_with_every_code_and_with_what_it_gains(trained):
    selector, toy = trained
    hidden, _ = toy.batch(8)
    with torch.no_grad():
        expected = selector.predicted_psnr(hidden)
        kept = selector.errors(hidden)[..., 1].square().mean(dim=1)
        selector.calibration.copy_(torch.tensor([0.5, 3.0, 0.0, 0.0]))
        halved = selector.predicted_psnr(hidden)
        selector.calibration.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert expected.shape == (8, 16)
    assert (expected.diff(dim=1) >= 0).all()
    assert torch.allclose(halved, 0.5 * expected + 3.0, atol=1e-4)
    # with every cell kept it is the PSNR of the predicted errors of kept cells, as far as keeping helps
    assert (expected[:, -1] >= -10 * kept.log10() - 1e-3).all()


def test_calibration_finds_what_each_number_of_codes_is_worth():
    """Errors are predicted as if neighbours were kept: few codes reach less than their gains add up to."""
    generator = torch.Generator().manual_seed(0)
    summed = 12 + torch.rand(20, 16, generator=generator).cumsum(dim=1)
    wanted = torch.tensor([1.2, -3.0, 1.5, 0.1])
    terms = psnr_terms(summed)
    assert terms[0, -1].tolist() == [float(summed[0, -1]), 1.0, 0.0, 0.0]
    found = least_squares(terms.flatten(0, 1), (terms @ wanted).flatten())
    assert torch.allclose(found, wanted, atol=1e-3)
    upside_down = least_squares(terms.flatten(0, 1), -summed.flatten())
    assert float(upside_down[0]) == pytest.approx(0.1)


def test_predicted_psnr_never_falls_whatever_its_calibration(trained):
    selector, toy = trained
    hidden, _ = toy.batch(8)
    with torch.no_grad():
        selector.calibration.copy_(torch.tensor([1.0, 0.0, -2.0, 0.3]))
        expected = selector.predicted_psnr(hidden)
        selector.calibration.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert (expected.diff(dim=1) >= 0).all()


def test_a_picture_without_detail_reaches_a_quality_with_one_code(trained):
    selector, toy = trained
    hidden, _ = toy.batch(64)
    hidden[..., 0] = -2.0  # no hard cells
    detailed = hidden.clone()
    hidden[..., 1] = -2.0  # no marked ones
    with torch.no_grad():
        flat, other = ((selector.predicted_psnr(each) < 22.0).sum(dim=1) + 1 for each in (hidden, detailed))
    assert float((flat == 1).float().mean()) > 0.9
    assert 2 <= float(other.float().mean()) <= 5


def test_equal_gains_are_equal_scores_and_ties_go_to_the_earlier_cell():
    errors = torch.zeros(1, 4, 2)
    errors[0, 2, 0] = 0.1
    assert rank(ErrorSelector.scores(errors)).tolist() == [[1, 2, 0, 3]]


def test_the_selectors_loss_moves_no_other_part():
    network = tiny_network(spread=False)
    pixels = random_pixels(6, 32)
    keep, _, errors, _ = network._merge_dense(pixels, torch.Generator().manual_seed(0), 0.1, SINGLE_PROCESS)
    network.selector.loss(errors, torch.rand(6, 16) / 100, keep).backward()
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert moved == {"selector"}
