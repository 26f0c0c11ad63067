"""The judge made of held-out images, and how captions are compared."""

import numpy as np
import pytest

from pictish.recipes.own.evaluation import _by_chance, _exact, _token_f1, judged

CAPTIONS = [("a red disc",), ("a blue disc", "disc"), ("a green bar",), ("a red disc", "round")]


def test_a_picture_hits_where_its_own_candidate_is_nearest():
    candidates = np.eye(4)
    found = judged(CAPTIONS, candidates, {"same": candidates, "turned": np.roll(candidates, 1, axis=0)})
    assert found["candidates"] == 4
    assert found["same"]["hit@1"]["mean"] == 1
    # turned: 0 is drawn like 3, which has its caption; 3 like 2, 1 like 0, 2 like 1
    assert found["turned"]["hit@1"]["mean"] == 0.25
    assert found["chance"] == {"hit@1": pytest.approx((2 + 1 + 1 + 2) / 4 / 4)}, "five of four always hit"
    six = np.eye(6)
    found = judged([(str(number),) for number in range(6)], six, {"turned": np.roll(six, 1, axis=0)})
    assert found["turned"]["hit@1"]["mean"] == 0
    assert found["chance"] == {"hit@1": pytest.approx(1 / 6), "hit@5": pytest.approx(5 / 6)}


def test_pictures_that_are_all_alike_hit_nothing():
    flat = np.ones((4, 2)) / 2**0.5
    found = judged([("a",), ("b",), ("c",), ("d",)], flat, {"drawn": flat})
    assert found["drawn"]["hit@1"]["mean"] == 0


def test_chance_is_that_of_drawing_without_putting_back():
    assert _by_chance(np.array([1, 2]), 10, 5) == pytest.approx(
        [0.5, 1 - (8 * 7 * 6 * 5 * 4) / (10 * 9 * 8 * 7 * 6)]
    )


def test_captions_are_compared_by_their_words():
    assert _exact("A red disc.", ["a  red disc"]) == 1
    assert _exact("a red disc", ["a reddish disc"]) == 0
    assert _token_f1("a red disc", ["no", "a blue disc"]) == pytest.approx(2 / 3)
    assert _token_f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert _token_f1("", ["red"]) == 0
