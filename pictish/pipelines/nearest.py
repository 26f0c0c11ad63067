"""Which training captions are nearest to a prompt, and whether any is near: by words, or by meaning.

By words: how much of the prompt's content words one caption holds, each weighed by its rarity (IDF). Needs
nothing but the captions. By meaning: cosine of sentence embeddings (`sentences.py`, an extra), which knows
that a puppy is a dog. Words decide first: a prompt whose words are all in one caption needs no embedding.

Legend: N captions, P prompts, D width of an embedding.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pictish.data.words import STOP_WORDS, content_words, stem, words_of
from pictish.io.files import printable

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]  # texts to rows of unit length (N, D)

# A prompt is far when its best caption scores less; chosen on the prompts in docs/models.md.
FAR_WORDS = 0.3
FAR_MEANING = 0.48


@dataclass(frozen=True)
class Near:
    """A training caption and how near it is to a prompt: 0 to 1 by words, a cosine by meaning."""

    caption: str
    score: float


@dataclass(frozen=True)
class Nearest:
    """The captions nearest to a prompt, the nearest first; none where it has no content words."""

    prompt: str
    captions: tuple[Near, ...]
    measure: Literal["words", "meaning"]

    @property
    def far(self) -> bool:
        """Whether even the nearest caption is about something else."""
        limit = FAR_WORDS if self.measure == "words" else FAR_MEANING
        return bool(self.captions) and self.captions[0].score < limit


def nearest_captions(
    prompts: Sequence[str],
    captions: Sequence[str],
    count: int = 3,
    meaning: Callable[[Sequence[str]], tuple[Embed, npt.NDArray[np.float32]] | None] | None = None,
) -> list[Nearest]:
    """The `count` captions nearest to each prompt.

    `meaning` gives what embeds a prompt, and the embedded captions (N, D), or None where it cannot; it is
    asked only where words leave it open.
    """
    found = by_words(prompts, captions, count)
    unsure = [n for n, one in enumerate(found) if one.captions and one.captions[0].score < 1]
    if unsure and meaning is not None and (ready := meaning(captions)) is not None:
        embed, rows = ready
        for number, one in zip(
            unsure, by_meaning([prompts[n] for n in unsure], captions, count, embed, rows), strict=True
        ):
            found[number] = one
    return found


def hints(found: Iterable[Nearest]) -> list[str]:
    """For each prompt that is far from all captions, a line that names the nearest ones."""
    lines = []
    for one in found:
        if one.far:
            names = ", ".join(f'"{near.caption}"' for near in one.captions)
            are = "closest is" if len(one.captions) == 1 else "closest are"
            lines.append(f'No training caption is close to "{printable(one.prompt)}"; the {are} {names}.')
    return lines


def by_meaning(
    prompts: Sequence[str],
    captions: Sequence[str],
    count: int,
    embed: Embed,
    rows: npt.NDArray[np.float32],
) -> list[Nearest]:
    """The captions whose embeddings, `rows` (N, D), have the largest cosine with a prompt's."""
    scores = embed(prompts) @ rows.T  # (P, N)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [
        Nearest(prompt, tuple(Near(captions[n], float(row[n])) for n in order), "meaning")
        for prompt, row, order in zip(prompts, scores, best, strict=True)
    ]


def by_words(prompts: Sequence[str], captions: Sequence[str], count: int) -> list[Nearest]:
    """The captions that hold most of a prompt's content words.

    For a word that no caption has, those spelled most like it count, with the cube of their likeness: a
    misspelling costs little, another word nearly all.
    """
    spelled: dict[str, list[int]] = {}  # which captions have a word
    for number, caption in enumerate(captions):
        for word in set(words_of(caption)):
            spelled.setdefault(word, []).append(number)
    holders: dict[
        str, set[int]
    ] = {}  # which have a stem: a few thousand words are stemmed, not every caption
    for word in spelled.keys() - STOP_WORDS:
        holders.setdefault(stem(word), set()).update(spelled[word])
    return [Nearest(prompt, _holding(prompt, captions, holders, count), "words") for prompt in prompts]


def _holding(
    prompt: str, captions: Sequence[str], holders: Mapping[str, set[int]], count: int
) -> tuple[Near, ...]:
    words = content_words(prompt)
    if not words or not holders:
        return ()
    scores = dict.fromkeys(range(min(count, len(captions))), 0.0)  # so that there are always `count`
    weights = [math.log(1 + len(captions) / (1 + len(holders.get(word, ())))) for word in words]
    for word, weight in zip(words, weights, strict=True):
        known = [(1.0, word)] if word in holders else _most_alike(word, holders, count)
        held = {number: likeness for likeness, other in reversed(known) for number in holders[other]}
        for number, likeness in held.items():
            scores[number] = scores.get(number, 0.0) + weight * likeness**3
    total = sum(weights)
    # rounded, so that a caption with all the words has exactly 1; among equals the shortest says most
    shares = {number: round(score / total, 9) for number, score in scores.items()}
    best = heapq.nsmallest(count, shares, key=lambda n: (-shares[n], len(captions[n]), captions[n]))
    return tuple(Near(captions[n], shares[n]) for n in best)


def _most_alike(word: str, known: Iterable[str], count: int) -> list[tuple[float, str]]:
    """The known words that share most pairs of letters with `word`, each behind their Dice coefficient."""
    pairs = {word[n : n + 2] for n in range(len(word) - 1)} or {word}

    def likeness(other: str) -> float:
        common = sum(pair in other for pair in pairs)
        return min(1.0, 2 * common / (len(pairs) + max(1, len(other) - 1)))

    # those that begin alike first: misspellings seldom touch the first letter
    best = heapq.nlargest(count, known, key=lambda other: (likeness(other), other[0] == word[0], other))
    return [(likeness(other), other) for other in best]
