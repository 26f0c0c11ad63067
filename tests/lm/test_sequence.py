"""Sequences: each layout's ids, what is learned of it, and which conditions are dropped."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pictish.lm.config import DropoutConfig
from pictish.lm.sequence import (
    Codes,
    Document,
    Features,
    Text,
    answer,
    build,
    caption,
    draw_drop,
    drawing,
    edit,
    picture_ids,
    picture_of,
)
from pictish.lm.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=100, codes=50, eos=1)
SOURCE, TARGET = Codes(np.array([3, 49], np.uint16)), Codes(np.array([7, 0, 7], np.uint16))
SOURCE_IDS, TARGET_IDS = [100, 105, 151, 101], [100, 109, 102, 109, 101]


def encode(text: str) -> list[int]:
    return [ord(character) % 90 + 2 for character in text]


make = partial(build, vocabulary=VOCABULARY, encode=encode, eos=1)


def learned(document: Document) -> list[int]:
    return document.ids[document.learn].tolist()


def test_caption():
    document = make("caption", caption(SOURCE, "abc"))
    assert document.ids.tolist() == [*SOURCE_IDS, *encode("abc"), 1]
    assert learned(document) == [*encode("abc"), 1]


def test_drawing_learns_from_the_opening_marker_on():
    document = make("drawing", drawing("abc", TARGET))
    assert document.ids.tolist() == [*encode("abc"), *TARGET_IDS, 1]
    assert learned(document) == [*TARGET_IDS, 1]


def test_edit_learns_the_target_alone():
    document = make("edit", edit(SOURCE, "ab", TARGET))
    assert document.ids.tolist() == [*SOURCE_IDS, *encode("ab"), *TARGET_IDS, 1]
    assert learned(document) == [*TARGET_IDS, 1]


def test_answer_learns_the_answer_alone():
    document = make("answer", answer(SOURCE, "why", "so"))
    assert document.ids.tolist() == [*SOURCE_IDS, *encode("Question: why Answer: so"), 1]
    assert learned(document) == [*encode(" so"), 1]


def test_interleaved_pictures_in_any_number():
    parts = [Text("a", True), replace(SOURCE, learn=True), replace(TARGET, learn=True), Text("bc", True)]
    document = make("interleaved", parts)
    assert document.ids.tolist() == [*encode("a"), *SOURCE_IDS, *TARGET_IDS, *encode("bc"), 1]
    assert document.learn.all()


def test_features_stand_between_markers_and_are_never_learned():
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    document = make("caption", caption(Features(values), "ab"))
    assert document.ids[0] == VOCABULARY.begin
    assert document.ids[4] == VOCABULARY.end
    assert document.places.tolist() == [1, 2, 3]
    assert np.array_equal(document.features, values)
    assert learned(document) == [*encode("ab"), 1]
    two = make("interleaved", [Features(values), Text("a", True), Features(values[:1])])
    assert two.places.tolist() == [1, 2, 3, 7]
    assert two.features.shape == (4, 2)


def test_dropped_conditions_leave_what_generation_feeds():
    both = draw_drop(DropoutConfig(text=0, image=0, both=1), True, 0.5)
    assert make("edit", edit(SOURCE, "ab", TARGET, both)).ids.tolist() == [*TARGET_IDS, 1]
    text = draw_drop(DropoutConfig(text=1, image=0, both=0), True, 0.5)
    assert make("edit", edit(SOURCE, "ab", TARGET, text)).ids.tolist() == [*SOURCE_IDS, *TARGET_IDS, 1]
    image = draw_drop(DropoutConfig(text=0, image=1, both=0), True, 0.5)
    assert make("edit", edit(SOURCE, "ab", TARGET, image)).ids.tolist() == [*encode("ab"), *TARGET_IDS, 1]
    drop = draw_drop(DropoutConfig(text=1, image=0, both=0), False, 0.5)
    assert make("drawing", drawing("abc", TARGET, drop)).ids.tolist() == [*TARGET_IDS, 1]


def test_a_picture_alone_does_not_learn_to_end():
    """A caption begins likewise; it would learn to end before its first word."""
    nothing = draw_drop(DropoutConfig(text=0, image=0, both=1), True, 0.5)
    for document in (
        make("drawing", drawing("abc", TARGET, nothing)),
        make("edit", edit(SOURCE, "ab", TARGET, nothing)),
        make("interleaved", [replace(TARGET, learn=True)]),
    ):
        assert document.ids.tolist() == [*TARGET_IDS, 1]
        assert learned(document) == TARGET_IDS
    text = draw_drop(DropoutConfig(text=1, image=0, both=0), True, 0.5)
    assert learned(make("edit", edit(SOURCE, "ab", TARGET, text))) == [*TARGET_IDS, 1]


def test_dropout_happens_as_often_as_configured():
    rates = DropoutConfig(text=0.2, image=0.1, both=0.05)
    drawn = [draw_drop(rates, True, chance) for chance in np.linspace(0, 1, 10_000, endpoint=False)]
    counts = {case: sum((d.text, d.image) == case for d in drawn) / 10_000 for case in np.ndindex(2, 2)}
    assert counts == pytest.approx({(1, 1): 0.05, (1, 0): 0.2, (0, 1): 0.1, (0, 0): 0.65}, abs=1e-3)
    texts = [draw_drop(rates, False, chance).text for chance in np.linspace(0, 1, 10_000, endpoint=False)]
    assert np.mean(texts) == pytest.approx(0.25, abs=1e-3)


def test_a_picture_without_tokens_or_with_unknown_codes_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        make("drawing", drawing("a", Codes(TARGET.codes[:0])))
    with pytest.raises(ValueError, match="codes 0 to 49"):
        make("drawing", drawing("a", Codes(np.array([50]))))


PLACED = Vocabulary(text=100, codes=50, has_mask=False, skips=15, eos=1)
SKIPS = 151  # <skip-00001> is id 152


def test_skips_stand_where_cells_do_not_follow_each_other():
    written = partial(picture_ids, vocabulary=PLACED)
    codes = np.array([3, 49, 0], np.uint16)
    assert written(codes, np.array([0, 1, 2])).tolist() == [100, 105, 151, 102, 101]
    assert written(codes, np.array([3, 4, 15])).tolist() == [100, SKIPS + 3, 105, 151, SKIPS + 10, 102, 101]
    assert written(codes[:1], np.array([15])).tolist() == [100, SKIPS + 15, 105, 101]
    placed = Codes(codes, np.array([1, 2, 9]))
    document = build("drawing", drawing("abc", placed), PLACED, encode, 1)
    assert learned(document) == [100, SKIPS + 1, 105, 151, SKIPS + 6, 102, 101, 1], "skips are learned too"
    assert make("drawing", drawing("abc", placed)).ids.tolist() == [
        *encode("abc"),
        100,
        105,
        151,
        102,
        101,
        1,
    ]


@st.composite
def placed(draw) -> tuple[int, list[int], list[int]]:
    grid = draw(st.integers(2, 40))
    cells = sorted(draw(st.sets(st.integers(0, grid - 1), min_size=1)))
    codes = draw(st.lists(st.integers(0, 9), min_size=len(cells), max_size=len(cells)))
    return grid, codes, cells


@given(placed())
def test_codes_and_cells_come_back_from_ids(case):
    grid, codes, cells = case
    for has_mask, skips in itertools.product((False, True), (0, grid - 1)):
        vocabulary = Vocabulary(7, 10, has_mask, skips)
        ids = picture_ids(np.array(codes), np.array(cells), vocabulary)
        found, places = picture_of(ids, vocabulary)
        assert found.tolist() == codes
        assert (None if places is None else places.tolist()) == (cells if skips else None)
        assert len(ids) <= (grid if skips else len(codes)) + 2, "never more ids than cells"


def test_a_placed_model_needs_cells_and_right_ones():
    codes = np.array([1, 2])
    with pytest.raises(ValueError, match=r"^codes without cells; this language model needs the cell"):
        picture_ids(codes, None, PLACED)
    for cells in ([1, 1], [2, 1], [-1, 0], [0, 16], [0], [0, 1, 2]):
        with pytest.raises(ValueError, match=r"^2 rising cells from 0 to 15 were asked for, found \["):
            picture_ids(codes, np.array(cells), PLACED)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ([], "one or more codes"),
        ([SKIPS + 1], "a skip stands before a code"),
        ([105, SKIPS + 1], "a skip stands before a code"),
        ([SKIPS + 1, SKIPS + 1, 105], "a skip stands before a code"),
        ([SKIPS + 15, 105, 105], "cells 0 to 15; found a code on 16"),
        ([5, 105], "of codes were asked for, found 5"),
        ([100, 105], "of codes were asked for, found 100"),
    ],
)
def test_ids_that_are_no_picture_are_refused(inner, message):
    with pytest.raises(ValueError, match=message):
        picture_of(np.array([100, *inner, 101]), PLACED)


def test_more_dropout_than_everything_is_refused():
    with pytest.raises(ValueError, match="above 1"):
        DropoutConfig(text=0.6, image=0.3, both=0.2)
