"""What an image shows: its concept, the split that follows from it, and words for it from emojibase."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pictish.recipes.starter.nouns import ANIMAL, ARTIFACT, FOOD, OBJECT, PLANT, Nouns

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERS = ("man", "woman", "person")
COMPOSED = ("hair colour", "eyewear", "expression", "facial hair")  # of an avatar
SPLITS = ("train", "validation", "test", "composition-test", "style-test")

_TONE_POINTS = {f"1f3f{suffix}": tone for suffix, tone in zip("bcdef", TONES, strict=True)}
_PERSON_SUBGROUPS = {
    "person",
    "person-gesture",
    "person-role",
    "person-fantasy",
    "person-activity",
    "person-sport",
    "person-resting",
}
# Labels whose words do not show that they are one role in three genders.
_IRREGULAR = {
    "old man": ("old", "man"),
    "old woman": ("old", "woman"),
    "older person": ("old", "person"),
    "merman": ("merperson", "man"),
    "mermaid": ("merperson", "woman"),
    "merperson": ("merperson", "person"),
    "prince": ("royalty", "man"),
    "princess": ("royalty", "woman"),
    "person with crown": ("royalty", "person"),
    "Santa Claus": ("Santa Claus", "man"),
    "Mrs. Claus": ("Santa Claus", "woman"),
    "Mx Claus": ("Santa Claus", "person"),
}
# What emojibase does not know and the sets name differently.
_NAMES = {"20e3": "keycap"}


@dataclass(frozen=True)
class Words:
    """The words for one emoji: the same in every set, because they follow from its code points."""

    caption: str
    label: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None
    subgroup: str | None = None
    skin_tone: tuple[str, ...] = ()
    gender: str | None = None
    role: str | None = None
    keywords: tuple[str, ...] = ()
    wider: tuple[str, ...] = ()


def sha_modulo(text: str, divisor: int) -> int:
    """Return the sha256 of the text, read as one big-endian integer, modulo the divisor."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % divisor


def concept_of(chars_key: str) -> str:
    """Return the code points of an emoji, lower-case hex joined by dashes, without the variation selector."""
    return "-".join(part for part in chars_key.lower().split("-") if part != "fe0f")


def composition_of(facts: Mapping[str, Any]) -> str | None:
    """Return the combination of attributes that is held out as a whole, or None.

    `role|tone|gender` of one person with all three (couples have two people), and of an avatar its values of
    `COMPOSED` that are known.
    """
    if attributes := facts.get("attributes"):
        known = [attributes.get(name, "") for name in COMPOSED]
        return "|".join(known) if sum(map(bool, known)) > 1 else None
    if facts["role"] is None or facts["gender"] is None or not isinstance(facts["skin_tone"], str):
        return None
    return f"{facts['role']}|{facts['skin_tone']}|{facts['gender']}"


def split_of(concept: str, composition: str | None = None, style_test: bool = False) -> str:
    """Return the split of an image; it follows from these words alone, never from what else there is."""
    if style_test:
        return "style-test"
    if composition is not None and sha_modulo(composition, 10) == 0:
        return "composition-test"
    return {0: "test", 1: "validation"}.get(sha_modulo(concept, 20), "train")


def _plain(label: str) -> str:
    """Return a CLDR label as plain words: straight quotes, commas between its parts."""
    straight = label.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    straight = straight.replace("\N{LEFT DOUBLE QUOTATION MARK}", '"')
    return straight.replace("\N{RIGHT DOUBLE QUOTATION MARK}", '"').replace(": ", ", ")


def concept_of_text(emoji: str) -> str:
    """Return the concept of an emoji that is given as text."""
    return concept_of("-".join(f"{ord(letter):x}" for letter in emoji))


def _slug(label: str) -> str:
    """Return a label as icons are named: lower case, words joined by dashes."""
    plain = unicodedata.normalize("NFKD", label.lower().replace("&", "and")).encode("ascii", "ignore")
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[\u2019'.]", "", plain.decode())).strip("-")


# Kinds of WordNet's nouns that an emoji can be, by the first word of its subgroup; else no wider words
_NOUN_KINDS = {
    "animal": frozenset({ANIMAL}),
    "plant": frozenset({PLANT}),
    "food": frozenset({FOOD, PLANT}),
    "drink": frozenset({FOOD}),
    "transport": frozenset({ARTIFACT}),
    "place": frozenset({ARTIFACT, OBJECT}),
    "clothing": frozenset({ARTIFACT}),
    "musical": frozenset({ARTIFACT}),
    "tool": frozenset({ARTIFACT}),
    "household": frozenset({ARTIFACT}),
    "computer": frozenset({ARTIFACT}),
    "phone": frozenset({ARTIFACT}),
    "light": frozenset({ARTIFACT}),
    "book": frozenset({ARTIFACT}),
    "office": frozenset({ARTIFACT}),
    "medical": frozenset({ARTIFACT, FOOD}),
    "sport": frozenset({ARTIFACT}),
}
_MISLEADING = {"dolphin"}  # WordNet's first is the fish of that name


class EmojiWords:
    """Looks up the words of an emoji in emojibase's English data (`en/data.json`, `meta/groups.json`).

    `keywords` are emojilib's, by the emoji as text; `nouns` gives wider words.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        groups: Mapping[str, Mapping[str, str]],
        keywords: Mapping[str, Sequence[str]],
        nouns: Nouns,
    ) -> None:
        self._nouns = nouns
        self._keywords = {concept_of_text(emoji): words for emoji, words in keywords.items()}
        self._entries: dict[str, Mapping[str, Any]] = {}
        for entry in data:
            for variant in (entry, *entry.get("skins", ())):
                self._entries[concept_of(variant["hexcode"])] = variant
        self._groups = groups["groups"]
        self._subgroups = groups["subgroups"]
        self._labels = {entry["label"] for entry in self._entries.values()}
        self._named = {_slug(entry["label"]): concept for concept, entry in self._entries.items()}

    def __contains__(self, concept: str) -> bool:
        return concept in self._entries

    def concept_named(self, icon: str) -> str | None:
        """Return the concept whose label an icon's name is, numbered or with another word for it, or None."""
        plain = re.sub(r"-\d+$", "", icon)
        names = (icon, plain, plain.removesuffix("-face"), f"{plain}-face")
        return next((self._named[name] for name in names if name in self._named), None)

    def describe(self, concept: str, icon: str) -> Words:
        """Return the words for a concept; the icon's own name is used where emojibase does not know it."""
        tones = tuple(_TONE_POINTS[p] for p in concept.split("-")[1:] if p in _TONE_POINTS)
        bare = "-".join(p for i, p in enumerate(concept.split("-")) if i == 0 or p not in _TONE_POINTS)
        tone_words = ", ".join(f"{tone} skin tone" for tone in tones)
        entry = self._entries.get(concept)
        if entry is None and bare in self._entries:
            entry = dict(self._entries[bare])
            entry["label"] = f"{entry['label']}: {tone_words}"
        if entry is None:
            name = _NAMES.get(concept, icon.replace("-", " "))
            for tone in tones:
                name = name.replace(f" {tone.replace('-', ' ')} skin tone", "")
            gender, role = self._person(name)
            caption = f"{name}, {tone_words}" if tones else name
            return Words(caption, skin_tone=tones, gender=gender, role=role)
        if isinstance(entry.get("tone"), int):
            tones = (TONES[entry["tone"] - 1],)
        elif entry.get("tone"):
            tones = tuple(TONES[t - 1] for t in entry["tone"])
        group, subgroup = entry.get("group"), entry.get("subgroup")
        subgroup_name = None if subgroup is None else self._subgroups[str(subgroup)]
        gender, role = None, None
        if subgroup_name in _PERSON_SUBGROUPS:
            gender, role = self._person(entry["label"])
        return Words(
            caption=_plain(entry["label"]),
            label=entry["label"],
            tags=tuple(sorted(entry.get("tags", ()))),
            group=None if group is None else self._groups[str(group)],
            subgroup=subgroup_name,
            skin_tone=tones,
            gender=gender,
            role=role,
            keywords=self._telling(bare, entry),
            wider=self._wider(_plain(entry["label"]), subgroup_name),
        )

    def _telling(self, concept: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the words of emojilib that emojibase lacks, in plain letters."""
        known = {*entry.get("tags", ()), *re.split(r"[^a-z]+", entry["label"].lower())}
        words = (word.replace("_", " ") for word in self._keywords.get(concept, ())[1:])
        return tuple(
            dict.fromkeys(w for w in words if re.fullmatch(r"[a-z]{3,}( [a-z]+)?", w) and w not in known)
        )

    def _wider(self, name: str, subgroup: str | None) -> tuple[str, ...]:
        """Return what WordNet says the thing is a kind of."""
        kinds = _NOUN_KINDS.get((subgroup or "").split("-")[0])
        head = re.split(r" (?:with|without|of|in|on|at|and) |, ", name)[0].removesuffix(" face")
        if kinds is None or head in _MISLEADING:
            return ()
        sense = self._nouns.sense(head.split(" "), kinds)
        return () if sense is None else tuple(self._nouns.wider(sense))

    def _person(self, label: str) -> tuple[str | None, str | None]:
        """Read gender and role from a label such as `woman walking: facing right, dark skin tone`."""
        head, *rest = re.split(r": |, ", label)
        phrase = " ".join([head, *(part for part in rest if not part.endswith(" skin tone"))])
        if phrase in _IRREGULAR:
            role, gender = _IRREGULAR[phrase]
            return gender, role
        words = phrase.split(" ")
        genders = [word for word in words if word in GENDERS]
        if len(genders) == 1:
            return genders[0], " ".join(word for word in words if word not in GENDERS) or None
        if not genders and {f"man {phrase}", f"woman {phrase}"} <= self._labels:
            return "person", phrase
        return None, None
