"""Sequences: each layout's ids, what is learned of it, and which conditions are dropped."""

from functools import partial

import numpy as np
import pytest

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
)
from pictish.lm.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=100, codes=50, eos=1)
SOURCE, TARGET = np.array([3, 49], np.uint16), np.array([7, 0, 7], np.uint16)
SOURCE_IDS, TARGET_IDS = [100, 105, 151, 101], [100, 109, 102, 109, 101]


def encode(text: str) -> list[int]:
    return [ord(character) % 90 + 2 for character in text]


make = partial(build, vocabulary=VOCABULARY, encode=encode, eos=1)


def learned(document: Document) -> list[int]:
    return document.ids[document.learn].tolist()


def test_caption():
    document = make("caption", caption(Codes(SOURCE), "abc"))
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
    document = make("answer", answer(Codes(SOURCE), "why", "so"))
    assert document.ids.tolist() == [*SOURCE_IDS, *encode("Question: why Answer: so"), 1]
    assert learned(document) == [*encode(" so"), 1]


def test_interleaved_pictures_in_any_number():
    parts = [Text("a", True), Codes(SOURCE, True), Codes(TARGET, True), Text("bc", True)]
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
        make("interleaved", [Codes(TARGET, True)]),
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
        make("drawing", drawing("a", TARGET[:0]))
    with pytest.raises(ValueError, match="codes 0 to 49"):
        make("drawing", drawing("a", np.array([50])))


def test_more_dropout_than_everything_is_refused():
    with pytest.raises(ValueError, match="above 1"):
        DropoutConfig(text=0.6, image=0.3, both=0.2)
