"""Plain English for an image of the starter data: a noun with its article and skin tone, from its facts."""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pictish.recipes.starter.concepts import sha_modulo

_Option = TypeVar("_Option")


def listed(text: str) -> frozenset[str]:
    """The words between the bars of a text of several lines."""
    return frozenset(word for line in text.split("\n") for word in line.strip().split("|") if word)


_STYLE_NAMES = {
    "fluent-emoji-flat": ("fluent-emoji-flat", "fluent"),
    "fluent-emoji-3d": ("fluent-emoji-3d", "3d", "fluent 3d"),
    "noto-v1": ("noto-v1", "old noto"),
    "streamline-emojis": ("streamline-emojis", "streamline"),
    "photos": ("photo",),
}
FOLDER_SETS = ("openclipart", "tuxpaint")
ICON, AVATAR, PHOTO = "icon", "avatar", "photo"  # what `style` begins with
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")

_PLURALS = {"adult": "adults", "child": "children", "man": "men", "woman": "women", "person": "people"}
_NUMBERS = ("no", "a", "two", "three", "four")
# Nouns that end in s and are one thing, and first words that are many.
_SINGULAR = re.compile(r".*(?:ss|us|os|[^k]is|lens|'s)")
_MANY = {"men", "women", "people", "children"}
# Things without an article, by the last word before `with`, `of` and the like.
_MASS = listed(
    """
    bacon|bread|rice|butter|salt|soap|ice|fire|yarn|thread|popcorn|sushi|spaghetti|
    sake|coral|garlic|broccoli|fog|foggy|wood|luggage|polish|tennis|badminton|bowling
    |lacrosse|hockey|handball|pong|golf|oden|dango|falafel|custard|meat|food|money|
    water|liquid|camping|cooking|racing|breast-feeding|construction|copyright|registered|
    information|radioactive|prohibited|wireless|om|divide|multiply|plus|minus|voltage|
    control|mate|DNA|dna|dizzy|away|together|lowercase|uppercase|laughing|star-struck|
    fuji|currency|cinema|lightning|customs|hair|litter|mahjong|ginger|unlocked
    |locked|clothing|footwear|furniture|seafood|milk|juice|yoghurt|cream|pants|shorts|outwear
    """
)
_BREAK = re.compile(
    r" (?:with|without|of|in|on|at|over|behind|under|from|and|for|facing|showing|holding|between) "
)
_CAPITAL_NOUN = re.compile(
    r"(?:button|arrow|tree|castle|post office|symbol|sign|dolls|mark|T-Rex|medal|\bM)$"
)
# "unicorn", "ewe", "one-piece" begin with a consonant when spoken; "x-ray" and "NG button" with a vowel.
_CONSONANT = re.compile(r"(?:NEW|uni|ewe|one|eu|us[ei]|UN|URL|utens)")
_SPELT = re.compile(r"(?:hour|honest|x-|8|11|18|[AEFHILMNORSX](?:[A-Z]{1,2})?[ -])")
_THE_COUNTRY = re.compile(
    r"(?:Islands|Territories|Republic|Emirates|Kingdom|States|Nations|Union|Netherlands|Philippines|Maldives"
    r"|Comoros|Seychelles|Bahamas|Gambia)$|^Isle of"
)
_WORN = re.compile(
    r" (veil|headscarf|skullcap|crown|turban|tuxedo|white cane|manual wheelchair|motorized wheelchair"
    r"|steamy room|suit|hand|ball|baby|haircut|massage|boat|bath)\b"
)
_CARD = re.compile(r"(?:simple|bordered|ornamental|white)_([hdsc])_(10|[2-9ajqk])\b")
_SUITS = {"h": "hearts", "d": "diamonds", "s": "spades", "c": "clubs"}
_RANKS = {"2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight"}
_RANKS |= {"9": "nine", "10": "ten", "j": "jack", "q": "queen", "k": "king", "a": "ace"}


@dataclass(frozen=True)
class Phrase:
    """`a` `woman farmer` ` with dark skin`: article (may be empty), noun, and what is said of the skin."""

    article: str
    noun: str
    skin: str = ""

    @property
    def bare(self) -> str:
        """Without the article: woman farmer with dark skin."""
        return self.noun + self.skin

    @property
    def full(self) -> str:
        """With the article: a woman farmer with dark skin."""
        return f"{self.article} {self.bare}".lstrip()

    @property
    def skinless(self) -> str:
        """With the article, and nothing about the skin: a woman farmer."""
        return f"{self.article} {self.noun}".lstrip()


@dataclass(frozen=True, eq=False)
class Picture:
    """One tokenized image and what is known about it."""

    key: str
    tokens: bytes
    facts: Mapping[str, Any]

    @functools.cached_property
    def phrase(self) -> Phrase:
        """What it shows."""
        return phrase_of(self.facts)

    @property
    def kind(self) -> str:
        """`icon`, `avatar`, `photo`, `file` (clip art and stamps) or `emoji`."""
        kind = str(self.facts["style"]).partition(" ")[0]
        if kind in (ICON, AVATAR, PHOTO):
            return kind
        return "file" if self.set in FOLDER_SETS else "emoji"

    @property
    def attributes(self) -> Mapping[str, str]:
        """Its named attributes: of an avatar its parts and colours, of an icon colours and place."""
        known: Mapping[str, str] = self.facts.get("attributes") or {}
        return known

    @property
    def set(self) -> str:
        """Name of its set, which is what its style is called."""
        return str(self.facts["set"])

    @property
    def style(self) -> str:
        """What its style is called."""
        return PHOTO if self.kind == PHOTO else self.set

    @property
    def is_emoji(self) -> bool:
        """Whether its words are emojibase's, and so the same in every set."""
        return self.kind == "emoji"


def choose(options: Sequence[_Option], *words: str) -> _Option:
    """One of the options; which, follows from the words alone."""
    return options[sha_modulo("|".join(words), len(options))]


def rank(*words: str) -> int:
    """A number that follows from the words alone: sorted by it, things are mixed, and always the same."""
    return sha_modulo("|".join(words), 1 << 64)


def style_name(picture: Picture, *words: str) -> str:
    """What a sentence calls the image's style: the name of its set, or what people make of that."""
    return choose(_STYLE_NAMES.get(picture.set, (picture.set,)), picture.key, *words)


def phrase_of(facts: Mapping[str, Any]) -> Phrase:
    """The phrase for what the facts of an image say."""
    if str(facts.get("style")).startswith((ICON, AVATAR)):
        article = _article(facts["label"]) if facts["style"].startswith(ICON) else "a"
        return Phrase(article and _article(facts["caption"]), facts["caption"])
    if facts.get("style") == PHOTO:
        return Phrase(_article(facts["caption"]), facts["caption"])
    if facts["set"] == "openclipart":
        return _clip_art(facts)
    if facts["set"] == "tuxpaint":
        return _stamp(facts["caption"])
    parts = facts["caption"].split(", ")
    parts = [part for part in parts if not part.endswith(" skin tone")] or parts  # swatches show nothing else
    noun = _noun(parts[0], parts[1:])
    if facts["role"] is not None:
        noun = _WORN.sub(r" a \1", noun).replace("in lotus", "in the lotus")
    if facts["subgroup"] == "warning" and noun.startswith("no "):
        noun += " sign"
    article = "the" if parts[0] == "flag" and parts[1:] else _article(noun)
    return Phrase(article, noun, _skin(noun, facts["skin_tone"]))


def _noun(head: str, rest: Sequence[str]) -> str:
    """The parts of an emoji's caption, without its skin tones, as one noun."""
    if not rest:
        return head
    members = _members(rest)
    match head:
        case "flag":
            country = " and ".join(rest[0].split(" & "))
            return f"flag of the {country}" if _THE_COUNTRY.search(country) else f"flag of {country}"
        case "keycap":
            return f"keycap with {rest[0]}"
        case "family":
            return f"family of {members}"
        case "kiss":
            return f"kiss between {members}"
        case "couple with heart":
            return f"couple of {members} with a heart"
    if rest == ["bald"]:
        return f"bald {head}"
    if rest == ["beard"]:
        return f"{head} with a beard"
    if rest[0].endswith(" hair"):
        return f"{head} with {rest[0]}"
    return " ".join([head, *rest])


def _members(names: Sequence[str]) -> str:
    """Who is in a group: `two women and a boy`."""
    said = []
    for name, count in Counter(names).items():
        one = f"{_article(name)} {name}"
        said.append(one if count == 1 else f"{_NUMBERS[count]} {_PLURALS.get(name, f'{name}s')}")
    return " and ".join([", ".join(said[:-1]), said[-1]] if said[:-1] else said)


def _skin(noun: str, tone: str | list[str] | None) -> str:
    if tone is None:
        return ""
    if isinstance(tone, list):
        return f", {' and '.join(tone)} skin"
    if "facing" in noun or "between" in noun or noun.startswith("couple"):
        return f", {tone} skin"
    return f" and {tone} skin" if " with " in noun else f" with {tone} skin"


def with_article(noun: str) -> str:
    """The noun behind `a`, `an` or nothing."""
    return f"{_article(noun)} {noun}".lstrip()


def _article(noun: str) -> str:
    """`a`, `an` or nothing, as far as the look of a word tells."""
    head = _BREAK.split(noun)[0]
    first, last = head.split(" ")[0], head.split(" ")[-1]
    if first in _PLURALS or noun.endswith((" button", " (blood type)", " sign")):
        return "an" if _vowel(noun) else "a"
    if (
        first in _MANY
        or last in _MASS
        or noun.startswith(("input ", "two ", "rolling "))
        or "o'clock" in noun
    ):
        return ""
    if re.fullmatch(r"[a-z]+-(?:thirty|and)", noun):
        return ""
    if noun.startswith("Statue of"):
        return "the"
    if first[0].isupper() and not _CAPITAL_NOUN.search(head) and not first.startswith("Christmas"):
        return ""
    if last.endswith("s") and not _SINGULAR.fullmatch(last):
        return ""
    return "an" if _vowel(noun) else "a"


def _vowel(noun: str) -> bool:
    """Whether it begins with a vowel when it is spoken."""
    return not _CONSONANT.match(noun) and (noun[0] in "aeiouAEIOUÅ" or _SPELT.match(noun) is not None)


def _clip_art(facts: Mapping[str, Any]) -> Phrase:
    """Clip art has file and folder names only; no article, for a title may be Italian, or a maker's name."""
    path = PurePosixPath(facts["name"])
    subject = " ".join(path.parent.name.replace("_", " ").split())
    if card := _CARD.match(path.stem):
        return Phrase("the", f"{_RANKS[card[2]]} of {_SUITS[card[1]]}")
    if star := re.match(r"star_(\d+)pt", path.stem):
        return Phrase("a", f"star with {star[1]} points")
    title = str(facts["caption"]).removesuffix(f", {subject}")
    words = [re.sub(r"(?<=[a-zA-Z]{3})\d+$", "", word) for word in title.split()]
    while len(words) > 1 and len(words[-1]) == 1:
        words.pop()
    noun = " ".join(words) if re.search("[a-zA-Z]{3}", title) else subject
    if (
        re.match(r"flags/(?:africa|america|asia|europe|oceania)", facts["subgroup"] or "")
        and "flag" not in noun
    ):
        return Phrase("the", f"flag of {noun.title()}")
    return Phrase("", noun)


def _stamp(caption: str) -> Phrase:
    """A stamp's caption is a sentence; only a short one begins with a noun for certain."""
    simple = re.fullmatch(r"(A|An|The) ([^.,:;!?—“”]{1,60})", caption)
    return Phrase(simple[1].lower(), simple[2]) if simple else Phrase("", caption)
