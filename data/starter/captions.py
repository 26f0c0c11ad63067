"""What may be said of a picture: to have it drawn in many forms, to describe it in few."""

from pictish.data.starter.phrases import Picture, choose, listed, rank, style_name

_MEDIA = ("a drawing of {}", "a picture of {}", "an image of {}", "an icon of {}")
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


def prompts(picture: Picture) -> list[str]:
    """Four to ten different ways to ask for the picture, about a third of them with its style."""
    phrase, style, key = picture.phrase, picture.set, picture.key
    request = choose(_REQUESTS, key, "request")
    other = choose([wording for wording in _REQUESTS if wording != request], key, "other")
    said = [
        name(picture),
        phrase.full,
        choose(_MEDIA, key, "medium").format(phrase.full),
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
    return list(dict.fromkeys(said))[:10]


def descriptions(picture: Picture) -> list[str]:
    """Two to four ways to say what the picture shows: nothing in them is a request."""
    phrase = picture.phrase
    said = [name(picture), phrase.full, f"a drawing of {phrase.full}", f"{phrase.bare}, {picture.set} style"]
    return list(dict.fromkeys(said))


def name(picture: Picture) -> str:
    """The caption of the starter data; for clip art, whose captions end in a folder's name, the phrase."""
    return picture.phrase.bare if picture.set == "openclipart" else str(picture.facts["caption"])


def telling_tags(picture: Picture) -> list[str]:
    """The tags of emojibase that say more than the name does."""
    known = set(picture.phrase.noun.lower().replace("-", " ").split())
    return [
        tag
        for tag in picture.facts["tags"]
        if tag.isalpha() and len(tag) > 2 and tag.lower() not in known | _EMPTY_TAGS
    ]
