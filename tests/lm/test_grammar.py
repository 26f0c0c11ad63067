import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.data.tokens import TokenizedImage
from pictish.lm.grammar import (
    DecodingState,
    GenerationConstraints,
    ImageSegment,
    Segment,
    State,
    TextSegment,
    legal_ids,
    one_image,
)
from pictish.lm.sequence import picture_ids
from pictish.lm.vocabulary import Vocabulary

# few text ids: images and EOS are common
VOCABULARY = Vocabulary(6, 5, eos=2, unspoken=(0, 1), blank=frozenset({0, 1, 2, 5}))
LEGAL = legal_ids(VOCABULARY, VOCABULARY.size + 4)


def ids_of(segments: list[Segment], inside: bool) -> list[int]:
    """What was generated, without EOS; `inside` prompts hold the first [IMG]."""
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, TextSegment):
            ids += segment.ids
        else:
            codes = VOCABULARY.ids_of(torch.tensor(segment.codes)).tolist()
            ids += [VOCABULARY.begin, *codes, VOCABULARY.end]
    return ids[1:] if inside else ids


def check(segments: list[Segment], constraints: GenerationConstraints, inside: bool) -> None:
    """All that a request promises of what it gets."""
    images = [segment for segment in segments if isinstance(segment, ImageSegment)]
    texts = [segment for segment in segments if isinstance(segment, TextSegment)]
    assert len(images) <= constraints.max_images
    assert all(constraints.min_codes <= len(image.codes) <= constraints.max_codes for image in images)
    assert all(0 <= code < VOCABULARY.codes for image in images for code in image.codes)
    assert all(text.ids and set(text.ids) <= {3, 4, 5} for text in texts)
    assert constraints.text or not texts
    assert images or any(set(text.ids) - VOCABULARY.blank for text in texts)
    assert len(ids_of(segments, inside)) <= constraints.max_new_tokens
    assert not any(a in texts and b in texts for a, b in itertools.pairwise(segments))
    if inside or not constraints.text:
        assert isinstance(segments[0], ImageSegment)


@st.composite
def requests(draw) -> tuple[GenerationConstraints, bool]:
    least = draw(st.integers(1, 4))
    most = draw(st.integers(least, 7))
    text, images = draw(st.booleans()), draw(st.integers(0, 3))
    inside = images > 0 and draw(st.booleans())
    smallest = 1 if text and not inside else least + 2
    room, speak = draw(st.integers(smallest, 30)), text or not images
    return GenerationConstraints(room, speak, max_images=images, min_codes=least, max_codes=most), inside


@settings(max_examples=300, deadline=None)
@given(requests(), st.integers(0, 2**32))
def test_whatever_is_chosen_pictures_are_legal_and_pieces_round_trip(case, seed):
    constraints, inside = case
    chooser = random.Random(seed)
    decoding = DecodingState(VOCABULARY, constraints, inside)
    while decoding.state is not None:
        decoding.take(chooser.choice(LEGAL.of([decoding])[0].nonzero()[:, 0].tolist()))
    check(decoding.segments, constraints, inside)
    again = DecodingState(VOCABULARY, constraints, inside)
    for token in ids_of(decoding.segments, inside):
        assert LEGAL.of([again])[0, token]
        again.take(token)
    if again.state is not None:  # text that EOS ended
        again.take(VOCABULARY.eos)
    assert again.state is None
    assert again.segments == decoding.segments


def test_what_each_state_allows():
    allowed = {
        state.name: row.nonzero()[:, 0].tolist() for state, row in zip(State, LEGAL.table, strict=True)
    }
    assert allowed == {
        "VISIBLE": [3, 4],
        "FIRST": [3, 4, 5],
        "FIRST_OR_BEGIN": [3, 4, 5, 6],
        "TEXT": [2, 3, 4, 5],
        "TEXT_OR_BEGIN": [2, 3, 4, 5, 6],
        "BEGIN": [6],
        "CODE": [8, 9, 10, 11, 12],
        "CODE_OR_END": [7, 8, 9, 10, 11, 12],
        "END": [7],
    }
    with pytest.raises(ValueError, match="the vocabulary has 14 ids, the model only 13"):
        legal_ids(VOCABULARY, 13)


PLACED = Vocabulary(6, 5, skips=7, eos=2, unspoken=(0, 1), blank=frozenset({0, 1, 2, 5}))
SKIP = PLACED.ranges["skips"].first - 1  # the id of a skip of 0 cells, if there were one
PLACED_LEGAL = legal_ids(PLACED, PLACED.size + 4)


def run(constraints: GenerationConstraints, inside: bool, choose) -> DecodingState:
    """A line of a placed model on which `choose` has one of the legal ids each time."""
    decoding = DecodingState(PLACED, constraints, inside)
    while decoding.state is not None:
        legal = PLACED_LEGAL.of([decoding])[0].nonzero()[:, 0].tolist()
        assert legal, "there is always something to say"
        decoding.take(choose(legal))
    return decoding


def greedy_for(vocabulary_range: str, chooser: random.Random):
    """Prefers ids of one range, the largest first: skips as long as may be, or codes without end."""
    holds = PLACED.ranges[vocabulary_range].holds

    def choose(legal: list[int]) -> int:
        return max([token for token in legal if holds(token)] or [chooser.choice(legal)])

    return choose


@settings(max_examples=400, deadline=None)
@given(requests(), st.integers(0, 2**32), st.sampled_from(["any", "skips", "codes"]))
def test_whatever_is_chosen_codes_lie_on_rising_cells_inside_the_grid(case, seed, wish):
    constraints, inside = case
    chooser = random.Random(seed)
    decoding = run(constraints, inside, chooser.choice if wish == "any" else greedy_for(wish, chooser))
    assert decoding.left >= 0
    for segment in decoding.segments:
        if isinstance(segment, ImageSegment):
            assert segment.cells is not None
            assert len(segment.cells) == len(segment.codes)
            assert constraints.min_codes <= len(segment.codes) <= constraints.max_codes
            assert all(0 <= code < PLACED.codes for code in segment.codes)
            assert all(a < b for a, b in itertools.pairwise((-1, *segment.cells, PLACED.cells)))


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(0, 7), min_size=1).map(sorted), st.data())
def test_what_training_writes_passes_unchanged(cells, data):
    """Also with the least and most codes that the image has, and with no more room than it takes."""
    codes = data.draw(st.lists(st.integers(0, 4), min_size=len(cells), max_size=len(cells)))
    image = TokenizedImage(codes, cells, (2, 4), (64, 64), "0" * 12, 5)
    ids = picture_ids(image.ids, image.cells, PLACED).tolist()
    for constraints in (
        one_image(len(codes), len(codes), cells=8),
        one_image(8, cells=8),
        GenerationConstraints(len(ids), text=False, max_images=1, min_codes=len(codes), max_codes=8),
    ):
        decoding = DecodingState(PLACED, constraints, inside=False)
        for token in ids:
            assert PLACED_LEGAL.of([decoding])[0, token]
            decoding.take(token)
        assert decoding.segments == [ImageSegment(tuple(codes), tuple(cells))]
        assert decoding.state is None


def test_what_may_follow_on_a_grid_of_eight_cells():
    def after(
        *tokens: int, constraints: GenerationConstraints | None = None
    ) -> tuple[list[int], list[int], bool]:
        """Which codes and skips are legal, and whether the end is."""
        decoding = DecodingState(PLACED, constraints or one_image(8, cells=8), inside=True)
        for token in tokens:
            assert PLACED_LEGAL.of([decoding])[0, token]
            decoding.take(token)
        legal = PLACED_LEGAL.of([decoding])[0].nonzero()[:, 0]
        codes, skips = (PLACED.ranges[name] for name in ("codes", "skips"))
        found = [each.values_of(legal[each.holds(legal)]).tolist() for each in (codes, skips)]
        assert len(legal) == len(found[0]) + len(found[1]) + (PLACED.end in legal)
        return found[0], found[1], bool(PLACED.end in legal)

    every, code = [0, 1, 2, 3, 4], PLACED.first_code
    assert after() == (every, [1, 2, 3, 4, 5, 6, 7], False), "no end before a code"
    assert after(code) == (every, [1, 2, 3, 4, 5, 6], True)
    assert after(SKIP + 3) == (every, [], False), "neither a skip nor the end behind a skip"
    assert after(SKIP + 3, code) == (every, [1, 2, 3], True)
    assert after(SKIP + 7, code) == ([], [], True), "no cell is left"
    assert after(code, SKIP + 5, code) == (every, [], True), "a skip would lead behind the last cell"
    assert after(*[code] * 8) == ([], [], True)
    least = one_image(8, 4, cells=8)
    assert after(constraints=least) == (every, [1, 2, 3, 4], False), "cells for four codes are left"
    assert after(code, code, constraints=least) == (every, [1, 2, 3, 4], False)
    assert after(code, constraints=one_image(1, cells=8)) == ([], [], True)
    tight = GenerationConstraints(4, max_images=1, min_codes=2, max_codes=8)
    assert after(constraints=tight) == (every, [1, 2, 3, 4, 5, 6], False)
    assert after(SKIP + 2, code, constraints=tight) == (every, [], False), (
        "there is room for a code and the end"
    )


def test_lines_of_a_batch_have_masks_of_their_own():
    decodings = [DecodingState(PLACED, one_image(8, cells=8), inside=True) for _ in range(3)]
    decodings[1].take(SKIP + 6)
    for token in (PLACED.first_code, SKIP + 4, PLACED.first_code):
        decodings[2].take(token)
    together = PLACED_LEGAL.of(decodings)
    assert torch.equal(together, torch.cat([PLACED_LEGAL.of([decoding]) for decoding in decodings]))
    assert len({tuple(row.tolist()) for row in together}) == 3


@pytest.mark.parametrize(("most", "room"), [(1, 2), (3, 6), (4, 8), (5, 8), (8, 8)])
def test_one_image_has_room_for_its_skips(most, room):
    assert one_image(most, cells=8).max_new_tokens == room + 2
    longest = max(
        len(picture_ids(np.zeros(count, np.int64), np.array(cells), PLACED))
        for count in range(1, most + 1)
        for cells in itertools.combinations(range(8), count)
    )
    assert longest == room + 2, "no room is wasted"


def test_requests_that_a_grid_cannot_meet():
    with pytest.raises(ValueError, match="min_codes 9 asked for; an image has 8 cells"):
        DecodingState(PLACED, one_image(9, 9), inside=True)


def states_of(
    constraints: GenerationConstraints, tokens: list[int], inside: bool = False
) -> list[State | None]:
    decoding = DecodingState(VOCABULARY, constraints, inside)
    states = [decoding.state]
    for token in tokens:
        decoding.take(token)
        states.append(decoding.state)
    return states


def test_one_image_and_nothing_else():
    constraints = one_image(max_codes=3, min_codes=2)
    states = [State.BEGIN, State.CODE, State.CODE, State.CODE_OR_END, State.END, None]
    assert states_of(constraints, [6, 8, 9, 8, 7]) == states
    assert states_of(constraints, [8, 9, 7], inside=True) == [State.CODE, State.CODE, State.CODE_OR_END, None]


def test_an_image_ends_in_time_and_begins_only_where_it_fits():
    constraints = GenerationConstraints(6, max_images=2, min_codes=2, max_codes=9)
    states = (
        [State.FIRST_OR_BEGIN, State.TEXT_OR_BEGIN] + [State.CODE] * 2 + [State.CODE_OR_END, State.END, None]
    )
    assert states_of(constraints, [3, 6, 8, 8, 8, 7]) == states
    assert states_of(constraints, [3, 3, 3])[-2:] == [State.TEXT_OR_BEGIN, State.TEXT]


def test_eos_ends_a_line():
    assert states_of(GenerationConstraints(9, max_images=1), [3, 2])[-1] is None
    assert states_of(GenerationConstraints(9, max_images=1), [8, 7, 2], inside=True)[-2:] == [
        State.TEXT,
        None,
    ]


def test_an_answer_is_never_empty():
    assert states_of(GenerationConstraints(9), [5, 5, 3, 2]) == [State.FIRST] * 3 + [State.TEXT, None]
    assert states_of(GenerationConstraints(2), [5, 3]) == [State.FIRST, State.VISIBLE, None]
    assert states_of(GenerationConstraints(4, max_images=1), [5, 5, 5]) == [
        *[State.FIRST_OR_BEGIN] * 2,
        State.FIRST,
        State.VISIBLE,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GenerationConstraints(5, text=False), "text or at least one image"),
        (lambda: GenerationConstraints(5, max_images=-1), "text or at least one image"),
        (lambda: GenerationConstraints(0), "max_new_tokens 0 asked for; at least 1"),
        (lambda: GenerationConstraints(5, text=False, max_images=1, min_codes=4), "at least 6 would fit"),
        (lambda: one_image(3, min_codes=4), "min_codes 4 must be 1 to max_codes, which is 3"),
        (lambda: one_image(3, min_codes=0), "min_codes 0 must be 1"),
        (
            lambda: DecodingState(VOCABULARY, GenerationConstraints(5), inside=True),
            "the constraints allow no image",
        ),
        (
            lambda: DecodingState(
                VOCABULARY, GenerationConstraints(2, max_images=1, min_codes=2), inside=True
            ),
            "does not fit",
        ),
    ],
)
def test_requests_that_cannot_be_met(make, message):
    with pytest.raises(ValueError, match=message):
        make()
