"""How well a model edits images: a judge looks at what was asked for, and at everything else.

Edits are true pairs of held-out images. Of each the judge says whether

    asked   what was asked came true. Style, skin tone, gender and, for hair, professions and what people
            wear, role: the judge's classifier says the target's. A role that is to go, as a tuxedo does, and
            things that get another colour, or something added or removed: the image is nearer to the
            target's concept than to the source's. Nothing was to change: the nearest concept is the source's.
    kept    everything else is as it was: among the `NEAREST` concepts nearest to the image is one that
            agrees with source or target in all but what was asked. For a change of style that is the same
            concept, of skin tone the same noun, of gender a person of the same role and tone, of hair,
            profession and clothes a person of the same gender and tone, of colour the same noun but for its
            colour.
    style   the classifier says the target's style, which is the source's unless another one was asked for.
    all     the three together.

Four ways are measured: `edited`, by the model; `true codes`, the target's own codes drawn by the same
decoder; `real`, the target itself, left out of what the judge knows; `source`, the source drawn back, which
is what a model does that never changes anything. Legend: P images, M measures, E numbers of an embedding.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pictish.evaluation.metrics import means
from pictish.pipelines import drawing as pipeline
from pictish.recipes.starter.concepts import TONES
from pictish.recipes.starter.edits import CAPS, Change, changes
from pictish.recipes.starter.evaluation.drawn import BATCH, Shown, config_of, decoded, header, seeds
from pictish.recipes.starter.evaluation.emoji import SETS
from pictish.recipes.starter.evaluation.judge import Judge
from pictish.recipes.starter.phrases import COLOURS, Picture, rank

if TYPE_CHECKING:
    from pictish.pipelines.language import Said
    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage

SCHEMA = 2
NEAREST = 5
EDITED, TRUE_CODES, REAL, SOURCE = "edited", "true codes", "real", "source"
WAYS = (EDITED, TRUE_CODES, REAL, SOURCE)
MEASURES = ("asked", "kept", "style", "all")
CONTROLS = ("same", "already")
"""Kinds of edits in which nothing changes."""
WITH_TEXT = ("text", "picture", "both")
WITH_IMAGE = ("first", "second", "either", "both")

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Mixed:
    """A prompt that is no instruction: an image, and words or another image."""

    name: str
    first: Picture
    second: Picture | None
    words: str | None
    asked: tuple[str, str] | None
    """Name and value of the attribute in the words."""


class EditingEvaluation:
    """Measures a model with a judge; what `drawing` leaves None is the decoder's default."""

    def __init__(self, drawer: "TextToImage", judge: Judge, drawing: "Drawing", *, seed: int) -> None:
        self.drawer, self.judge, self.drawing, self.seed = drawer, judge, drawing, seed
        self.places = {key: place for place, key in enumerate(judge.references.keys)}
        self.concepts: dict[str, Picture] = {}
        for place in range(len(judge.references)):
            picture = self._picture(place)
            self.concepts.setdefault(picture.facts["concept"], picture)

    def edits(self, limit: int) -> list[Change]:
        """At most `limit` edits of held-out images, as many of each kind as there are.

        Of each kind pairs of the test split come first, then those with an image of the validation split.
        ValueError when there is none.
        """
        test, validation = self._split("test"), self._split("validation")
        narrow = {change.key: change for change in changes(test)}
        wide = narrow | {change.key: change for change in changes([*test, *validation])}
        mixed = sorted(wide.values(), key=lambda one: (one.key not in narrow, rank(str(self.seed), one.key)))
        placed = []
        for number, kind in enumerate(CAPS):
            own = [change for change in mixed if change.kind == kind]
            placed += [((place, number), change) for place, change in enumerate(own)]
        if not placed:
            raise ValueError("its splits test and validation hold no edits; give --data the whole data")
        return [change for _, change in sorted(placed, key=lambda one: one[0])[:limit]]

    def texts(self, limit: int) -> list[Mixed]:
        """Images of the test split with words for another style or, where one is known, skin tone."""
        found: dict[str, list[Mixed]] = {"style": [], "skin_tone": []}
        for picture in self._mixed("test"):
            tone = picture.facts["skin_tone"]
            kinds: list[tuple[str, Any, Sequence[str], str]] = [("style", picture.set, SETS, "{} style")]
            if isinstance(tone, str):
                kinds.append(("skin_tone", tone, TONES, "{} skin"))
            for name, own, values, wording in kinds:
                others = sorted(set(values) - {own})
                other = others[rank(str(self.seed), picture.key, name) % len(others)]
                words = wording.format(other)
                found[name].append(Mixed(f"{picture.key} {words}", picture, None, words, (name, other)))
        return [*found["style"][: limit - limit // 2], *found["skin_tone"][: limit // 2]]

    def images(self, limit: int) -> list[Mixed]:
        """Pairs of images of the test split, of two concepts in two styles."""
        pictures = self._mixed("test")
        found = []
        for place, first in enumerate(pictures[:limit]):
            others = (*pictures[place + 1 :], *pictures[:place])
            for second in others:
                if second.set != first.set and second.facts["concept"] != first.facts["concept"]:
                    found.append(Mixed(f"{first.key} {second.key}", first, second, None, None))
                    break
        return found

    def draw(self, way: str, edits: Sequence[Change], advance: Advance) -> Shown:
        """One of `WAYS` for every edit; `advance` is called with how many more are done."""
        pictures: list[Image.Image] = []
        for start in range(0, len(edits), BATCH):
            batch = edits[start : start + BATCH]
            before = [self.image(one.before) for one in batch]
            after = [self.image(one.after) for one in batch]
            names = [one.key for one in batch]
            match way:
                case "edited":
                    words = [one.instruction for one in batch]
                    config = config_of(self.drawing)
                    drawn = pipeline.edit(self.drawer, before, words, seeds(self.seed, names), config)
                    pictures += [one.image for one in drawn]
                case "true codes":
                    pictures += decoded(self.drawer, after, seeds(self.seed, names), self.drawing)
                case "source":
                    pictures += decoded(self.drawer, before, seeds(self.seed, names), self.drawing)
                case _:
                    pictures += after
            advance(len(batch))
        return Shown(pictures, self.judge.embed(pictures))

    def draw_mixed(self, prompts: Sequence[Mixed], advance: Advance) -> Shown:
        """What `pictish generate --image` makes of images with words, or of two images."""
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            prompts_of = [(self.image(one.first), self._other(one)) for one in batch]
            own = seeds(self.seed, (one.name for one in batch))
            pictures += [
                one.image for one in pipeline.generate(self.drawer, prompts_of, own, config_of(self.drawing))
            ]
            advance(len(batch))
        empty = self.judge.references.embeddings[:0]
        return Shown(pictures, self.judge.embed(pictures) if pictures else empty)

    def scores(self, way: str, edits: Sequence[Change], embeddings: np.ndarray) -> np.ndarray:
        """(P, M) bool in the order of `MEASURES`."""
        judge = self.judge
        left_out = [self.places[edit.after.key] for edit in edits] if way == REAL else None
        nearest = judge.concepts(embeddings, NEAREST, left_out)
        seen = {name: judge.attribute(name, embeddings) for name in ("style", "skin_tone", "gender", "role")}
        source, target = ([p.facts["concept"] for p in side] for side in zip(*map(_ends, edits), strict=True))
        # where the target is left out, so is the source: each concept is known in the other styles alone
        other = [self.places[edit.before.key] for edit in edits] if way == REAL else None
        to_target = judge.similarity_to(embeddings, target, left_out)
        to_source = judge.similarity_to(embeddings, source, other)
        rows = []
        for row, edit in enumerate(edits):
            attribute = asked_attribute(edit)
            value = edit.after.facts.get(attribute)
            if attribute == "nothing":
                asked = nearest[row][0] == target[row]
            elif value is None:  # which a classifier also says of what it does not know
                asked = bool(to_target[row] > to_source[row])
            else:
                asked = seen[attribute][row] == value
            agreeing = {rest(attribute, picture) for picture in _ends(edit)}
            kept = any(rest(attribute, self.concepts[concept]) in agreeing for concept in nearest[row])
            style = seen["style"][row] == edit.after.set
            rows.append((asked, kept, style, asked and kept and style))
        return np.array(rows, dtype=bool)

    def scores_with_text(self, prompts: Sequence[Mixed], embeddings: np.ndarray) -> np.ndarray:
        """(P, M) bool in the order of `WITH_TEXT`: the attribute of the words, and the image's concept."""
        nearest = self.judge.concepts(embeddings, NEAREST)
        rows = []
        for row, prompt in enumerate(prompts):
            assert prompt.asked is not None
            name, value = prompt.asked
            text = self.judge.attribute(name, embeddings[row : row + 1])[0] == value
            own = rest(name, prompt.first)
            picture = any(rest(name, self.concepts[concept]) == own for concept in nearest[row])
            rows.append((text, picture, text and picture))
        return np.array(rows, dtype=bool).reshape(-1, len(WITH_TEXT))

    def scores_with_image(self, prompts: Sequence[Mixed], embeddings: np.ndarray) -> np.ndarray:
        """(P, M) bool in the order of `WITH_IMAGE`: whose concept is among the nearest."""
        nearest = self.judge.concepts(embeddings, NEAREST)
        rows = []
        for row, prompt in enumerate(prompts):
            assert prompt.second is not None
            first = prompt.first.facts["concept"] in nearest[row]
            second = prompt.second.facts["concept"] in nearest[row]
            rows.append((first, second, first or second, first and second))
        return np.array(rows, dtype=bool).reshape(-1, len(WITH_IMAGE))

    def header(self, language: str) -> dict[str, Any]:
        """What a report says first; `language` is the fingerprint of the language model."""
        return {
            "schema": SCHEMA,
            **header(self.drawer, self.drawing, language, self.seed),
            "image_scale": self.drawer.usual.image_guidance,
            "nearest": NEAREST,
            "references": len(self.judge.references),
        }

    def report(self, edits: Sequence[Change], scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Numbers of all changes, of all controls and of each kind, JSON-ready; each edit at the end."""
        kinds = {kind: [e.kind == kind for e in edits] for kind in CAPS}
        controls = np.array([edit.kind in CONTROLS for edit in edits])
        return {
            "changes": self._group(scores, ~controls),
            "controls": self._group(scores, controls),
            "kinds": {kind: self._group(scores, np.array(mine)) for kind, mine in kinds.items() if any(mine)},
            "edits": [
                {"key": edit.key, "instruction": edit.instruction}
                | {name: bool(value) for name, value in zip(MEASURES, scores[EDITED][row], strict=True)}
                for row, edit in enumerate(edits)
            ],
        }

    def report_mixed(
        self, prompts: Sequence[Mixed], scores: np.ndarray, names: Sequence[str]
    ) -> dict[str, Any] | None:
        """Numbers of prompts with images, JSON-ready; None where there were no prompts."""
        if not prompts:
            return None
        return {"prompts": len(prompts), **means(scores.astype(np.float64), names, self.seed)}

    def image(self, picture: Picture) -> Image.Image:
        """An image of the data as RGB."""
        return self.judge.references.picture(self.places[picture.key])

    def _other(self, prompt: Mixed) -> "Said":
        """What goes with the image."""
        if prompt.second is not None:
            return self.image(prompt.second)
        assert prompt.words is not None
        return prompt.words

    def _group(self, scores: Mapping[str, np.ndarray], mine: np.ndarray) -> dict[str, Any] | None:
        if not mine.any():
            return None
        ways = {way: means(s[mine].astype(np.float64), MEASURES, self.seed) for way, s in scores.items()}
        return {"edits": int(mine.sum()), "ways": ways}

    def _picture(self, place: int) -> Picture:
        """A reference as what edits are made of; its PNG stands for its look, as tokens do."""
        references = self.judge.references
        return Picture(references.keys[place], references.pictures[place], references.facts[place])

    def _split(self, split: str) -> list[Picture]:
        return [self._picture(place) for place in self.judge.references.of_split(split)]

    def _mixed(self, split: str) -> list[Picture]:
        """Images of a split in an order that follows from the seed and their keys."""
        return sorted(self._split(split), key=lambda picture: rank(str(self.seed), picture.key))


def _ends(edit: Change) -> tuple[Picture, Picture]:
    return edit.before, edit.after


def asked_attribute(edit: Change) -> str:
    """What an edit asks for: an attribute that the judge has a classifier of, `thing`, or `nothing`."""
    match edit.kind:
        case "style" | "gender":
            return edit.kind
        case "skin tone":
            return "skin_tone"
        case "same" | "already":
            return "nothing"
        case "hair" | "profession":
            return "role"
    person = edit.after.facts["gender"] is not None
    return "role" if person and edit.kind in ("add", "remove") else "thing"


def rest(attribute: str, picture: Picture) -> Hashable:
    """What is left of an image's concept when one attribute may be any."""
    facts = picture.facts
    match attribute:
        case "skin_tone":
            return picture.phrase.noun
        case "gender" if facts["gender"] is not None:
            return facts["role"], str(facts["skin_tone"])
        case "role" if facts["gender"] is not None:
            return facts["gender"], str(facts["skin_tone"])
        case "thing":
            return " ".join("*" if word in COLOURS else word for word in picture.phrase.noun.split(" "))
    return str(facts["concept"])
