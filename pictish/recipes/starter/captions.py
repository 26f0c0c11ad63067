"""What may be said of an image: to have it drawn in many forms, to describe it in few."""

from collections.abc import Iterable, Sequence

from pictish.recipes.starter.phrases import (
    AVATAR,
    ICON,
    PHOTO,
    Picture,
    choose,
    listed,
    rank,
    style_name,
    with_article,
)
from pictish.recipes.starter.portraits import sayings
from pictish.recipes.starter.questions import UNCLEAR

_MEDIA = ("a drawing of {}", "a picture of {}", "an image of {}", "an icon of {}")
_MEDIA_OF_KIND = {
    AVATAR: ("a portrait of {}", "an avatar of {}", "a drawing of {}"),
    ICON: ("an icon of {}", "a picture of {}", "a symbol of {}"),
    PHOTO: ("a photo of {}", "a photograph of {}", "a picture of {}"),
}
_REQUESTS = (
    "draw {}",
    "please draw {}",
    "draw me {}",
    "{} please",
    "can you draw {}?",
    "show me {}",
    "make a picture of {}",
    "I would like {}",
    "paint {}",
    "draw me {} please",
)
_STYLES = ("{} in the style of {style}", "{} in {style} style", "{}, drawn in {style} style")
_STYLE_REQUESTS = (
    "draw {} in {style} style",
    "draw me {} in the style of {style}",
    "{} in {style} style please",
    "please draw {} in {style} style",
    "in {style} style, draw {}",
)
# Parts of an idiom, of "cinco de mayo" for one: emojibase cuts them into words.
_EMPTY_TAGS = listed(
    """
    the|and|for|with|not|you|very|one|two|gotta|away|off|out|all|are|was|can
    |her|his|its
    """
)
# What things of a subgroup of emojibase are for, or where they are found; true of each of them.
_USES = {
    "food-fruit": ("something to eat", "some fruit", "something sweet to eat"),
    "food-vegetable": ("something to eat", "a vegetable", "something healthy to eat"),
    "food-prepared": ("something to eat", "a meal", "some food"),
    "food-asian": ("something to eat", "Asian food", "a meal"),
    "food-sweet": ("something to eat", "something sweet", "a dessert"),
    "drink": ("something to drink", "a drink"),
    "animal-mammal": ("an animal",),
    "animal-bird": ("an animal", "a bird", "an animal with wings"),
    "animal-marine": ("an animal that lives in the water", "a sea animal"),
    "animal-bug": ("a small animal", "a bug"),
    "animal-reptile": ("an animal", "a reptile"),
    "plant-flower": ("a flower", "a plant", "something from the garden"),
    "plant-other": ("a plant", "something that grows"),
    "place-building": ("a building",),
    "place-religious": ("a place to pray", "a religious building"),
    "transport-ground": ("something to travel with", "traffic on land"),
    "transport-air": ("something that flies", "something in the air"),
    "transport-water": ("something on the water", "something to sail with"),
    "clothing": ("something to wear",),
    "musical-instrument": ("a musical instrument", "something to make music with"),
    "sport": ("something for sport", "a sport"),
    "game": ("something to play with", "a game"),
    "tool": ("a tool",),
    "country-flag": ("a flag", "the flag of a country"),
    "person-sport": ("someone doing sport",),
    "time": ("something that tells the time",),
    "writing": ("something to write with",),
    "money": ("something to do with money",),
}
_MOODS = listed(
    "happy|sad|angry|surprised|scared|tired|sick|confused|worried|bored|funny|nervous|shy|excited"
)
_MOST = 20  # ways to ask for an image


def prompts(picture: Picture, colour: str | None = None) -> list[str]:
    """Four to twenty different ways to ask for the image, about a third of them with its style.

    `colour` is its main colour, where it has one.
    """
    match picture.kind:
        case "avatar":
            said = _varied(picture, sayings(picture.attributes, picture.key, 10))
        case "icon":
            said = _varied(picture, _of_icon(picture))
        case "photo":
            said = _varied(picture, _of_photograph(picture))
        case _:
            said = [*_named(picture), *_wider(picture, colour)]
    return list(dict.fromkeys(said))[:_MOST]


def _named(picture: Picture) -> list[str]:
    """Ways that name the image: by its caption, its phrase, its tags."""
    phrase, style, key = picture.phrase, picture.set, picture.key
    request = choose(_REQUESTS, key, "request")
    other = choose([wording for wording in _REQUESTS if wording != request], key, "other")
    said = [
        name(picture),
        phrase.full,
        choose(_media(picture), key, "medium").format(phrase.full),
        request.format(phrase.full),
        other.format(phrase.full),
        f"{phrase.bare}, {style} style",
        choose(_STYLES, key, "style").format(phrase.full, style=style_name(picture, "said")),
        choose(_STYLE_REQUESTS, key, "request").format(phrase.full, style=style_name(picture, "asked")),
    ]
    tone = picture.facts["skin_tone"]
    if isinstance(tone, str):
        said.append(f"{tone}-skinned {phrase.noun}")
        said.append(str(picture.facts["label"] or name(picture)))
    tags = telling_tags(picture)
    if tags and not isinstance(tone, str):
        two = sorted(tags, key=lambda tag: rank(key, tag))[:2]
        said.append(", ".join([phrase.bare, *sorted(two)]))
    if len(tags) > 2 and not isinstance(tone, str):
        said.append(", ".join(sorted(tags, key=lambda tag: rank(tag, key))[:3]))
    return said


def _wider(picture: Picture, colour: str | None) -> list[str]:
    """Ways that say what kind of thing it is, what it is for, its mood and its colour, in other words."""
    facts, phrase, key = picture.facts, picture.phrase, picture.key
    if not picture.is_emoji or isinstance(facts["skin_tone"], (str, list)):
        return []
    wider = wider_words(picture)
    said = [f"{phrase.full}, {with_article(word)}" for word in wider[:2]]
    if colour and facts["group"] not in ("people-body", "smileys-emotion", "flags", "symbols"):
        said += [with_article(f"{colour} {word}") for word in wider[:1]]
        if colour not in phrase.noun.split(" "):
            coloured = f"{colour} {phrase.noun}"
            said.append(with_article(coloured) if phrase.article else coloured)
    if phrase.noun not in UNCLEAR and (uses := _USES.get(facts["subgroup"] or "")):
        use = choose(uses, key, "use")
        said += [use, f"{phrase.full}, {use}", choose(_REQUESTS, key, "use").format(use)]
    if moods := sorted(_MOODS.intersection([*facts["tags"], *facts.get("keywords", ())])):
        mood = choose(moods, key, "mood")
        who = "cat" if "cat" in phrase.noun.split(" ") else "face"
        if (facts["subgroup"] or "").startswith(("face-", "cat-face")):
            said += [with_article(f"{mood} {who}"), f"{phrase.full}, {mood}"]
    keywords = sorted(facts.get("keywords", ()), key=lambda word: rank(key, word))
    if keywords:
        said.append(f"{phrase.bare}, {keywords[0]}")
    if len(keywords) > 1:
        said.append(", ".join(keywords[:3]))
    return said


def _of_icon(picture: Picture) -> list[str]:
    """An icon in its colours, with its ground and its place or without."""
    label, known = picture.facts["label"], picture.attributes
    coloured = f"{known['colour']} {label}"
    ground = f" on {known['background']}" if "background" in known else ""
    place = f" in the {known['position']} corner" if "position" in known else ""
    said = [coloured + place + ground, coloured, f"{label} in {known['colour']}{ground}"]
    if ground:
        said += [
            coloured + ground,
            f"{coloured} on {with_article(known['background'])} background",
            label + ground,
        ]
    if place:
        said += [coloured + place, f"small {coloured}{place}{ground}"]
    return [*said, *(f"{known['colour']} {word}{ground}" for word in wider_words(picture)[:1])]


def _of_photograph(picture: Picture) -> list[str]:
    """A photograph by its label and what that is a kind of; without a label it is a photograph."""
    label = picture.facts["label"]
    if label is None:
        return ["photo"]
    wider = wider_words(picture)
    return [label, label, *wider[:1], *(f"{label}, {with_article(word)}" for word in wider[:1])]


def _varied(picture: Picture, nouns: Iterable[str]) -> list[str]:
    """Each saying with its article; some as a request, of a medium, or with the style."""
    key, said = picture.key, []
    for number, noun in enumerate(dict.fromkeys(nouns)):
        full = with_article(noun) if picture.phrase.article else noun
        words = (key, str(number))
        said += [noun, full] if number == 0 else [full]
        match rank(*words, "form") % 4:
            case 0:
                said.append(choose(_REQUESTS, *words).format(full))
            case 1:
                said.append(choose(_media(picture), *words).format(full))
            case 2:
                said.append(choose(_STYLES, *words).format(full, style=style_name(picture, "said")))
            case 3:
                said.append(choose(_STYLE_REQUESTS, *words).format(full, style=style_name(picture, "said")))
    return [*said, f"{picture.phrase.bare}, {picture.style} style"]


def _media(picture: Picture) -> Sequence[str]:
    return _MEDIA_OF_KIND.get(picture.kind, _MEDIA)


def descriptions(picture: Picture) -> list[str]:
    """Two to six ways to say what the image shows, the plainest first, its style last; none a request."""
    phrase, medium = picture.phrase, _media(picture)[0]
    said = [name(picture), phrase.full, medium.format(phrase.full)]
    if picture.kind == AVATAR:
        said += [with_article(saying) for saying in sayings(picture.attributes, picture.key, 2)]
    if picture.is_emoji and picture.facts["skin_tone"] is None:
        said += [f"{phrase.full}, {with_article(word)}" for word in wider_words(picture)[:1]]
    return list(dict.fromkeys([*said, f"{phrase.bare}, {picture.style} style"]))


def name(picture: Picture) -> str:
    """The caption of the starter data; for clip art, whose captions end in a folder's name, the phrase."""
    return picture.phrase.bare if picture.set == "openclipart" else str(picture.facts["caption"])


def wider_words(picture: Picture) -> list[str]:
    """What the thing is a kind of, in words that are not in its own name."""
    own = picture.phrase.noun.lower().split(" ")
    return [word for word in picture.facts.get("wider", ()) if word not in own]


def telling_tags(picture: Picture) -> list[str]:
    """The tags of emojibase that say more than the name does."""
    known = set(picture.phrase.noun.lower().replace("-", " ").split())
    return [
        tag
        for tag in picture.facts["tags"]
        if tag.isalpha() and len(tag) > 2 and tag.lower() not in known | _EMPTY_TAGS
    ]
