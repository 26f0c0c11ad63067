"""Edits from true pairs: two images of one set that differ in one fact, or one concept in two sets."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pictish.recipes.starter.attribute_edits import changed, instruction
from pictish.recipes.starter.phrases import AVATAR, COLOURS, Picture, choose, listed, rank, style_name

# The most edits of a kind with one thing to be changed, so that no kind swamps the rest.
CAPS = {
    "style": 8,
    "skin tone": 14,
    "gender": 24,
    "hair": 40,
    "profession": 60,
    "add": 120,
    "remove": 24,
    "colour": 12,
    "background": 4,
    "position": 4,
    "hair colour": 12,
    "eyewear": 12,
    "expression": 12,
    "facial hair": 12,
    "earrings": 12,
    "detail": 12,
    "hat": 12,
    "gesture": 12,
    "clothes": 12,
    "clothes colour": 12,
    "same": 1,
    "already": 1,
}
JOBS = listed(
    """
    artist|astronaut|construction worker|cook|detective|factory worker|farmer|firefighter|
    guard|health worker|judge|mechanic|office worker|pilot|police officer|scientist|singer|
    student|teacher|technologist|elf|fairy|genie|mage|superhero|supervillain|vampire|
    zombie
    """
)
HAIR = ("red hair", "curly hair", "white hair", "blond hair", "bald")
WORN = {
    "beard": "beard",
    "with veil": "veil",
    "wearing turban": "turban",
    "with headscarf": "headscarf",
    "with skullcap": "skullcap",
    "in tuxedo": "tuxedo",
}
# Emoji that are another one with something added: the part in common is drawn alike in every set.
ADDED = {
    ("bell", "bell with slash"): "slash",
    ("camera", "camera with flash"): "flash",
    ("fork and knife", "fork and knife with plate"): "plate",
    ("house", "house with garden"): "garden",
    ("mobile phone", "mobile phone with arrow"): "arrow",
    ("cloud", "cloud with rain"): "rain",
    ("cloud", "cloud with lightning"): "lightning",
    ("cloud", "cloud with snow"): "snow",
    ("cloud with rain", "cloud with lightning and rain"): "lightning",
    ("snowman without snow", "snowman"): "snow",
    ("locked", "locked with key"): "key",
    ("locked", "locked with pen"): "pen",
    ("ear", "ear with hearing aid"): "hearing aid",
    ("sun", "sun with face"): "face",
    ("umbrella", "umbrella with rain drops"): "rain drops",
    ("empty nest", "nest with eggs"): "eggs",
    ("full moon", "full moon face"): "face",
    ("angry face", "angry face with horns"): "horns",
}
_UNCOUNTED = {"rain", "lightning", "snow", "rain drops", "eggs", "horns"}

_STYLE = (
    "make it {} style",
    "in {} style",
    "change the style to {}",
    "draw it in the style of {}",
    "turn it into {} style",
    "the same in {} style",
)
_TONE = (
    "give {him} {} skin",
    "change the skin tone to {}",
    "make the skin {}",
    "{} skin tone",
    "make the skin tone {}",
    "with {} skin",
)
_GENDER = (
    "make it a {}",
    "make {him} a {}",
    "change the {old} to a {}",
    "turn {him} into a {}",
    "a {} instead of a {old}",
)
_NEUTRAL = ("make {him} gender-neutral", "make it a person", "a person of no particular gender")
_JOB = ("make {him} {}", "turn {him} into {}", "show {him} as {}", "draw {him} as {}", "{} instead")
_HAIR = ("give {him} {}", "make the hair {short}", "change to {}", "with {}")
_BALD = ("make {him} bald", "remove the hair", "shave {his} head", "bald please")
_ADD = ("add {}", "with {}", "put {} on it", "draw it with {}")
_WEAR = ("add {}", "give {him} {}", "with {}")
_REMOVE = ("remove the {}", "take away the {}", "without the {}", "no {}")
_COLOUR = ("make it {}", "change the colour to {}", "change the color to {}", "paint it {}", "in {}")
_SAME = (
    "keep it as it is",
    "change nothing",
    "leave it as it is",
    "do not change anything",
    "no changes",
    "the same again",
    "keep everything the same",
)
_PRONOUNS = {"man": ("him", "his"), "woman": ("her", "her"), "person": ("them", "their")}


@dataclass(frozen=True)
class Change:
    """An edit: an image, what to do, and the image that comes of it."""

    kind: str
    before: Picture
    after: Picture
    instruction: str

    @property
    def key(self) -> str:
        """Its name in the shards."""
        return f"{self.kind.replace(' ', '-')}-{self.before.key}-to-{self.after.key}"


def changes(pictures: Iterable[Picture]) -> list[Change]:
    """The edits that are true of these images, at most `CAPS` of a kind and thing, in a mixed order."""
    ordered = sorted(pictures, key=lambda picture: picture.key)
    found: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in (*_between(ordered), *_controls(ordered)):
        found[change.kind, change.before.phrase.noun].append(change)
    kept = [
        change
        for (kind, _), candidates in found.items()
        for change in sorted(candidates, key=lambda change: rank(change.key))[: CAPS[kind]]
    ]
    return sorted(kept, key=lambda change: rank("order", change.key))


def _between(pictures: Sequence[Picture]) -> Iterator[Change]:
    """Every true change between two different images."""
    yield from attribute_changes(pictures)
    emoji = [picture for picture in pictures if picture.is_emoji]
    people = [
        p for p in emoji if p.facts["gender"] is not None and not isinstance(p.facts["skin_tone"], list)
    ]
    same_person = _pairs(people, lambda p: (p.set, p.facts["gender"], p.facts["skin_tone"]))
    for before, after in _pairs(emoji, lambda p: p.facts["concept"]):
        yield _change("style", before, after, _style(before, after))
    for before, after in _pairs(emoji, lambda p: (p.set, p.phrase.noun)):
        if not isinstance(before.facts["skin_tone"], list) and isinstance(after.facts["skin_tone"], str):
            yield _change("skin tone", before, after, _tone(before, after))
    for before, after in _pairs(people, lambda p: (p.set, p.facts["role"], p.facts["skin_tone"])):
        if before.facts["gender"] != after.facts["gender"]:
            yield _change("gender", before, after, _gender(before, after))
    for before, after in same_person:
        yield from _person(before, after)
    yield from _things(emoji)


def attribute_changes(pictures: Sequence[Picture]) -> Iterator[Change]:
    """Every change of one attribute of an avatar or an icon, all else being the same."""
    drawn = [picture for picture in pictures if picture.attributes]
    for before, after in _pairs(drawn, lambda p: (p.set, _drawing(p))):
        if name := changed(before.attributes, after.attributes):
            wording = instruction(before.attributes, after.attributes, name, before.key, after.key)
            yield _change("skin tone" if name == "skin" else name, before, after, wording)


def _drawing(picture: Picture) -> str:
    """What two images of one avatar or one icon have in common."""
    return str(picture.facts["concept" if picture.kind == AVATAR else "name"])


def _person(before: Picture, after: Picture) -> Iterator[Change]:
    """What may have been changed of one person of the same gender and skin tone."""
    old, new = before.facts["role"], after.facts["role"]
    key = (before.key, after.key)
    if new in HAIR and old in (None, *HAIR):
        wordings: tuple[str, ...] = _BALD if new == "bald" else _HAIR
        if old == "bald":  # who has no hair that could be made red
            wordings = _HAIR[:1]
        short = new.removesuffix(" hair")
        yield _change("hair", before, after, _say(before, choose(wordings, *key), new, short=short))
    elif new in JOBS and old in (None, *JOBS):
        article = "an" if new[0] in "aeio" else "a"
        yield _change("profession", before, after, _say(before, choose(_JOB, *key), f"{article} {new}"))
    elif old is None and new in WORN:
        yield _change("add", before, after, _say(before, choose(_WEAR, *key), f"a {WORN[new]}"))
    elif new is None and old in WORN:
        yield _change("remove", before, after, _say(before, choose(_REMOVE, *key), WORN[old]))


def _things(emoji: Sequence[Picture]) -> Iterator[Change]:
    """What may have been changed of things: something added or removed, or the colour."""
    found = {(p.set, str(p.facts["skin_tone"]), p.phrase.noun): p for p in emoji}
    for picture in emoji:
        of_set = (picture.set, str(picture.facts["skin_tone"]))
        for (plain, more), what in ADDED.items():
            other = found.get((*of_set, plain)) if picture.phrase.noun == more else None
            if other is None or other.tokens == picture.tokens:
                continue
            counted = what if what in _UNCOUNTED else f"{'an' if what[0] in 'aeio' else 'a'} {what}"
            words = (other.key, picture.key)
            yield _change("add", other, picture, _say(other, choose(_ADD, *words), counted))
            yield _change("remove", picture, other, _say(other, choose(_REMOVE, *words), what))
    things = [picture for picture in emoji if picture.facts["gender"] is None]
    for before, after in _pairs(things, lambda p: (p.set, str(p.facts["skin_tone"]), _colourless(p))):
        if colour := _recoloured(before.phrase.noun, after.phrase.noun):
            yield _change("colour", before, after, choose(_COLOUR, before.key, after.key).format(colour))


def _colourless(picture: Picture) -> str:
    return " ".join("*" if word in COLOURS else word for word in picture.phrase.noun.split(" "))


def _recoloured(old: str, new: str) -> str | None:
    """The colour of `new` when that is all that differs from `old`: red heart, blue heart."""
    was, words = old.split(" "), new.split(" ")
    if len(was) != len(words):
        return None
    differ = [(a, b) for a, b in zip(was, words, strict=True) if a != b]
    return differ[0][1] if len(differ) == 1 and {*differ[0]} <= {*COLOURS} else None


def _controls(pictures: Sequence[Picture]) -> Iterator[Change]:
    """Nothing changes: because that is asked, or because the image is already what is asked."""
    for picture in pictures:
        if not picture.is_emoji and rank("same", picture.key) % 4:  # emoji are asked for it more often
            continue
        yield Change("same", picture, picture, _polite(choose(_SAME, picture.key), picture.key))
        if not picture.is_emoji:
            continue
        asked = [_style(picture, picture)]
        if isinstance(picture.facts["skin_tone"], str):
            asked.append(_tone(picture, picture))
        yield Change("already", picture, picture, _polite(choose(asked, picture.key, "asked"), picture.key))


def _change(kind: str, before: Picture, after: Picture, instruction: str) -> Change:
    return Change(kind, before, after, _polite(instruction, before.key, after.key))


def _polite(instruction: str, *words: str) -> str:
    """Some people say please."""
    asks = "please" not in instruction and choose(["", "", "", "", "", "please"], "polite", *words)
    return f"{instruction} please" if asks else instruction


def _style(before: Picture, after: Picture) -> str:
    return choose(_STYLE, before.key, after.key).format(style_name(after, before.key))


def _tone(before: Picture, after: Picture) -> str:
    return _say(after, choose(_TONE, before.key, after.key), after.facts["skin_tone"])


def _gender(before: Picture, after: Picture) -> str:
    wordings = _NEUTRAL if after.facts["gender"] == "person" else _GENDER
    wording = choose(wordings, before.key, after.key)
    return _say(before, wording, after.facts["gender"], old=before.facts["gender"])


def _say(picture: Picture, wording: str, what: str, **more: str) -> str:
    """Fill a wording, with the pronouns of whom the image shows."""
    plural = picture.facts["subgroup"] in ("family", "person-symbol") or picture.phrase.article == ""
    neutral = ("them", "their") if plural else ("it", "its")
    him, his = _PRONOUNS.get(picture.facts["gender"], neutral)
    return wording.format(what, him=him, his=his, **more)


def _pairs(
    pictures: Iterable[Picture], key: Callable[[Picture], Hashable]
) -> Iterator[tuple[Picture, Picture]]:
    """Both orders of every two images with one key, unless they look the same."""
    groups: dict[Hashable, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[key(picture)].append(picture)
    for members in groups.values():
        for before in members:
            for after in members:
                if before is not after and before.tokens != after.tokens:
                    yield before, after
