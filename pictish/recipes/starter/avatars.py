"""Avatars of DiceBear whose parts and colours are named: which there are, and their SVG from Node.js.

A style has attributes, an attribute named values, and a value the options of DiceBear that draw it. Images
come in families: one drawing and others that differ from it in one attribute. What has no name (the shape of
a nose) follows from the family's seed, so that it is the same in all of them. Options not given here are
DiceBear's: https://www.dicebear.com/styles.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pictish.io.files import check_relative
from pictish.recipes.starter.phrases import choose

Options = Mapping[str, Any]
Values = Mapping[str, Options]  # by the value's name; "" where there is none of it

FAMILIES = 150  # of a style
VARIATIONS = 3  # of a family, besides its first drawing

_SCRIPT = """
import { createAvatar } from '@dicebear/core';
let text = '';
for await (const chunk of process.stdin) text += chunk;
const styles = {};
for (const { style, options } of JSON.parse(text)) {
  styles[style] ??= await import(`@dicebear/${style}`);
  process.stdout.write(JSON.stringify(createAvatar(styles[style], options).toString()) + '\\n');
}
"""


@dataclass(frozen=True)
class Avatar:
    """One avatar to be drawn: a style of DiceBear and its options."""

    style: str
    options: Options


@dataclass(frozen=True)
class Face:
    """One avatar and the names of what it shows, by attribute; its family draws the rest alike."""

    family: int
    number: int
    attributes: Mapping[str, str]
    avatar: Avatar


def _colours(option: str, colours: Mapping[str, str], *more: str) -> Values:
    return {name: {key: [colour] for key in (option, *more)} for name, colour in colours.items()}


def _parts(option: str, **names: str | Sequence[str]) -> Values:
    """Values of a part that is always there: `bun="bun2"` for one form, a list for several."""
    return {
        name.replace("_", " "): {option: [forms] if isinstance(forms, str) else list(forms)}
        for name, forms in names.items()
    }


def _maybe(option: str, **names: str | Sequence[str]) -> Values:
    """Values of a part that may be missing."""
    there = {
        name: {**options, f"{option}Probability": 100} for name, options in _parts(option, **names).items()
    }
    return {"": {f"{option}Probability": 0}, **there}


def _numbered(prefix: str, *numbers: int) -> list[str]:
    return [f"{prefix}{number:02d}" for number in numbers]


_HAIR = {
    "black": "000000",  # what DiceBear takes for black when it keeps a mouth visible on a beard
    "brown": "6f4426",
    "blond": "ecc864",
    "red": "c0431f",
    "grey": "a3a3a6",
    "pink": "f27fb2",
    "blue": "3b73d9",
    "green": "3a9d52",
    "purple": "8747c4",
}
_SKIN = {"light": "f7d5bd", "medium": "d29160", "dark": "6b4630"}
_CLOTHES = {
    "red": "d93636",
    "orange": "f28c28",
    "yellow": "f4cf3a",
    "green": "3fa55b",
    "blue": "3d76dd",
    "purple": "8a4fc7",
    "pink": "f48fbd",
    "black": "26262b",
    "white": "f5f5f5",
}
_GROUND = {
    "red": "e0554f",
    "yellow": "f7d64a",
    "green": "62b872",
    "blue": "6ea8ee",
    "purple": "a678d8",
    "pink": "f7a8cb",
    "grey": "a9a9ad",
}
_BACKGROUND: Values = {"": {}, **_colours("backgroundColor", _GROUND)}

STYLES: Mapping[str, Mapping[str, Values]] = {
    "lorelei": {
        "hair colour": _colours("hairColor", _HAIR),
        "eyewear": _maybe("glasses", glasses=_numbered("variant", 1, 3, 4, 5), sunglasses="variant02"),
        "expression": _parts(
            "mouth", happy=_numbered("happy", *range(1, 19)), sad=_numbered("sad", *range(1, 10))
        ),
        "facial hair": _maybe("beard", beard=_numbered("variant", 1, 2)),
        "earrings": _maybe("earrings", earrings=_numbered("variant", 1, 2, 3)),
        "detail": {
            "": {"frecklesProbability": 0, "hairAccessoriesProbability": 0},
            "freckles": {"frecklesProbability": 100, "hairAccessoriesProbability": 0},
            "flowers": {"frecklesProbability": 0, "hairAccessoriesProbability": 100},
        },
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "open-peeps": {
        "hair": {
            **_parts("head", bob=["bangs"], bun="grayBun", medium="grayMedium", short="grayShort"),
            **_parts("head", mohawk=["mohawk"]),
        },
        "hair colour": _colours("headContrastColor", _HAIR),
        "eyewear": _maybe(
            "accessories",
            glasses=["glasses", "glasses2", "glasses3", "glasses5"],
            sunglasses=["sunglasses", "sunglasses2"],
            eyepatch="eyepatch",
        ),
        "expression": _parts(
            "face",
            happy=["smile", "smileBig", "calm"],
            sad=["solemn", "concerned"],
            angry=["veryAngry", "angryWithFang", "rage"],
            laughing="smileLOL",
            scared=["fear", "hectic"],
            loving="lovingGrin1",
        ),
        "facial hair": _maybe(
            "facialHair",
            beard=["full", "full2", "full3"],
            moustache=["moustache2", "moustache3", "moustache5", "moustache6", "moustache7"],
            goatee=["goatee1", "goatee2"],
        ),
        "clothes colour": _colours("clothingColor", _CLOTHES),
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "notionists": {
        "eyewear": _maybe(
            "glasses",
            glasses=_numbered("variant", 3, 8, 11),
            sunglasses=_numbered("variant", 1, 2, 4, 5, 10),
        ),
        "facial hair": _maybe("beard", beard=_numbered("variant", *range(1, 13))),
        "gesture": _maybe(
            "gesture",
            waving_with_both_hands="waveLongArms",
            waving="waveLongArm",
            pointing_up="pointLongArm",
            making_an_OK_sign=["okLongArm", "ok"],
            holding_a_phone="handPhone",
        ),
        "hair": {
            **_parts("hair", cap="hat"),
            "": {"hair": _numbered("variant", *range(1, 64))},
        },
        "background": _BACKGROUND,
    },
    "pixel-art": {
        "hair": _parts(
            "hair", long=_numbered("long", *range(1, 22)), short=_numbered("short", *range(1, 25))
        ),
        "hair colour": _colours("hairColor", _HAIR),
        "eyewear": _maybe(
            "glasses", glasses=_numbered("light", 2, 5, 6), sunglasses=_numbered("dark", 2, 3, 5)
        ),
        "hat": {
            "": {"hatProbability": 0},
            **{
                f"{name} hat": {"hatProbability": 100, "hatColor": [colour]}
                for name, colour in _CLOTHES.items()
                if name in ("red", "green", "blue", "pink", "yellow")
            },
        },
        "clothes colour": _colours("clothingColor", _CLOTHES),
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "micah": {
        "hair": _parts(
            "hair",
            quiff="fonze",
            mohawk="mrT",
            bald="mrClean",
            short="dannyPhantom",
            long="full",
            turban="turban",
            bob="pixie",
        ),
        "hair colour": _colours("hairColor", _HAIR, "facialHairColor"),
        "eyewear": _maybe("glasses", round_glasses="round", square_glasses="square"),
        "expression": _parts(
            "mouth",
            surprised="surprised",
            laughing="laughing",
            nervous="nervous",
            happy="smile",
            sad=["sad", "frown"],
        ),
        "facial hair": _maybe("facialHair", beard="beard", stubble="scruff"),
        "earrings": _maybe("earrings", hoop_earrings="hoop", stud_earrings="stud"),
        "clothes colour": _colours("shirtColor", _CLOTHES),
        "skin": _colours("baseColor", _SKIN),
        "background": _BACKGROUND,
    },
    "personas": {
        "hair": _parts(
            "hair",
            long=["long", "extraLong"],
            short=["shortCombover", "fade", "buzzcut"],
            bob=["bobCut", "bobBangs"],
            curly=["curly", "curlyHighTop"],
            pigtails="pigtails",
            bun=["straightBun", "curlyBun"],
            mohawk="mohawk",
            bald="bald",
            orange_cap="cap",
            red_beanie="beanie",
        ),
        "hair colour": _colours("hairColor", _HAIR),
        "eyewear": {
            "": {"eyes": ["open"]},
            **_parts("eyes", glasses="glasses", sunglasses="sunglasses"),
        },
        "expression": _parts("mouth", happy=["smile", "bigSmile"], sad="frown", surprised="surprise"),
        "facial hair": _maybe("facialHair", beard="beardMustache", moustache="walrus"),
        "clothes colour": _colours("clothingColor", _CLOTHES),
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "toon-head": {
        "hair": {
            **{
                name: {"hair": [front], "rearHairProbability": 0}
                for name, front in (("short", "sideComed"), ("spiky", "spiky"), ("bun", "bun"))
            },
            "long": {"hair": ["sideComed"], "rearHair": ["longStraight"], "rearHairProbability": 100},
            "long wavy": {"hair": ["sideComed"], "rearHair": ["longWavy"], "rearHairProbability": 100},
            "bob": {"hair": ["sideComed"], "rearHair": ["neckHigh"], "rearHairProbability": 100},
        },
        "hair colour": _colours("hairColor", _HAIR),
        "expression": {
            "laughing": {"mouth": ["laugh"], "eyes": ["happy"], "eyebrows": ["happy"]},
            "happy": {"mouth": ["smile"], "eyes": ["happy"], "eyebrows": ["happy"]},
            "angry": {"mouth": ["angry"], "eyes": ["wide"], "eyebrows": ["angry"]},
            "sad": {"mouth": ["sad"], "eyes": ["humble"], "eyebrows": ["sad"]},
            "surprised": {"mouth": ["agape"], "eyes": ["wide"], "eyebrows": ["raised"]},
            "winking": {"mouth": ["smile"], "eyes": ["wink"], "eyebrows": ["neutral"]},
        },
        "facial hair": _maybe(
            "beard", beard=["fullBeard", "longBeard"], moustache="moustacheTwirl", goatee="chinMoustache"
        ),
        "clothes": {
            name: {"clothes": [form]}
            for name, form in (
                ("turtleneck", "turtleNeck"),
                ("jacket", "openJacket"),
                ("dress", "dress"),
                ("sweater", "shirt"),
                ("t-shirt", "tShirt"),
            )
        },
        "clothes colour": _colours("clothesColor", _CLOTHES),
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "adventurer": {
        "hair": _parts(
            "hair",
            long=_numbered("long", 1, 4, 5, 6, 7, 9, 17, 20, 22, 24),
            bob=_numbered("long", 2, 21, 25, 26),
            pigtails=_numbered("long", 14, 15),
            ponytail=_numbered("long", 19),
            short=_numbered("short", 1, 2, 4, 7, 8, 9, 10, 11, 14),
            curly=_numbered("short", 3, 17, 18),
            spiky=_numbered("short", 16),
            mohawk=_numbered("short", 15),
        ),
        "hair colour": _colours("hairColor", _HAIR),
        "eyewear": _maybe("glasses", glasses=_numbered("variant", 2, 4, 5), sunglasses="variant01"),
        "expression": _parts(
            "mouth",
            happy=_numbered("variant", 22, 23, 25, 26, 27, 28, 30),
            surprised=_numbered("variant", 7, 18),
            serious=_numbered("variant", 9),
        ),
        "facial hair": {
            "": {"featuresProbability": 0},
            "moustache": {"features": ["mustache"], "featuresProbability": 100},
        },
        "earrings": _maybe("earrings", earrings=_numbered("variant", 1, 2, 3, 4, 5, 6)),
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "miniavs": {
        "hair": _parts(
            "hair",
            ponytail="ponyTail",
            long="long",
            curly="curly",
            short=["stylish", "classic01", "classic02"],
            quiff="elvis",
        ),
        "hair colour": _colours("hairColor", _HAIR),
        "eyewear": _maybe("glasses", glasses="normal"),
        "facial hair": _maybe(
            "mustache", moustache=["pencilThin", "horshoe", "freddy"], goatee="pencilThinBeard"
        ),
        "clothes colour": _colours("bodyColor", _CLOTHES),
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
    "big-smile": {
        "hair": _parts(
            "hair",
            short=["shortHair", "bowlCutHair"],
            mohawk="mohawk",
            long=["straightHair", "bangs"],
            long_wavy="wavyBob",
            curly=["curlyShortHair", "curlyBob"],
            braids="braids",
            bun=["bunHair", "froBun"],
        ),
        "hair colour": _colours("hairColor", _HAIR),
        "eyewear": _maybe(
            "accessories",
            glasses="glasses",
            sunglasses="sunglasses",
            sleep_mask="sleepMask",
            face_mask="faceMask",
            red_clown_nose="clownNose",
            cat_ears="catEars",
            tiara="sailormoonCrown",
        ),
        "expression": {
            "happy": {"eyes": ["cheery"], "mouth": ["teethSmile", "gapSmile"]},
            "sad": {"eyes": ["sad"], "mouth": ["openSad"]},
            "angry": {"eyes": ["angry"], "mouth": ["unimpressed"]},
            "sleepy": {"eyes": ["sleepy"], "mouth": ["unimpressed"]},
            "winking": {"eyes": ["winking"], "mouth": ["kawaii"]},
            "star-struck": {"eyes": ["starstruck"], "mouth": ["openedSmile"]},
        },
        "skin": _colours("skinColor", _SKIN),
        "background": _BACKGROUND,
    },
}
# What a style draws the same way always, or never: parts without a name that would make a caption untrue.
_FIXED: Mapping[str, Options] = {
    "open-peeps": {"maskProbability": 0},
    "notionists": {"bodyIconProbability": 0},
    "pixel-art": {"beardProbability": 0, "accessoriesProbability": 0},
    "micah": {"glassesColor": ["26262b"], "earringColor": ["f4cf3a"]},
    "personas": {"nose": ["mediumRound", "smallRound"]},
    "adventurer": {"scale": 85, "translateY": 4},
    "miniavs": {"mouth": ["default"], "body": ["tShirt"], "blushesProbability": 0},
    "big-smile": {"scale": 90, "translateY": 3},
}
_OFTEN_NONE = 2  # an attribute that may be missing is missing this many times as often as it has one value
# Hair that hides the colour of hair, or has none.
COLOURLESS = frozenset({"bald", "orange cap", "red beanie"})


def faces(style: str) -> list[Face]:
    """All faces of a style, each different by name from the others of its family."""
    found = []
    for family in range(FAMILIES):
        first = {name: _drawn(values, style, str(family), name) for name, values in STYLES[style].items()}
        looks = [_named(first)]
        found.append(_face(style, family, 0, first))
        attempt = 0
        while len(looks) <= VARIATIONS:
            attempt += 1
            changed = _vary(style, family, attempt, first)
            if _named(changed) not in looks:
                looks.append(_named(changed))
                found.append(_face(style, family, len(looks) - 1, changed))
    return found


def _drawn(values: Values, *words: str) -> str:
    """One value's name, that of a part that is missing more often."""
    names = list(values)
    if "" in values:
        names += [""] * (_OFTEN_NONE - 1) * (len(values) - 1)
    return choose(names, *words)


def _vary(style: str, family: int, attempt: int, first: Mapping[str, str]) -> dict[str, str]:
    """The first look of a family with one attribute changed."""
    words = (style, str(family), str(attempt))
    name = choose(list(STYLES[style]), *words, "which")
    others = [value for value in STYLES[style][name] if value != first[name]]
    return {**first, name: choose(others, *words, "value")}


def _named(look: Mapping[str, str]) -> dict[str, str]:
    """What can be seen of a look: the colour of hair that is hidden cannot."""
    seen = {name: value for name, value in look.items() if value}
    if look.get("hair") in COLOURLESS:
        seen.pop("hair colour", None)
    return seen


def _face(style: str, family: int, number: int, look: Mapping[str, str]) -> Face:
    options: dict[str, Any] = {"seed": f"{style} {family}", "size": 128, **_FIXED.get(style, {})}
    for name, value in look.items():
        for key, forms in STYLES[style][name][value].items():
            several = isinstance(forms, list) and len(forms) > 1
            options[key] = [choose(forms, style, str(family), name, value)] if several else forms
    return Face(family, number, _named(look), Avatar(style, options))


def draw(avatars: Sequence[Avatar], packages: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """The SVG of each avatar, drawn by one run of Node.js.

    `packages` are the files of `@dicebear/core` and of each style by the package's name. ValueError when
    Node.js is missing or fails.
    """
    node = shutil.which("node")
    if node is None:
        raise ValueError("avatars are drawn with Node.js, which is not installed: apt install nodejs")
    with tempfile.TemporaryDirectory() as temp:
        for package, files in packages.items():
            for name, blob in files.items():
                check_relative(name)
                path = Path(temp, "node_modules", package, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(blob)
        asked = json.dumps([{"style": avatar.style, "options": avatar.options} for avatar in avatars])
        done = subprocess.run(
            [node, "--input-type=module", "--eval", _SCRIPT],
            input=asked,
            capture_output=True,
            text=True,
            check=False,
            cwd=temp,
        )
    if done.returncode != 0:
        reason = re.search(r"^\w*Error.*$", done.stderr, re.MULTILINE)
        raise ValueError(
            f"Node.js could not draw the avatars: {reason[0] if reason else f'exit code {done.returncode}'}"
        )
    drawn = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(drawn) == len(avatars)
    return drawn
