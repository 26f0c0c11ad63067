"""How well words become images: a judge looks at what is drawn, beside what it could be at best.

Every prompt asks for one image of the starter data, its reference. Three ways are measured: `generated`,
from the prompt; `true codes`, the reference's own codes, drawn by the same decoder; `real`, the reference.
Legend: P prompts, M measures, E numbers of an embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pictish.evaluation.metrics import means
from pictish.evaluation.pictures import seed_of
from pictish.pipelines.drawing import generate
from pictish.recipes.starter.captions import descriptions
from pictish.recipes.starter.evaluation.drawn import BATCH, Shown, config_of, decoded, header, seeds
from pictish.recipes.starter.evaluation.emoji import SETS
from pictish.recipes.starter.evaluation.judge import Judge, settings
from pictish.recipes.starter.phrases import Picture

if TYPE_CHECKING:
    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage

SCHEMA = 2
GENERATED, TRUE_CODES, REAL = "generated", "true codes", "real"
WAYS = (GENERATED, TRUE_CODES, REAL)
CONCEPT = ("hit@1", "hit@5", "similarity")
"""Of every seen caption; the similarity is the cosine with the nearest image of the prompted concept."""
STYLED = ("strict@1", "strict@5", "style")
"""Of the seen captions that name a style; strict: the image of that concept in that style is near."""
COMPOSED = ("skin_tone", "gender", "role", "composition", "style", "all")
"""Of held-out compositions; composition: skin tone, gender and role are right, all: the style too."""
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
LEAST_OF_CURVE = 20

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Asked:
    """A prompt and the image that answers it."""

    name: str
    """Tells it from every other one: what is random about its image follows from this and the seed."""
    prompt: str
    reference: int
    """Index in the judge's references."""
    names_style: bool


class GenerationEvaluation:
    """Measures a text-to-image model with a judge; what `drawing` leaves None is the decoder's default."""

    def __init__(self, drawer: "TextToImage", judge: Judge, drawing: "Drawing", *, seed: int) -> None:
        self.drawer, self.judge, self.drawing, self.seed = drawer, judge, drawing, seed

    def seen(self, limit: int) -> list[Asked]:
        """Prompts for up to `limit` concepts of the train split, every other one with a style.

        A concept is drawn at random among those with an image in two sets at least, so that a real image
        can be found by another one; which of its images is the reference, is drawn too.
        """
        pictures: dict[str, list[int]] = {}
        for index in self.judge.references.of_split("train"):
            pictures.setdefault(self.judge.references.facts[index]["concept"], []).append(index)
        concepts = sorted(concept for concept, own in pictures.items() if len(own) > 1)
        generator = np.random.default_rng(seed_of(self.seed, "seen"))
        chosen = generator.permutation(len(concepts))[:limit]
        asked = []
        for number, place in enumerate(chosen):
            own = pictures[concepts[place]]
            reference = own[int(generator.integers(len(own)))]
            asked.append(self._ask("seen", reference, names_style=number % 2 == 0))
        if not asked:
            raise ValueError(
                "the data's train split has no emoji that two sets draw; give --data the whole data"
            )
        return asked

    def held_out(self, limit: int) -> list[Asked]:
        """Prompts with a style for up to `limit` images of the composition-test split, drawn at random."""
        everyone = self.judge.references.of_split("composition-test")
        if not everyone:
            raise ValueError("the data has no split composition-test; give --data the whole data")
        order = np.random.default_rng(seed_of(self.seed, "held out")).permutation(len(everyone))
        return [self._ask("held out", everyone[place], names_style=True) for place in order[:limit]]

    def _ask(self, measure: str, reference: int, *, names_style: bool) -> Asked:
        references = self.judge.references
        key = references.keys[reference]
        plain, *_, styled = descriptions(Picture(key, b"", references.facts[reference]))
        return Asked(f"{measure} {key}", styled if names_style else plain, reference, names_style)

    def draw(
        self, way: str, asked: Sequence[Asked], advance: Advance, text_scale: float | None = None
    ) -> Shown:
        """One of `WAYS` for every prompt; `advance` is called with how many more are done."""
        pictures: list[Image.Image] = []
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            real = [self.judge.references.picture(each.reference) for each in batch]
            match way:
                case "generated":
                    pictures += self._generate(batch, text_scale)
                case "true codes":
                    own = seeds(self.seed, (each.name for each in batch))
                    pictures += decoded(self.drawer, real, own, self.drawing)
                case _:
                    pictures += real
            advance(len(batch))
        return Shown(pictures, self.judge.embed(pictures))

    def _generate(self, batch: Sequence[Asked], text_scale: float | None) -> list[Image.Image]:
        config = config_of(self.drawing, text_scale)
        prompts = [[each.prompt] for each in batch]
        drawn = generate(self.drawer, prompts, seeds(self.seed, (each.name for each in batch)), config)
        return [one.image for one in drawn]

    def report_seen(self, asked: Sequence[Asked], shown: Mapping[str, Shown]) -> dict[str, Any]:
        """Numbers of the seen captions, JSON-ready.

        A real image is itself left out of the references, so it has no strict hit; nothing is left out for
        the other ways. The classifier of styles was fitted on the real images, among others.
        """
        rows = [row for row, each in enumerate(asked) if each.names_style]
        styled = [asked[row] for row in rows]
        ways = {}
        for way, each in shown.items():
            numbers: dict[str, Any] = self._means(self.concept_values(asked, each, way == REAL), CONCEPT)
            embeddings = each.embeddings[rows]
            right = self._right("style", styled, embeddings)[:, None]
            if way == REAL:
                numbers |= {"strict@1": None, "strict@5": None, **self._means(right, ["style"])}
            else:
                wanted = [one.reference for one in styled]
                strict = [self.judge.strict_hits(embeddings, wanted, k) for k in (1, 5)]
                numbers |= self._means(np.column_stack([*strict, right]), STYLED)
            ways[way] = numbers
        return {"prompts": len(asked), "with_style": len(styled), "ways": ways, "share": share(ways)}

    def report_held_out(self, asked: Sequence[Asked], shown: Mapping[str, Shown]) -> dict[str, Any]:
        """Numbers of the held-out compositions, JSON-ready."""
        ways = {}
        for way, each in shown.items():
            one = {
                name: self._right(name, asked, each.embeddings)
                for name in ("skin_tone", "gender", "role", "style")
            }
            one["composition"] = one["skin_tone"] & one["gender"] & one["role"]
            one["all"] = one["composition"] & one["style"]
            ways[way] = self._means(np.column_stack([one[name] for name in COMPOSED]), COMPOSED)
        return {"prompts": len(asked), "ways": ways, "share": share(ways)}

    def curve(self, asked: Sequence[Asked], advance: Advance) -> dict[str, Any]:
        """Seen captions drawn at every guidance scale, JSON-ready; `best`: where each number is highest."""
        points = []
        for scale in SCALES:
            values = self.concept_values(asked, self.draw(GENERATED, asked, advance, scale), False)
            points.append({"scale": scale, **self._means(values, CONCEPT)})
        best = {name: max(points, key=lambda point: point[name]["mean"])["scale"] for name in CONCEPT}
        return {"prompts": len(asked), "points": points, "best": best}

    def concept_values(self, asked: Sequence[Asked], shown: Shown, leave_out: bool) -> np.ndarray:
        """(P, M) in the order of `CONCEPT`; with `leave_out` an image's own reference is not looked at."""
        judge = self.judge
        left = [each.reference for each in asked] if leave_out else None
        concepts = [judge.references.facts[each.reference]["concept"] for each in asked]
        hits = [judge.hits(shown.embeddings, concepts, k, left) for k in (1, 5)]
        return np.column_stack([*hits, judge.similarity_to(shown.embeddings, concepts, left)])

    def header(self, language: str) -> dict[str, Any]:
        """What a report says first; `language` is the fingerprint of the language model."""
        references = self.judge.references
        return {
            "schema": SCHEMA,
            **header(self.drawer, self.drawing, language, self.seed),
            "best_of": self.drawer.usual.best_of,
            "judge": {
                **settings(),
                "sets": list(SETS),
                "pictures": len(references),
                "concepts": len({facts["concept"] for facts in references.facts}),
            },
        }

    def _right(self, name: str, asked: Sequence[Asked], embeddings: np.ndarray) -> np.ndarray:
        """Whether the judge sees the attribute that each prompt's reference has, (P,) bool."""
        facts = self.judge.references.facts
        seen = self.judge.attribute(name, embeddings)
        return np.array([facts[each.reference][name] == one for each, one in zip(asked, seen, strict=True)])

    def _means(self, values: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        return means(values.astype(np.float64), names, self.seed)


def share(ways: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The part of the true codes' numbers that the generated images reach; None where those are zero."""
    ceiling = ways[TRUE_CODES]
    return {
        name: number["mean"] / ceiling[name]["mean"] if ceiling[name]["mean"] > 0 else None
        for name, number in ways[GENERATED].items()
    }


def curve_size(prompts: int) -> int:
    """How many of the seen captions the guidance curve takes."""
    return min(prompts, max(prompts // 4, LEAST_OF_CURVE))
