import itertools

import pytest

from pictish.training.schedule import warmup_cosine


def test_shape_of_the_schedule():
    rates = [warmup_cosine(step, peak=2.0, warmup=4, total=24, floor=0.5) for step in range(30)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[14] == pytest.approx(1.25)  # half-way down
    assert all(first > second for first, second in itertools.pairwise(rates[4:25]))
    assert rates[24:] == [0.5] * 6


def test_no_warmup_and_no_decay():
    assert warmup_cosine(0, peak=1.0, warmup=0, total=10) == 1.0
    assert warmup_cosine(9, peak=1.0, warmup=10, total=10) == 1.0


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup 11 must be 0 to steps, which is 10"):
        warmup_cosine(0, peak=1.0, warmup=11, total=10)
