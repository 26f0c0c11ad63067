"""How well a model says what images show: captions, and questions of the starter data with short answers.

Each is measured on images of concepts the model was trained on and of concepts it never saw.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from pictish.evaluation.metrics import LEVEL, means
from pictish.recipes.starter.captions import descriptions, telling_tags
from pictish.recipes.starter.evaluation.emoji import SETS, image_of
from pictish.recipes.starter.phrases import Picture, listed, rank
from pictish.recipes.starter.questions import Turn, questions

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = 1
SPLITS = {"seen": "train", "unseen": "test"}
"""What the concepts of a split are to a model trained on the starter data."""
CAPTION = ("exact_name", "any_synonym", "near_miss")
NEAR = 0.5
"""Of the telling words of what was said and of the name, the share that both must have for a near miss."""
BATCH = 32
# Words of a caption that do not tell what the image shows: of its wording, style and skin tone.
_IDLE = listed("drawing|of|in|and|with|style|skin|tone|medium|light|dark").union(
    *(name.split("-") for name in SETS)
)

Verdict = Literal["exact", "synonym", "near", "wrong"]


class Describes(Protocol):
    """What is measured: `pipelines.describe.Describe`."""

    def batch(self, images: "Sequence[Image.Image]", questions: Sequence[str | None]) -> list[str]: ...


@dataclass(frozen=True)
class Names:
    """What an image may be called, `plain`."""

    exact: frozenset[str]
    """As in the captions of the training data: the name, the phrase, either with its own style."""
    others: frozenset[str]
    """By its label, by a tag where no skin tone is known, and as another image with the same pixels."""

    def verdict(self, said: str) -> Verdict:
        """What a caption is worth."""
        words = plain(said)
        if words in self.exact:
            return "exact"
        if words in self.others:
            return "synonym"
        return "near" if max(_overlap(words, name) for name in self.exact | self.others) >= NEAR else "wrong"


@dataclass(frozen=True)
class Reply:
    """A question and what the model said."""

    turn: Turn
    said: str

    @property
    def right(self) -> bool:
        """Whether it is the answer, but for letter case, articles and punctuation."""
        return plain(self.said) == plain(self.turn.answer)


@dataclass(frozen=True)
class Described:
    """An image and all that a model said about it."""

    picture: Picture
    caption: str
    verdict: Verdict
    replies: Sequence[Reply]


def choose_some(pictures: Sequence[Picture], limit: int, seed: int) -> list[Picture]:
    """At most `limit` images in an order that follows from the seed, as many of each set as there are."""
    by_set = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: rank(str(seed), picture.key)):
        by_set[picture.set].append(picture)
    placed = [(place, name, each) for name, own in by_set.items() for place, each in enumerate(own)]
    return [picture for _, _, picture in sorted(placed, key=lambda one: one[:2])[:limit]]


def names_of(pictures: Sequence[Picture]) -> dict[str, Names]:
    """What each image may be called, by its key."""
    alike = defaultdict(list)
    for picture in pictures:
        alike[picture.tokens].append(picture)
    found = {}
    for picture in pictures:
        facts = picture.facts
        # a tag says nothing of a skin tone, and so it is no name of an image that shows one
        tags = telling_tags(picture) if facts["skin_tone"] is None else []
        words = [*tags, *([facts["label"]] if facts["label"] else [])]
        forms = ("{}", "a drawing of {}", f"{{}}, {picture.set} style")
        others = {form.format(word) for word in words for form in forms}
        for twin in alike[picture.tokens]:
            others |= set(descriptions(twin))
        exact = frozenset(map(plain, descriptions(picture)))
        found[picture.key] = Names(exact, frozenset(map(plain, others)) - exact)
    return found


def turns_of(pictures: Sequence[Picture], chosen: Sequence[Picture]) -> dict[str, list[Turn]]:
    """The questions about the chosen ones among all images of a split, which say what an image is not."""
    from pictish.recipes.starter.colours import main_colour

    colours = {each.key: colour for each in chosen if (colour := main_colour(each.tokens))}
    asked = questions(pictures, colours)
    return {each.key: asked[each.key] for each in chosen}


def plain(text: str) -> str:
    """Words in lower case without articles and punctuation, but for keycaps' # and *."""
    words = re.findall(r"[^\W_]+|[#*]", re.sub("['\N{RIGHT SINGLE QUOTATION MARK}]", "", text.lower()))
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _overlap(one: str, other: str) -> float:
    """Share of the telling words of two texts that both have."""
    ours, theirs = ({*text.split()} - _IDLE for text in (one, other))
    return len(ours & theirs) / max(1, len(ours | theirs))


def describe_all(
    model: Describes,
    pictures: Sequence[Picture],
    names: Mapping[str, Names],
    turns: Mapping[str, Sequence[Turn]],
    advance: Callable[[int], None] = lambda count: None,
) -> list[Described]:
    """Have each image captioned and each of its questions answered, `BATCH` at a time.

    `advance` is called with how many more texts there are, of a caption an image and an answer a turn.
    """
    asked: list[tuple[Picture, Turn | None]] = [(picture, None) for picture in pictures]
    # captions are long and answers short: apart, no batch waits for one long text
    asked += [(picture, turn) for picture in pictures for turn in turns[picture.key]]
    said: list[str] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        wanted = [None if turn is None else turn.question for _, turn in part]
        said += model.batch([image_of(picture) for picture, _ in part], wanted)
        advance(len(part))
    replies: dict[str, list[Reply]] = {picture.key: [] for picture in pictures}
    for (picture, turn), text in zip(asked, said, strict=True):
        if turn is not None:
            replies[picture.key].append(Reply(turn, text))
    return [
        Described(picture, caption, names[picture.key].verdict(caption), replies[picture.key])
        for picture, caption in zip(pictures, said, strict=False)  # captions come first
    ]


def header(tokenizer: str, language: str, data: str, seed: int) -> dict[str, Any]:
    """What a report says first, its `splits` still empty: fingerprints of the model's parts and the data."""
    return {
        "schema": SCHEMA,
        "tokenizer": tokenizer,
        "language": language,
        "data": data,
        "seed": seed,
        "confidence": LEVEL,
        "near": NEAR,
        "splits": {},
    }


def report_split(described: Sequence[Described], seed: int) -> dict[str, Any]:
    """A split's numbers, JSON-ready; without time, path or device, so a second run gives the same."""
    parts: dict[str, list[Described]] = defaultdict(list)
    for each in described:
        parts[each.picture.set].append(each)
        parts["no skin tone" if each.picture.facts["skin_tone"] is None else "skin tone"].append(each)
    replies = [reply for each in described for reply in each.replies]
    return {
        "pictures": len(described),
        "caption": _captions(described, seed),
        "parts": {name: _captions(part, seed) for name, part in parts.items()},
        "questions": {
            kind: _answers([reply for reply in replies if reply.turn.kind == kind], seed)
            for kind in dict.fromkeys(reply.turn.kind for reply in replies)
        },
        "near_misses": [
            {"key": each.picture.key, "said": each.caption, "name": each.picture.facts["caption"]}
            for each in described
            if each.verdict == "near"
        ],
    }


def _captions(described: Collection[Described], seed: int) -> dict[str, Any]:
    """Shares of captions that are right and nearly right."""
    verdicts = [each.verdict for each in described]
    rows = [[v == "exact", v in ("exact", "synonym"), v == "near"] for v in verdicts]
    return {"pictures": len(described), **means(np.array(rows, dtype=float), CAPTION, seed)}


def _answers(replies: Sequence[Reply], seed: int) -> dict[str, Any]:
    """Share of right answers beside that of one answer to all, the commonest one."""
    right = np.array([[reply.right] for reply in replies], dtype=float)
    commonest, count = min(
        Counter(reply.turn.answer for reply in replies).items(), key=lambda item: (-item[1], item[0])
    )
    return {
        "asked": len(replies),
        **means(right, ["right"], seed),
        "commonest": {"answer": commonest, "right": count / len(replies)},
    }
