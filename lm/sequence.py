"""One sequence of text and pictures: a document's parts become ids, what is learned, and embedded features.

A picture lies between `[IMG]` and `[/IMG]`, as discrete codes or, for understanding, as continuous features
of the tokenizer's merger (LaVIT, arXiv 2309.04669, section 3.2). No document starts with a BOS.

    caption      [IMG] codes [/IMG] text EOS                       learned: text EOS
    drawing      text [IMG] codes [/IMG] EOS                       learned: from [IMG] on
    edit         [IMG] source [/IMG] text [IMG] target [/IMG] EOS  learned: from the second [IMG] on
    answer       [IMG] codes [/IMG] question answer EOS            learned: answer EOS
    interleaved  text and pictures as they come, EOS               learned: all but continuous features

A drawing or an edit that lost its conditions is a picture alone, `[IMG] codes [/IMG] EOS`. Its EOS is not
learned: a caption begins likewise, and would learn to end before its first word.

Legend: L tokens of a document, K tokens of a picture, F feature channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pictish.lm.config import DropoutConfig
from pictish.lm.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]
Encode = Callable[[str], list[int]]  # text to ids; markers in it stay text

QUESTION = "Question: {} Answer:"  # LaVIT's prompt
TASKS = ("caption", "drawing", "edit", "answer", "interleaved", "text")
Task = Literal["caption", "drawing", "edit", "answer", "interleaved", "text"]


@dataclass(frozen=True)
class Text:
    """Text and whether it is to be learned."""

    text: str
    learn: bool = False


@dataclass(frozen=True, eq=False)
class Codes:
    """A picture as codes (K,), without any offset."""

    codes: npt.NDArray[np.integer]
    learn: bool = False


@dataclass(frozen=True, eq=False)
class Features:
    """A picture as continuous features (K, F): something to look at, never to be written."""

    values: npt.NDArray[np.float32]


Part = Text | Codes | Features


@dataclass(frozen=True, eq=False)
class Document:
    """What the language model reads: all (L,) but `features` (M, F), which stand at `places` (M,)."""

    task: Task
    ids: Ids
    learn: npt.NDArray[np.bool_]  # whether this id is a target for the token before it
    places: Ids
    features: npt.NDArray[np.float32] | None
    sample: str = ""  # what the sample it was made of is called

    def __len__(self) -> int:
        return len(self.ids)


def build(task: Task, parts: Sequence[Part], vocabulary: Vocabulary, encode: Encode, eos: int) -> Document:
    """A document of `parts` that ends with `eos`, learned when the last part is and the picture is not alone.

    Raises ValueError for a picture without tokens or with codes that the vocabulary does not hold.
    """
    assert parts, "a document without parts"
    joined = join(task, parts, vocabulary, encode)
    last, alone = parts[-1], len(parts) == 1
    learn = last.learn and not alone if isinstance(last, Codes) else isinstance(last, Text) and last.learn
    return replace(joined, ids=np.append(joined.ids, eos), learn=np.append(joined.learn, learn))


def join(task: Task, parts: Sequence[Part], vocabulary: Vocabulary, encode: Encode) -> Document:
    """`parts` one after the other, with nothing behind them: what a prompt is made of."""
    ids: list[Ids] = [np.zeros(0, dtype=np.int64)]
    learn: list[bool] = []
    places: list[Ids] = [np.zeros(0, dtype=np.int64)]
    features: list[npt.NDArray[np.float32]] = []
    for part in parts:
        if isinstance(part, Text):
            row = np.asarray(encode(part.text), dtype=np.int64)
        elif isinstance(part, Codes):
            row = picture_ids(part.codes, vocabulary)
        else:
            row = np.full(len(part.values) + 2, vocabulary.begin, dtype=np.int64)
            row[-1] = vocabulary.end
            places.append(len(learn) + 1 + np.arange(len(part.values)))
            features.append(part.values)
        ids.append(row)
        learn += [not isinstance(part, Features) and part.learn] * len(row)
    return Document(
        task=task,
        ids=np.concatenate(ids),
        learn=np.array(learn, dtype=bool),
        places=np.concatenate(places),
        features=np.concatenate(features) if features else None,
    )


def picture_ids(codes: npt.NDArray[np.integer], vocabulary: Vocabulary) -> Ids:
    """Ids (K + 2,) of a picture with its markers; ValueError for no codes or unknown ones."""
    if len(codes) == 0:
        raise ValueError("a picture of no tokens: at least one was asked for")
    inner = vocabulary.ids_of(np.asarray(codes, dtype=np.int64))
    return np.concatenate([[vocabulary.begin], inner, [vocabulary.end]]).astype(np.int64)


def caption(picture: Codes | Features, text: str) -> list[Part]:
    """Parts of a document that says what a picture shows."""
    return [picture, Text(text, learn=True)]


def drawing(text: str, codes: npt.NDArray[np.integer], drop: "Drop | None" = None) -> list[Part]:
    """Parts of a document that draws what a text says."""
    shown = [Text(text)] if drop is None or not drop.text else []
    return [*shown, Codes(codes, learn=True)]


def edit(
    source: npt.NDArray[np.integer],
    instruction: str,
    target: npt.NDArray[np.integer],
    drop: "Drop | None" = None,
) -> list[Part]:
    """Parts of a document that changes a picture as told."""
    parts: list[Part] = []
    if drop is None or not drop.image:
        parts.append(Codes(source))
    if drop is None or not drop.text:
        parts.append(Text(instruction))
    return [*parts, Codes(target, learn=True)]


def answer(picture: Codes | Features, question: str, reply: str) -> list[Part]:
    """Parts of a document that answers a question about a picture."""
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
