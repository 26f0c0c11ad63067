"""Instructions that change one attribute of an avatar or an icon."""

from collections.abc import Mapping

from pictish.recipes.starter.phrases import choose
from pictish.recipes.starter.portraits import clothes, hair, people, with_article

Attributes = Mapping[str, str]

_PRONOUNS = {"man": ("him", "his"), "woman": ("her", "her")}
_GIVE = ("give {him} {}", "add {}", "with {}", "draw {him} with {}")
_TAKE = ("remove the {}", "take away the {}", "without the {}", "no {}")
_SWAP = ("replace the {old} with {}", "{} instead of the {old}", "give {him} {} instead")
_HAIR = ("give {him} {}", "change the hair to {}", "with {}", "{} instead")
_HAIR_COLOUR = ("give {him} {} hair", "dye the hair {}", "make the hair {}", "change the hair colour to {}")
_LOOK = ("make {him} look {}", "make {him} {}", "draw {him} {}", "{a} face")
_SKIN = ("give {him} {} skin", "make the skin {}", "change the skin tone to {}", "with {} skin")
_WORN = ("put {him} in {}", "let {him} wear {}", "dress {him} in {}", "in {}")
_WORN_COLOUR = ("make the {old} {}", "{a} {old}", "change the colour of the {old} to {}")
_GROUND = ("put it on {a} background", "make the background {}", "on {}", "change the background to {}")
_NO_GROUND = ("remove the background", "without the background", "no background")
_COLOUR = ("make it {}", "change the colour to {}", "paint it {}", "in {}", "{a} one")
_PLACE = ("move it to the {} corner", "put it in the {} corner", "in the {} corner, smaller")
_CENTRE = ("move it to the centre", "put it in the middle", "make it fill the picture")


def changed(before: Attributes, after: Attributes) -> str | None:
    """The one attribute in which two differ, or None; another cut may hide the colour of hair or show it."""
    names = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    if "hair" in names:
        names.discard("hair colour")
    return names.pop() if len(names) == 1 else None


def instruction(before: Attributes, after: Attributes, name: str, *words: str) -> str:
    """What to say so that `before` becomes `after`, which differ in the attribute `name` alone."""
    him, his = _PRONOUNS.get(people(before)[0], ("them", "their"))
    old, new = before.get(name), after.get(name)

    def say(wordings: tuple[str, ...], what: str = "", was: str = "") -> str:
        article = with_article(what) if what else ""
        return choose(wordings, *words).format(what, a=article, him=him, his=his, old=was)

    match name:
        case "hair":
            if new == "bald":
                return say(("make {him} bald", "shave {his} head", "bald please"))
            if new is None:
                return say(_TAKE, str(old))
            return say(_HAIR, str(hair(after)))
        case "hair colour":
            if before.get("hair") == "turban":
                return say(_WORN_COLOUR, str(new), "turban")
            return say(_HAIR_COLOUR, str(new))
        case "expression":
            return say(_LOOK, str(new))
        case "skin":
            return say(_SKIN, str(new))
        case "clothes":
            return say(_WORN, str(clothes(after)))
        case "clothes colour":
            return say(_WORN_COLOUR, str(new), after.get("clothes", "shirt"))
        case "background":
            return say(_NO_GROUND) if new is None else say(_GROUND, new)
        case "colour":
            return say(_COLOUR, str(new))
        case "position":
            return say(_CENTRE) if new is None else say(_PLACE, new)
        case "gesture":
            return say(("draw {him} {}", "show {him} {}"), new or "without the gesture")
    if new is None:
        return say(_TAKE, str(old))
    return say(_GIVE, with_article(new)) if old is None else say(_SWAP, with_article(new), old)
