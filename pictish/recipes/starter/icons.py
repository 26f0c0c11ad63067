"""Icons of one colour, painted: which names are things one can draw, in which colours, and where they stand.

Every choice follows from a hash of the icon's name, so that the same icon looks the same everywhere.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pictish.recipes.starter.nouns import Nouns
from pictish.recipes.starter.phrases import choose, listed
from pictish.recipes.starter.render import Markup, Svg

# Shades that `colours.colour_numbers` and people call by that name.
SHADES: Mapping[str, tuple[str, ...]] = {
    "red": ("d81e2c", "e23b2e", "b5121b"),
    "orange": ("f58220", "ff8c1a", "ee7b0c"),
    "yellow": ("f7d722", "ffdd33", "e8c81c"),
    "green": ("2e9e44", "1f8f3a", "4cb944"),
    "blue": ("2a62d8", "1d4fbf", "3f7ff0"),
    "purple": ("7a2fc0", "6a24a8", "9448d6"),
    "pink": ("ee5fb0", "e64aa0", "f48cc8"),
    "brown": ("7a4a22", "8a5526", "643a18"),
    "black": ("16161a", "202024", "0c0c0e"),
    "white": ("ffffff", "f8f8f8", "fcfcfa"),
    "grey": ("8b8b90", "78787c", "9c9ca0"),
}
_LEAST_DISTANCE = 130  # in RGB from 0 to 255, between a shape and its ground
PLACES: Mapping[str, tuple[float, float, float]] = {  # left and top corner, side; of the image's side
    "": (0.09, 0.09, 0.82),
    "top left": (0.05, 0.05, 0.45),
    "top right": (0.5, 0.05, 0.45),
    "bottom left": (0.05, 0.5, 0.45),
    "bottom right": (0.5, 0.5, 0.45),
}
# Words of the names of icons that are drawn for programs, and of what an icon shows as a sign only.
_SIGNS = listed(
    """
    arrow|arrows|caret|trend|user|users|file|gender|chart|number|skip|list|line|text|upload|download|shuffle
    |crop|backspace|spinner|brackets|sort|logo|identification|align|cursor|selection|slash|check|prohibit
    |hash|columns|rows|layout|picture|sliders|terminal|link|code|key|return|escape|command|option|swatches
    |push|device|folder|calendar|button|previous|next|fast|forward|rewind|play|pause|stop|zoom|battery|wave
    |graphics|frame|steps|split|intersect|subtract|exclude|path|angle|function|sigma|pi|radical|tilde|notch
    |simple|straight|meeple|level|abstract|card|ubisoft|law|master|player|fall|pickup|string|sex|nude|breast
    |prostitute|bra|panties|thong|hanged|decapitation|guillotine|suicide|blood|gore|severed|corpse|flayed
    """
)
_DROPPED = {"simple", "straight"}  # ends of names that say how plain the drawing is
_SIDE = 512  # units of the drawing


@dataclass(frozen=True)
class Look:
    """How an icon is painted: named colours (no background is transparent), their shades, and its place."""

    colour: str
    background: str
    place: str
    shades: tuple[str, str]

    @property
    def attributes(self) -> dict[str, str]:
        """What can be said of it."""
        said = {"colour": self.colour, "background": self.background, "position": self.place}
        return {name: value for name, value in said.items() if value}

    def caption(self, shown: str) -> str:
        """`red capybara on yellow`."""
        place = f" in the {self.place} corner" if self.place else ""
        return f"{self.colour} {shown}{place}" + (f" on {self.background}" if self.background else "")


def thing(name: str, nouns: Nouns) -> str | None:
    """`jumping dog` for an icon's name when that is something one can draw, else None."""
    words = [word for word in name.split("-") if word not in _DROPPED]
    return " ".join(words) if nouns.draws(words) and not _SIGNS.intersection(words) else None


def looks(icon: str) -> Iterator[Look]:
    """Two looks of an icon that differ in its colour, its background or its place."""
    colour, background = _pair(icon, "0")
    first = Look(colour, background, "", _shades(icon, colour, background))
    yield first
    match choose(("colour", "background", "position"), icon, "changed"):
        case "colour":
            options = [name for name in SHADES if name != colour and _contrast(name, background)]
            yield _look(icon, choose(options, icon, "other"), background, "")
        case "background":
            options = [name for name in ("", *SHADES) if name != background and _contrast(colour, name)]
            yield _look(icon, colour, choose(options, icon, "other"), "")
        case _:
            yield _look(icon, colour, background, choose([place for place in PLACES if place], icon, "place"))


def paint(icon: Svg, look: Look) -> Markup:
    """The icon in its look, as a square drawing; what an alias does to it is not known here."""
    left, top, side = (_SIDE * part for part in PLACES[look.place])
    box = f"{icon.left:g} {icon.top:g} {icon.width:g} {icon.height:g}"
    colour, background = look.shades
    ground = f'<rect width="{_SIDE}" height="{_SIDE}" fill="#{background}"/>' if background else ""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {_SIDE} {_SIDE}">{ground}<svg x="{left:g}" y="{top:g}" width="{side:g}" '
        f'height="{side:g}" viewBox="{box}">{icon.body.replace("currentColor", f"#{colour}")}</svg></svg>'
    )


def _pair(icon: str, number: str) -> tuple[str, str]:
    """A colour and a background that differ enough; a third of the images have none."""
    colour = choose(tuple(SHADES), icon, number, "colour")
    grounds = [name for name in SHADES if name != colour and _contrast(colour, name)]
    if _contrast(colour, ""):
        grounds += [""] * (len(grounds) // 2)
    return colour, choose(grounds, icon, number, "background")


def _look(icon: str, colour: str, background: str, place: str) -> Look:
    return Look(colour, background, place, _shades(icon, colour, background))


def _shades(icon: str, colour: str, background: str) -> tuple[str, str]:
    """One shade of each colour, the same in every look of the icon."""
    ground = choose(SHADES[background], icon, background, "ground") if background else ""
    return choose(SHADES[colour], icon, colour, "shape"), ground


def _contrast(colour: str, background: str) -> bool:
    """Whether every shade of the one is far from every shade of the other; no background is white."""
    here, there = SHADES[colour], SHADES[background or "white"]
    return colour != background and all(
        math.dist(_rgb(a), _rgb(b)) >= _LEAST_DISTANCE for a in here for b in there
    )


def _rgb(shade: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(shade))
