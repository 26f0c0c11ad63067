"""Plain English for an avatar, from the names of its parts and colours."""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from pictish.recipes.starter.phrases import choose, rank

Attributes = Mapping[str, str]

# How hair of a colour is called, by the value of `hair`; without one it is just hair.
_HAIR = {
    "": "{} hair",
    "long": "long {} hair",
    "long wavy": "long wavy {} hair",
    "medium": "{} hair",
    "short": "short {} hair",
    "spiky": "spiky {} hair",
    "curly": "curly {} hair",
    "bob": "{} hair in a bob",
    "bun": "{} hair in a bun",
    "braids": "{} braids",
    "pigtails": "{} pigtails",
    "ponytail": "a {} ponytail",
    "mohawk": "a {} mohawk",
    "quiff": "a {} quiff",
    "turban": "a {} turban",
}
_MANY = {"glasses", "round glasses", "square glasses", "sunglasses", "cat ears", "earrings", "hoop earrings"}
_MANY |= {"stud earrings", "freckles", "stubble"}
_LONG_HAIR = {"long", "long wavy", "bob", "bun", "braids", "pigtails", "ponytail"}
_PARTS = ("hair", "eyewear", "facial hair", "earrings", "detail", "hat", "skin")
_SAID_FIRST = ("hair", "eyewear", "facial hair", "expression", "clothes colour", "hat", "gesture", "detail")


def hair(attributes: Attributes) -> str | None:
    """`long pink hair`, `a red cap`, or None where there is none or nothing is known of it."""
    shape, colour = attributes.get("hair", ""), attributes.get("hair colour")
    if shape == "bald" or (not shape and colour is None):
        return None
    if shape.endswith(("cap", "beanie")):
        return with_article(shape)
    return _HAIR[shape].format(colour)


def with_article(thing: str) -> str:
    """`glasses`, `an eyepatch`, `a beard`."""
    if thing in _MANY:
        return thing
    if thing == "flowers":
        return "flowers in the hair"
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def clothes(attributes: Attributes) -> str | None:
    """`a red shirt`."""
    colour = attributes.get("clothes colour")
    return None if colour is None else with_article(f"{colour} {attributes.get('clothes', 'shirt')}")


def people(attributes: Attributes) -> tuple[str, ...]:
    """Nouns for whom an avatar shows, the plainest first: as most people would call them by their hair."""
    if "facial hair" in attributes:
        return ("man", "guy", "person")
    if attributes.get("hair") in _LONG_HAIR:
        return ("woman", "girl", "person")
    return ("person", "character", "face")


def portrait(attributes: Attributes, noun: str, said: Collection[str]) -> str:
    """What an avatar shows without an article, saying only some of its attributes.

    `happy woman with long pink hair and glasses in a red shirt on a blue background`.
    """
    known = {name: value for name, value in attributes.items() if name in said}
    if "hair" in said and "hair colour" in attributes:
        known["hair colour"] = attributes["hair colour"]
    words = [known["expression"]] if "expression" in known else []
    if known.get("hair") == "bald":
        words.append("bald")
    if parts := [part for name in _PARTS if (part := _part(name, known))]:
        parts = [", ".join(parts[:-1]), parts[-1]] if parts[:-1] else parts
        phrase = " ".join([*words, noun, "with", " and ".join(parts)])
    else:
        phrase = " ".join([*words, noun])
    if (worn := clothes({**attributes, **known})) and "clothes colour" in known:
        phrase += f" in {worn}"
    if "gesture" in known:
        phrase += f", {known['gesture']}" if parts or worn else f" {known['gesture']}"
    if "background" in known:
        phrase += f" on {with_article(known['background'])} background"
    return phrase


def _part(name: str, known: Attributes) -> str | None:
    if name == "hair":
        return hair(known)
    if name not in known:
        return None
    return f"{known[name]} skin" if name == "skin" else with_article(known[name])


def caption(attributes: Attributes) -> str:
    """Everything that is known of an avatar."""
    return portrait(attributes, people(attributes)[0], attributes)


def sayings(attributes: Attributes, key: str, count: int) -> list[str]:
    """Up to `count` different ways to say some of it, without an article: one attribute, two, or three."""
    found: dict[str, None] = {}
    for number in range(4 * count):
        noun = choose(people(attributes), key, str(number), "noun")
        mentioned = min(1 + rank(key, str(number), "told") % 4, len(attributes))
        found[portrait(attributes, noun, _some(attributes, key, number, mentioned))] = None
    return list(islice(found, count))


def _some(attributes: Attributes, key: str, number: int, mentioned: int) -> Sequence[str]:
    """Names of that many attributes, those of which people speak first more often."""
    named = [name for name in attributes if name != "clothes"]
    if "hair" in attributes:
        named = [name for name in named if name != "hair colour"]

    def order(name: str) -> int:
        early = name in _SAID_FIRST or name == "hair colour"
        return rank(key, str(number), name) >> (1 if early else 0)

    return sorted(named, key=order)[:mentioned]
