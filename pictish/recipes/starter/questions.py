"""Questions about an image with short answers that follow from its facts, and from its pixels for colour."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pictish.recipes.starter.phrases import (
    AVATAR,
    ICON,
    PHOTO,
    Phrase,
    Picture,
    choose,
    listed,
    rank,
)

_WHAT = ("What is it?", "What is this?", "What does it show?", "What is in the picture?", "What do you see?")
_STYLE = ("Which style is it?", "What style is it?", "In which style is it drawn?", "What is the style?")
_TONE = (
    "Which skin tone?",
    "What is the skin tone?",
    "What skin tone does {who} have?",
    "Which skin tone is it?",
)
_GENDER = ("Is it a man or a woman?", "A man or a woman?", "Man or woman?")
_COLOUR = ("Which colour is it?", "What colour is it?", "What is the main colour?", "What color is it?")
_IS_IT = ("Is it {}?", "Is this {}?", "Does it show {}?")
_PRONOUNS = {"man": "he", "woman": "she", "person": "the person"}

# Of avatars and icons; the answer is the value of the attribute.
_ATTRIBUTES = {
    "hair colour": "What colour is the hair?",
    "expression": "How do they look?",
    "hat": "What is on the head?",
    "gesture": "What are they doing?",
    "skin": "What is the skin tone?",
    "background": "What colour is the background?",
    "position": "In which corner is it?",
}
_WORN = (("eyewear", "Is there something over the eyes?"), ("facial hair", "Is there hair on the face?"))
_NO_EYEWEAR = {"big-smile", "toon-head"}  # whose glasses, if any, are one of several things worn

# Kinds of things that an image is, or plainly is not; what may be argued about is in neither.
_KINDS = {
    "animal": "an animal",
    "person": "a person",
    "food": "food",
    "flag": "a flag",
    "plant": "a plant",
    "building": "a building",
    "vehicle": "a vehicle",
    "face": "a face",
    "clothing": "something to wear",
    "instrument": "a musical instrument",
}
_KIND_OF_SUBGROUP = {
    "animal-mammal": "animal",
    "animal-bird": "animal",
    "animal-reptile": "animal",
    "animal-marine": "animal",
    "animal-bug": "animal",
    "person": "person",
    "person-role": "person",
    "person-gesture": "person",
    "person-activity": "person",
    "person-sport": "person",
    "food-prepared": "food",
    "food-sweet": "food",
    "food-asian": "food",
    "food-fruit": "food",
    "food-vegetable": "food",
    "country-flag": "flag",
    "subdivision-flag": "flag",
    "flag": "flag",
    "plant-flower": "plant",
    "plant-other": "plant",
    "place-building": "building",
    "place-religious": "building",
    "transport-ground": "vehicle",
    "transport-air": "vehicle",
    "transport-water": "vehicle",
    "clothing": "clothing",
    "musical-instrument": "instrument",
    "face-smiling": "face",
    "face-affection": "face",
    "face-tongue": "face",
    "face-hand": "face",
    "face-neutral-skeptical": "face",
    "face-sleepy": "face",
    "face-unwell": "face",
    "face-hat": "face",
    "face-glasses": "face",
    "face-concerned": "face",
}
# Of those subgroups, what is no clear member.
UNCLEAR = listed(
    """
    feather|wing|paw prints|pig nose|spider web|microbe|coral|spiral shell|phoenix|unicorn
    |dragon|dragon face|cat face|dog face|cow face|horse face|monkey face|mouse face|
    pig face|rabbit face|tiger face|hatching chick|empty nest|nest with eggs|mushroom|
    sheaf of rice|leaf fluttering in wind|bouquet|rosette|wilted flower|brick|rock|wood|
    bus stop|station|stop sign|traffic light|horizontal traffic light|vertical traffic light|
    police car light|fuel pump|oil drum|wheel|railway track|motorway|construction|anchor|
    seat|parachute|manual wheelchair|motorized wheelchair|skateboard|roller skate|
    mountain cableway|light rail|mountain railway|airplane arrival|airplane departure|
    flying saucer|salt|cooking|bowl with spoon|pot of food|maracas|head shaking horizontally|
    head shaking vertically|exploding head|star-struck|rolling on the floor laughing|
    dotted line face|face in clouds|distorted face|folding hand fan|gem stone|handbag|purse|
    clutch bag|shopping bags|lipstick|hair pick|prayer beads|backpack|kimono|breast-feeding|
    horse racing|motor scooter|person in a manual wheelchair|person in a motorized wheelchair|
    small airplane|brown mushroom|canned food|T-Rex|chestnut|egg|musical keyboard
    """
)
# Some things are both, or are made of the other.
_OVERLAPS = {
    frozenset(pair)
    for pair in (("food", "plant"), ("food", "animal"), ("face", "person"), ("face", "animal"))
}
# Wider words than an image's own: never said to be wrong.
_VAGUE = listed(
    """
    person|man|woman|child|adult|family|people|baby|bug|bird|fish|house|animal|
    smile|face|hut
    """
)
_PEOPLE = {"people-body", "people"}  # who have several colours, and none of them is theirs
_SIZES = {"large", "small", "medium", "medium-small"}


@dataclass(frozen=True)
class Turn:
    """A question with its answer; `kind` is what it asks for."""

    kind: str
    question: str
    answer: str


def questions(pictures: Iterable[Picture], colours: Mapping[str, str]) -> dict[str, list[Turn]]:
    """The questions about each image, by its key, that its facts and its colour in `colours` answer."""
    ordered = sorted(pictures, key=lambda picture: picture.key)
    known = _Known(ordered)
    turns = {picture.key: _of_facts(picture, colours.get(picture.key)) for picture in ordered}
    for picture in ordered:
        if picture.is_emoji and (wrong := known.wrong(picture)):
            for phrase, answer in ((picture.phrase, "yes"), (wrong, "no")):
                wording = choose(_IS_IT, picture.key, phrase.noun) if phrase.article else _IS_IT[-1]
                turns[picture.key].append(Turn("is it", wording.format(phrase.skinless), answer))
    for key, turn in _of_kind(ordered):
        turns[key].append(turn)
    return {key: asked for key, asked in turns.items() if asked}


def kind_of(picture: Picture) -> str | None:
    """`animal`, `food` and so on, where nobody would argue."""
    phrase = picture.phrase
    kind = _KIND_OF_SUBGROUP.get(picture.facts["subgroup"]) if picture.is_emoji else None
    if phrase.noun in UNCLEAR or "wheelchair" in phrase.noun or (kind == "person" and not phrase.article):
        return None  # of several people none is asked whether they are one
    return kind


def _of_facts(picture: Picture, colour: str | None) -> list[Turn]:
    facts, key = picture.facts, picture.key
    turns = []
    if picture.is_emoji:
        turns.append(Turn("what", choose(_WHAT, key, "what"), picture.phrase.noun))
    if picture.kind in (ICON, PHOTO) and facts["label"] is not None:
        turns.append(Turn("what", choose(_WHAT, key, "what"), facts["label"]))
    if picture.attributes:
        turns += _of_attributes(picture)
        colour = picture.attributes.get("colour")
    # Of most clip art only the style is known; a quarter of it is enough.
    if picture.is_emoji or colour is not None or rank("style", key) % 4 == 0:
        turns.append(Turn("style", choose(_STYLE, key, "style"), picture.style))
    if isinstance(facts["skin_tone"], str):
        who = _PRONOUNS.get(facts["gender"], "it")
        turns.append(Turn("skin tone", choose(_TONE, key, "tone").format(who=who), facts["skin_tone"]))
    if facts["gender"] in ("man", "woman"):
        turns.append(Turn("gender", choose(_GENDER, key, "gender"), f"a {facts['gender']}"))
    if colour is not None and facts["group"] not in _PEOPLE:
        turns.append(Turn("colour", choose(_COLOUR, key, "colour"), colour))
    return turns


def _of_attributes(picture: Picture) -> list[Turn]:
    """What is asked about the parts and colours of an avatar, and about the ground and place of an icon."""
    known, key = picture.attributes, picture.key
    asked = dict(_ATTRIBUTES)
    asked["clothes colour"] = f"What colour is the {known.get('clothes', 'shirt')}?"
    if known.get("hair") == "turban":
        asked["hair colour"] = "What colour is the turban?"
    turns = [Turn(name, question, known[name]) for name, question in asked.items() if name in known]
    if picture.kind == AVATAR:
        part, question = choose(_WORN, key, "worn")
        if part == "facial hair" or picture.set not in _NO_EYEWEAR:
            turns.append(Turn("wears", question, "yes" if part in known else "no"))
    return turns


class _Known:
    """All concepts there are, to say of an image what it is not."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        concepts: dict[str, Picture] = {}
        self._looks: dict[str, set[bytes]] = defaultdict(set)
        for picture in pictures:
            if picture.is_emoji:
                concepts.setdefault(picture.phrase.noun, picture)
                self._looks[picture.phrase.noun].add(picture.tokens)
        groups: defaultdict[str, list[Picture]] = defaultdict(list)
        for _, picture in sorted(concepts.items()):
            groups[picture.facts["group"]].append(picture)
        self._groups = dict(groups)
        self._all = [picture for members in self._groups.values() for picture in members]

    def wrong(self, picture: Picture) -> Phrase | None:
        """Something that the image does not show; half of the time of the same group."""
        near = rank(picture.key, "near") % 2 == 0
        candidates = self._groups[picture.facts["group"]] if near else self._all
        start = rank(picture.key, "wrong") % len(candidates)
        for other in candidates[start:] + candidates[:start]:
            if self._differs(picture, other):
                return other.phrase
        return None

    def _differs(self, picture: Picture, other: Picture) -> bool:
        """Whether `other` is plainly something else, and not a wider or narrower word for the image."""
        here, there = picture.facts, other.facts
        mine, yours = (_words(p) for p in (picture, other))
        if mine <= yours or yours <= mine or other.phrase.noun in _VAGUE:
            return False
        if here["role"] == there["role"] is not None and "person" in (here["gender"], there["gender"]):
            return False
        if (here["subgroup"] or "").startswith("face-") and (there["subgroup"] or "").startswith("face-"):
            return here["subgroup"] != there["subgroup"] and not mine & yours - {"face", "with"}
        if other.phrase.noun in here["tags"] or picture.phrase.noun in there["tags"]:
            return False
        return picture.tokens not in self._looks[other.phrase.noun]


def _words(picture: Picture) -> set[str]:
    """What a name says: of a person the role alone, since a woman walking is a person walking."""
    said = picture.facts["role"] or picture.phrase.noun
    if picture.facts["gender"] in ("man", "woman"):
        said += f" {picture.facts['gender']}"
    return set(said.split(" ")) - _SIZES - {"a", "the", "facing", "right"}


def _of_kind(pictures: Sequence[Picture]) -> list[tuple[str, Turn]]:
    """For each kind as many images that are of it as images that are not."""
    kinds = {picture.key: kind for picture in pictures if (kind := kind_of(picture))}
    asked = []
    for kind, phrase in _KINDS.items():
        ordered = sorted(kinds, key=lambda key: rank(kind, key))
        yes = [key for key in ordered if kinds[key] == kind]
        no = [k for k in ordered if kinds[k] != kind and frozenset((kind, kinds[k])) not in _OVERLAPS]
        count = min(len(yes), len(no))
        for keys, answer in ((yes[:count], "yes"), (no[:count], "no")):
            asked += [
                (key, Turn("is it a kind", choose(_IS_IT, key, kind).format(phrase), answer)) for key in keys
            ]
    return asked
