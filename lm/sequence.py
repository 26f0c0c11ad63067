"""One sequence of text and images: a document's parts become ids, what is learned, and embedded features.

An image lies between `[IMG]` and `[/IMG]`, as discrete codes or, for understanding, as continuous features
of the tokenizer's merger (LaVIT, arXiv 2309.04669, section 3.2). No document starts with a BOS.

Where the vocabulary has skips, codes are written with their cells: a skip stands before each code whose cell
does not follow that of the code before it in raster order, and before a first code that is not in cell 0. An
image kept in cells 3, 4 and 9 is `[IMG] <skip-00003> <code-00042> <code-00007> <skip-00004> <code-00042>
[/IMG]`. Below, "codes" includes skips. Without skips cells are not written.

    caption      [IMG] codes [/IMG] text EOS                       learned: text EOS
    drawing      text [IMG] codes [/IMG] EOS                       learned: from [IMG] on
    edit         [IMG] source [/IMG] text [IMG] target [/IMG] EOS  learned: from the second [IMG] on
    answer       [IMG] codes [/IMG] question answer EOS            learned: answer EOS
    interleaved  text and images as they come, EOS               learned: all but continuous features
    dialogue     messages as the chat template has them, EOS       learned: the assistant's, EOS (dialogue.py)
    preference   two of these, one behind the other                learned: the last turn of each

An image that a vision tower looks at has no markers: its rows stand where it does.

Where the vocabulary has [DROP], as that of a masked model, an image is dense: each cell of the grid is a
code or [DROP], in raster order, so that which cells are kept is the model's own choice and its length known.

A drawing or an edit that lost its conditions is an image alone, `[IMG] codes [/IMG] EOS`. Its EOS is not
learned: a caption begins likewise, and would learn to end before its first word.

Legend: L tokens of a document, K tokens of an image, F feature channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pictish.io.files import shown
from pictish.lm.config import DropoutConfig
from pictish.lm.vision.tiles import Seen
from pictish.lm.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]
Encode = Callable[[str], list[int]]  # text to ids; markers in it stay text

QUESTION = "Question: {} Answer:"  # LaVIT's prompt
TASKS = ("caption", "drawing", "edit", "answer", "interleaved", "text", "dialogue")
Task = Literal["caption", "drawing", "edit", "answer", "interleaved", "text", "dialogue"]


@dataclass(frozen=True)
class Text:
    """Text and whether it is to be learned."""

    text: str
    learn: bool = False


@dataclass(frozen=True, eq=False)
class Codes:
    """An image as codes (K,), without any offset, and the cells (K,) they lie on, if they are known."""

    codes: npt.NDArray[np.integer]
    cells: npt.NDArray[np.integer] | None = None
    learn: bool = False


@dataclass(frozen=True, eq=False)
class Features:
    """An image as continuous features (K, F): something to look at, never to be written."""

    values: npt.NDArray[np.float32]


Part = Text | Codes | Features | Seen


@dataclass(frozen=True, eq=False)
class Document:
    """What the language model reads: all (L,) but `features` (M, F), which stand at `places` (M,).

    `pictures` are those that a vision tower looks at, each with the place of its first row.
    """

    task: Task
    ids: Ids
    learn: npt.NDArray[np.bool_]  # whether this id is a target for the token before it
    places: Ids
    features: npt.NDArray[np.float32] | None
    sample: str = ""  # what the sample it was made of is called
    turns: Ids | None = None  # of a dialogue, rising from 0; None: all 0
    # whether the token is a mark between contents: [IMG], [/IMG], an EOS behind an image, a chat template's
    # own; None: none is
    structure: npt.NDArray[np.bool_] | None = None
    pictures: tuple[tuple[int, Seen], ...] = ()
    strides: Ids | None = None  # of the positions, as `Vocabulary.strides` has them; None: all 1
    rejected: int | None = None  # of a preference: where the rejected sequence begins, which sees no chosen

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> Ids:
        """Of the tokens (L,), from 0; a rejected sequence begins anew."""
        steps = np.ones(len(self), np.int64) if self.strides is None else self.strides
        found = np.cumsum(steps) - steps[:1]
        if self.rejected is not None:
            found[self.rejected :] -= found[self.rejected]
        return found


def build(task: Task, parts: Sequence[Part], vocabulary: Vocabulary, encode: Encode, eos: int) -> Document:
    """A document of `parts` that ends with `eos`, learned when the last part is and the image is not alone.

    Raises ValueError as `picture_ids` does.
    """
    assert parts, "a document without parts"
    joined = join(task, parts, vocabulary, encode)
    last, alone = parts[-1], len(parts) == 1
    learn = last.learn and not alone if isinstance(last, Codes) else isinstance(last, Text) and last.learn
    assert joined.turns is not None
    assert joined.structure is not None
    return replace(
        joined,
        ids=np.append(joined.ids, eos),
        learn=np.append(joined.learn, learn),
        turns=np.append(joined.turns, joined.turns[-1:]),
        structure=np.append(joined.structure, not isinstance(last, Text)),
        strides=None if joined.strides is None else np.append(joined.strides, 1),
    )


def pad_text(document: Document, multiple: int, eos: int) -> Document:
    """A document with more of its learned EOS behind it, so that what is learned at its end is no fraction.

    The last run of learned tokens becomes a multiple of `multiple` long; one that ends unlearned stays.
    """
    if not document.learn[-1] or document.ids[-1] != eos:
        return document
    others = np.flatnonzero(~document.learn)
    run = len(document) - (others[-1] + 1 if len(others) else 0)
    more = -run % multiple
    return replace(
        document,
        ids=np.append(document.ids, np.full(more, eos)),
        learn=np.append(document.learn, np.full(more, True)),
        turns=None if document.turns is None else np.append(document.turns, document.turns[-1:].repeat(more)),
        structure=None if document.structure is None else np.append(document.structure, np.full(more, False)),
        strides=None if document.strides is None else np.append(document.strides, np.ones(more, np.int64)),
    )


def concatenate(task: Task, documents: Sequence[Document]) -> Document:
    """One document of several, one behind the other; `turns` are left to the caller."""
    starts = np.cumsum([0, *map(len, documents)])
    features = [one.features for one in documents if one.features is not None]
    structure = [np.zeros(len(one), bool) if one.structure is None else one.structure for one in documents]
    return Document(
        task=task,
        ids=np.concatenate([one.ids for one in documents]),
        learn=np.concatenate([one.learn for one in documents]),
        places=np.concatenate([one.places + at for one, at in zip(documents, starts, strict=False)]),
        features=np.concatenate(features) if features else None,
        pictures=tuple(
            (place + int(at), seen)
            for one, at in zip(documents, starts, strict=False)
            for place, seen in one.pictures
        ),
        structure=np.concatenate(structure),
        strides=np.concatenate(
            [np.ones(len(one), np.int64) if one.strides is None else one.strides for one in documents]
        ),
    )


def preference(chosen: Document, rejected: Document) -> Document:
    """One document of two with the same prompt, which stay in one row and do not see each other.

    Only their last turns are learned: earlier ones are part of the prompt. ValueError for two that are equal.
    """
    if np.array_equal(chosen.ids, rejected.ids):
        raise ValueError("chosen and rejected are the same")
    joined = concatenate(chosen.task, (chosen, rejected))
    last = [
        np.full(len(one), True) if one.turns is None else one.turns == one.turns[-1]
        for one in (chosen, rejected)
    ]
    return replace(joined, learn=joined.learn & np.concatenate(last), rejected=len(chosen))


def join(task: Task, parts: Sequence[Part], vocabulary: Vocabulary, encode: Encode) -> Document:
    """`parts` one after the other, with nothing behind them: what a prompt is made of."""
    ids: list[Ids] = [np.zeros(0, dtype=np.int64)]
    learn: list[bool] = []
    turns: list[int] = []
    places: list[Ids] = [np.zeros(0, dtype=np.int64)]
    features: list[npt.NDArray[np.float32]] = []
    pictures: list[tuple[int, Seen]] = []
    for part in parts:
        if isinstance(part, Text):
            row = np.asarray(encode(part.text), dtype=np.int64)
        elif isinstance(part, Codes):
            row = picture_ids(part.codes, part.cells, vocabulary)
        elif isinstance(part, Seen):
            row = np.full(part.layout.length, vocabulary.filler, dtype=np.int64)
            pictures.append((len(learn), part))
        else:
            row = np.full(len(part.values) + 2, vocabulary.begin, dtype=np.int64)
            row[-1] = vocabulary.end
            places.append(len(learn) + 1 + np.arange(len(part.values)))
            features.append(part.values)
        learned = isinstance(part, Text | Codes) and part.learn
        turn = (
            turns[-1] + int(learn[-1] and not learned) if turns else 0
        )  # what follows an answer is the next
        ids.append(row)
        learn += [learned] * len(row)
        turns += [turn] * len(row)
    joined = np.concatenate(ids)
    return Document(
        task=task,
        ids=joined,
        learn=np.array(learn, dtype=bool),
        places=np.concatenate(places),
        features=np.concatenate(features) if features else None,
        pictures=tuple(pictures),
        turns=np.array(turns, dtype=np.int64),
        structure=_markers(joined, np.concatenate(places), vocabulary),
        strides=vocabulary.strides(joined) if vocabulary.cell_positions else None,
    )


def _markers(ids: Ids, places: Ids, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Whether each of `ids` is [IMG] or [/IMG], and not a feature in its place."""
    if not vocabulary.codes:
        return np.zeros(len(ids), bool)
    found = np.isin(ids, (vocabulary.begin, vocabulary.end))
    found[places] = False
    return found


def picture_ids(
    codes: npt.NDArray[np.integer], cells: npt.NDArray[np.integer] | None, vocabulary: Vocabulary
) -> Ids:
    """Ids of an image of K codes with its markers; `cells` (K,) are written if the vocabulary has skips.

    Densely where it has [DROP]: each cell of the grid one id. ValueError for no codes, unknown ones, and
    where cells are to be written that are missing, not rising or outside the grid.
    """
    if len(codes) == 0:
        raise ValueError("an image of no tokens: at least one was asked for")
    inner = vocabulary.ids_of(np.asarray(codes, dtype=np.int64))
    if vocabulary.drop is not None:
        inner = dense_ids(inner, cells, vocabulary)
    elif vocabulary.cells is not None:
        passed = _passed(len(codes), cells, vocabulary.cells)
        gaps = np.flatnonzero(passed)
        inner = np.insert(inner, gaps, vocabulary.ranges["skips"].ids_of(passed[gaps]))
    return np.concatenate([[vocabulary.begin], inner, [vocabulary.end]]).astype(np.int64)


def dense_ids(codes: Ids, cells: npt.NDArray[np.integer] | None, vocabulary: Vocabulary) -> Ids:
    """One id for each cell of the grid: those of `codes` (K,), already ids, on their `cells`, else [DROP]."""
    assert vocabulary.cells is not None
    assert vocabulary.drop is not None
    _passed(len(codes), cells, vocabulary.cells)
    dense = np.full(vocabulary.cells, vocabulary.drop, dtype=np.int64)
    dense[np.asarray(cells, dtype=np.int64)] = codes
    return dense


def picture_of(ids: Ids, vocabulary: Vocabulary) -> tuple[Ids, Ids | None]:
    """Codes (K,) and cells (K,) of what `picture_ids` wrote; cells are None if the vocabulary has no skips.

    ValueError for anything else.
    """
    if len(ids) < 3 or ids[0] != vocabulary.begin or ids[-1] != vocabulary.end:
        raise ValueError("an image was asked for: one or more codes between [IMG] and [/IMG]")
    inner = np.asarray(ids[1:-1], dtype=np.int64)
    if vocabulary.drop is not None:
        cells = np.flatnonzero(inner != vocabulary.drop)
        if len(inner) != vocabulary.cells or len(cells) == 0:
            raise ValueError(
                f"an image of {vocabulary.cells} cells was asked for, one of them a code at least; found "
                f"{len(inner)} cells with {len(cells)} codes"
            )
        return vocabulary.codes_of(inner[cells]), cells
    skips = vocabulary.ranges["skips"]
    is_skip = skips.holds(inner)
    codes = vocabulary.codes_of(inner[~is_skip])
    if vocabulary.cells is None:
        return codes, None
    if is_skip[-1] or np.any(is_skip[1:] & is_skip[:-1]):
        raise ValueError("a skip stands before a code; found one before another skip or at the end")
    steps = np.ones(len(inner), dtype=np.int64)  # cells from the place before each id to the one behind it
    steps[is_skip] = skips.values_of(inner[is_skip])
    cells = np.cumsum(steps)[~is_skip] - 1
    if cells[-1] >= vocabulary.cells:
        raise ValueError(f"an image has cells 0 to {vocabulary.cells - 1}; found a code on {cells[-1]}")
    return codes, cells


def _passed(count: int, cells: npt.NDArray[np.integer] | None, grid: int) -> Ids:
    """How many cells are passed over before each of `count` codes."""
    if cells is None:
        raise ValueError("codes without cells; this language model needs the cell of every code")
    cells = np.asarray(cells, dtype=np.int64)
    passed = np.diff(cells, prepend=-1) - 1
    if cells.shape != (count,) or np.any(passed < 0) or cells[-1] >= grid:
        found = shown(cells.tolist())
        raise ValueError(f"{count} rising cells from 0 to {grid - 1} were asked for, found {found}")
    return passed


def caption(picture: Codes | Features | Seen, text: str) -> list[Part]:
    """Parts of a document that says what an image shows."""
    return [picture, Text(text, learn=True)]


def drawing(text: str, picture: Codes, drop: "Drop | None" = None) -> list[Part]:
    """Parts of a document that draws what a text says."""
    words = [Text(text)] if drop is None or not drop.text else []
    return [*words, replace(picture, learn=True)]


def edit(source: Codes, instruction: str, target: Codes, drop: "Drop | None" = None) -> list[Part]:
    """Parts of a document that changes an image as instructed."""
    parts: list[Part] = []
    if drop is None or not drop.image:
        parts.append(source)
    if drop is None or not drop.text:
        parts.append(Text(instruction))
    return [*parts, replace(target, learn=True)]


def answer(picture: Codes | Features | Seen, question: str, reply: str) -> list[Part]:
    """Parts of a document that answers a question about an image."""
    return [picture, Text(QUESTION.format(question)), Text(" " + reply.strip(), learn=True)]


def draw_drop(rates: DropoutConfig, has_source: bool, chance: float) -> "Drop":
    """Which conditions a drawing or an edit loses, by `chance` in [0, 1)."""
    if not has_source:
        return Drop(text=chance < rates.both + rates.text, image=False)
    bounds = np.cumsum([rates.both, rates.text, rates.image])
    case = int(np.searchsorted(bounds, chance, side="right"))
    return Drop(text=case in (0, 1), image=case in (0, 2))


@dataclass(frozen=True)
class Drop:
    """Which conditions one document loses."""

    text: bool
    image: bool
