"""Two images and words in, one image out: what the first shows, with something of the second.

The target is an image that exists: the same thing in another style, or the same drawing with one attribute
changed. The second image has the style, or the value of the attribute, that is asked for.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pictish.recipes.starter.edits import Change, changes
from pictish.recipes.starter.phrases import AVATAR, Picture, choose, rank

# The most of a kind with one thing to be changed.
CAPS = {"style": 4, "colour": 2, "background": 2}
_CAP = 4  # of other kinds
_STYLE = (
    "the first in the style of the second",
    "draw the first like the second",
    "the first picture, drawn in the style of the second",
    "what the first shows, as the second is drawn",
)
_ATTRIBUTE = (
    "the first with the {} of the second",
    "give the first the {} of the second",
    "take the {} of the second for the first",
    "the first picture, but with the {} of the second",
)
_NAMES = {
    "skin tone": "skin tone",
    "hair colour": "hair colour",
    "hair": "hair",
    "eyewear": "eyewear",
    "expression": "expression",
    "facial hair": "facial hair",
    "hat": "hat",
    "clothes": "clothes",
    "clothes colour": "colour of clothes",
    "background": "background",
    "colour": "colour",
    "position": "position",
}


@dataclass(frozen=True)
class Mix:
    """Two images, what to do with them, and the image that comes of it."""

    kind: str
    first: Picture
    second: Picture
    target: Picture
    instruction: str

    @property
    def key(self) -> str:
        """Its name in the shards."""
        return f"{self.kind.replace(' ', '-')}-{self.first.key}-and-{self.second.key}-to-{self.target.key}"


def mixes(pictures: Iterable[Picture]) -> list[Mix]:
    """The mixes that are true of these images, in a mixed order."""
    ordered = sorted(pictures, key=lambda picture: picture.key)
    having: dict[Hashable, list[Picture]] = defaultdict(list)
    for picture in ordered:
        for name in _NAMES:
            if value := _value(picture, name):
                having[_like(picture), name, value].append(picture)
        having["style", picture.set].append(picture)
    found: dict[tuple[str, str], list[Mix]] = defaultdict(list)
    for mix in _of_changes(changes(ordered), having):
        found[mix.kind, mix.first.phrase.noun].append(mix)
    kept = [
        mix
        for (kind, _), candidates in found.items()
        for mix in sorted(candidates, key=lambda mix: rank(mix.key))[: CAPS.get(kind, _CAP)]
    ]
    return sorted(kept, key=lambda mix: rank("order", mix.key))


def _of_changes(found: Sequence[Change], having: Mapping[Hashable, Sequence[Picture]]) -> Iterator[Mix]:
    for change in found:
        if change.kind == "style":
            others = having["style", change.after.set]
            wordings: Sequence[str] = _STYLE
        elif change.kind in _NAMES and (value := _value(change.after, change.kind)):
            others = having[_like(change.after), change.kind, value]
            wordings = [wording.format(_NAMES[change.kind]) for wording in _ATTRIBUTE]
        else:
            continue
        if second := _another(change, others):
            words = (change.before.key, second.key, change.after.key)
            yield Mix(change.kind, change.before, second, change.after, choose(wordings, *words))


def _another(change: Change, others: Sequence[Picture]) -> Picture | None:
    """One of the others that shows something else than the change does."""
    start = rank(change.key, "second") % max(1, len(others))
    shown = change.after.facts["concept"], change.after.phrase.noun
    for other in (*others[start:], *others[:start]):
        if other.facts["concept"] != shown[0] and other.phrase.noun != shown[1]:
            return other
    return None


def _like(picture: Picture) -> str:
    """Images whose attributes may be taken from each other: avatars of all styles, one set of the rest."""
    return AVATAR if picture.kind == AVATAR else picture.set


def _value(picture: Picture, name: str) -> str | None:
    """What an image has of an attribute, in words."""
    if name == "skin tone" and picture.is_emoji:
        tone = picture.facts["skin_tone"]
        return tone if isinstance(tone, str) else None
    if name == "hair colour" and picture.attributes.get("hair") == "turban":
        return None
    if picture.is_emoji:
        return None
    return picture.attributes.get("skin" if name == "skin tone" else name)
