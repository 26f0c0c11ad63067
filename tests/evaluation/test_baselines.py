import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.evaluation.baselines import computed_cells, random_cells, uniform_cells

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def grids_and_numbers(draw):
    grid = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    return grid, draw(st.integers(1, grid[0] * grid[1]))


@SETTINGS
@given(grids_and_numbers())
def test_all_keep_exactly_the_number_asked_for(case):
    grid, number = case
    pixels = np.zeros((2 * grid[0], 3 * grid[1], 3), np.uint8)
    made = (uniform_cells(grid, number), random_cells(grid, number, 0, "a.png"))
    for keep in (*made, computed_cells(grid, number, pixels)):
        assert keep.shape == (grid[0] * grid[1],)
        assert keep.dtype == bool
        assert keep.sum() == number


def test_uniform_cells_are_the_even_patterns_where_there_are_any():
    square = uniform_cells((8, 8), 16).reshape(8, 8)
    rows, columns = np.nonzero(square)
    assert set(np.diff(np.unique(rows))) == set(np.diff(np.unique(columns))) == {2}
    chequers = uniform_cells((8, 8), 32).reshape(8, 8)
    assert (chequers != np.roll(chequers, 1, axis=0)).all()
    assert (chequers != np.roll(chequers, 1, axis=1)).all()


@pytest.mark.parametrize("number", range(1, 65))
def test_uniform_cells_are_spread_better_than_random_ones(number):
    def gap(keep: np.ndarray) -> float:
        """Mean squared distance from a cell to the nearest kept one."""
        places = np.indices((8, 8)).reshape(2, -1).T
        squared = ((places[:, None] - places[keep][None]) ** 2).sum(axis=-1)
        return squared.min(axis=1).mean()

    random = [gap(random_cells((8, 8), number, seed, "a")) for seed in range(20)]
    assert gap(uniform_cells((8, 8), number)) <= np.mean(random)


def test_random_cells_depend_on_seed_and_name_alone():
    def draw(seed: int, name: str) -> bytes:
        return random_cells((8, 8), 20, seed, name).tobytes()

    assert draw(0, "a.png") == draw(0, "a.png")
    draw(0, "not utf-8 \udcff.png")
    assert len({draw(seed, name) for seed in (0, 1) for name in ("a.png", "b.png")}) == 4


def test_random_cells_are_drawn_evenly():
    often = np.mean([random_cells((4, 4), 4, 0, f"{index}") for index in range(4000)], axis=0)
    np.testing.assert_allclose(often, 0.25, atol=0.04)


def test_a_changed_mask_does_not_change_the_next_one():
    uniform_cells((8, 8), 10)[:] = True
    assert uniform_cells((8, 8), 10).sum() == 10


def test_computed_cells_are_those_that_differ_from_what_is_around_and_inside_them():
    picture = np.full((32, 32, 3), 100, np.uint8)
    picture[8:16, 8:16] = 200  # cell (1, 1): another colour than around it
    picture[24:32, 24:28] = 60  # cell (3, 3): two colours
    assert computed_cells((4, 4), 2, picture).nonzero()[0].tolist() == [5, 15]
    flat = computed_cells((4, 4), 3, np.full((32, 32, 3), 77, np.uint8))
    assert flat.nonzero()[0].tolist() == [0, 1, 2], "ties go to the earlier cell"


def test_computed_scores_are_the_definition():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    colours = pixels / 255
    scores = []
    for row in range(3):
        for column in range(3):
            own = colours[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            around = [
                colours[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean((0, 1))
                for y in (np.array([row - 1, row, row + 1]).clip(0, 2))
                for x in (np.array([column - 1, column, column + 1]).clip(0, 2))
            ]
            distance = ((own.mean((0, 1)) - np.mean(around, axis=0)) ** 2).mean()
            scores.append(distance + own.var((0, 1)).mean())
    for number in (1, 4, 9):
        expected = sorted(np.argsort(scores)[-number:].tolist())
        assert computed_cells((3, 3), number, pixels).nonzero()[0].tolist() == expected
