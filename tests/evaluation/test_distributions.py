import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.evaluation.distributions import SUBSETS, frechet_distance, kernel_distance

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(2, 40), st.integers(1, 30))
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, number: int, features: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, features))


def exactly(mean: np.ndarray, deviation: np.ndarray, number: int = 64, seed: int = 0) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly `mean` and the squares of `deviation`."""
    rows = normal(seed, number, len(mean))
    basis, _ = np.linalg.qr(rows - rows.mean(axis=0))
    return mean + basis * np.sqrt(number - 1) * deviation


@SETTINGS
@given(seeds, sizes)
def test_a_set_has_no_frechet_distance_to_itself_also_with_fewer_pictures_than_features(seed, size):
    rows = normal(seed, *size)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9 * max(1, size[1]))


@SETTINGS
@given(seeds, seeds)
def test_frechet_distance_of_gaussians_has_a_closed_form(one, other):
    (m1, m2), (s1, s2) = normal(one, 2, 5), abs(normal(other, 2, 5)) + 0.1
    expected = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)  # covariances along the same axes
    assert frechet_distance(exactly(m1, s1, 64, one), exactly(m2, s2, 80, other)) == pytest.approx(expected)


def test_frechet_distance_is_that_of_the_root_of_the_product_of_covariances():
    from scipy.linalg import sqrtm

    ours, theirs = normal(0, 50, 6) @ normal(1, 6, 6), normal(2, 60, 6) @ normal(3, 6, 6) + 1
    one, other = np.cov(ours.T), np.cov(theirs.T)
    apart = ours.mean(axis=0) - theirs.mean(axis=0)
    expected = apart @ apart + np.trace(one + other - 2 * np.real(sqrtm(one @ other)))
    assert frechet_distance(ours, theirs) == pytest.approx(expected)


@SETTINGS
@given(seeds, sizes)
def test_the_order_of_the_pictures_does_not_matter(seed, size):
    ours, theirs = normal(seed, *size), normal(seed + 1, *size) + 0.5
    shuffled = np.random.default_rng(seed).permutation(ours)
    assert frechet_distance(shuffled, theirs) == pytest.approx(frechet_distance(ours, theirs))
    assert kernel_distance(shuffled, theirs, 0) == kernel_distance(ours, theirs, 0)


def test_kernel_distance_of_one_distribution_is_around_zero_and_grows_with_a_shift():
    values = [kernel_distance(normal(s, 200, 8), normal(s + 100, 200, 8), 0)["mean"] for s in range(20)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(20)
    assert min(values) < 0 < max(values), "an unbiased estimate falls on both sides"
    shifted = [
        kernel_distance(normal(0, 200, 8), normal(1, 200, 8) + by, 0)["mean"] for by in (0.0, 0.3, 0.6, 1.2)
    ]
    assert shifted == sorted(shifted)
    assert shifted[1] > 5 * np.std(values)


def test_kernel_distance_by_hand():
    """Two images a set leave one subset: (k(x1,x2) + k(y1,y2)) - the mean of k(x,y)."""
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])
    cross = np.mean([2**3, 1.5**3, 1**3, 1.5**3])
    found = kernel_distance(x, y, 0)
    assert found["mean"] == pytest.approx(1**3 + 2**3 - 2 * cross)
    assert found["std"] == pytest.approx(0, abs=1e-12)
    assert SUBSETS > 1


def test_one_picture_has_no_distribution():
    assert frechet_distance(normal(0, 1, 3), normal(1, 5, 3)) is None
    assert kernel_distance(normal(0, 5, 3), normal(1, 1, 3), 0) is None
