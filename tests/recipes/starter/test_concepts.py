import pytest

from pictish.recipes.starter.concepts import EmojiWords, composition_of, concept_of, sha_modulo, split_of
from pictish.recipes.starter.nouns import Nouns

GROUPS = {
    "groups": {"0": "smileys-emotion", "1": "people-body"},
    "subgroups": {"0": "face-smiling", "25": "person-role", "27": "person-activity", "30": "family"},
}
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}


def person(label, base, rest="", subgroup=25):
    """An emojibase entry with its five skin tones."""
    skins = [
        {"label": f"{label}: {tone} skin tone", "hexcode": f"{base}-{point}{rest}", "tone": number}
        | {"tags": ["x"], "group": 1, "subgroup": subgroup}
        for number, (point, tone) in enumerate(TONES.items(), 1)
    ]
    return {"label": label, "hexcode": base + rest, "group": 1, "subgroup": subgroup, "skins": skins}


COUPLE = {
    "label": "kiss: woman, man, light skin tone, dark skin tone",
    "hexcode": "1F469-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F468-1F3FF",
    "tone": [1, 5],
    "group": 1,
    "subgroup": 30,
}
DATA = [
    {"label": "grinning face", "hexcode": "1F600", "tags": ["smile", "happy"], "group": 0, "subgroup": 0},
    {"label": "woman\N{RIGHT SINGLE QUOTATION MARK}s hat", "hexcode": "1F452"},
    person("health worker", "1F9D1", "-200D-2695-FE0F"),
    person("man health worker", "1F468", "-200D-2695-FE0F"),
    person("woman health worker", "1F469", "-200D-2695-FE0F"),
    person("ninja", "1F977"),
    person("man", "1F468", subgroup=25),
    person("mermaid", "1F9DC", "-200D-2640-FE0F"),
    person("woman walking: facing right", "1F6B6", "-200D-2640-FE0F-200D-27A1-FE0F", 27),
    {"label": "skier", "hexcode": "26F7-FE0F", "group": 1, "subgroup": 27},
    COUPLE,
]


def composed(found):
    """What is held out together, from the facts that the JSON of an image has."""
    tone = found.skin_tone[0] if len(found.skin_tone) == 1 else list(found.skin_tone) or None
    return composition_of({"role": found.role, "gender": found.gender, "skin_tone": tone})


@pytest.fixture(scope="module")
def words():
    return EmojiWords(DATA, GROUPS, {}, Nouns(b"", b""))


def test_concept_is_lower_case_without_the_variation_selector():
    assert concept_of("1F469-200D-2695-FE0F") == "1f469-200d-2695"
    assert concept_of("0023-FE0F-20E3") == "0023-20e3"
    assert concept_of("1f600") == "1f600"


@pytest.mark.parametrize(
    ("concept", "split"),
    [
        # echo -n 1f600 | sha256sum: 308e7b21...a3cb, 15 modulo 20
        ("1f600", "train"),
        # 3dff2148...0e65, 1 modulo 20
        ("1f438", "validation"),
        # 6a5ea361...881c, 0 modulo 20
        ("1f40d", "test"),
        ("openclipart/food/apple.png", "train"),
    ],
)
def test_split_follows_from_the_sha256_of_the_concept(concept, split):
    assert split_of(concept) == split


def test_sha_modulo_reads_the_whole_digest():
    digest = 0x308E7B21949D2E74F7C97B025E134D840D8DB5AF2F7A6E5646006410B351A3CB  # sha256sum of 1f600
    assert [sha_modulo("1f600", divisor) for divisor in (10, 20, 1009)] == [
        digest % 10,
        digest % 20,
        digest % 1009,
    ]


def test_a_dropped_composition_goes_before_the_concept_and_style_test_before_all():
    dropped, kept = "health worker|dark|woman", "health worker|dark|man"
    assert split_of("1f600", dropped) == "composition-test"
    assert split_of("1f438", dropped) == "composition-test"
    assert split_of("1f438", kept) == "validation"
    assert split_of("1f438", dropped, style_test=True) == "style-test"


@pytest.mark.parametrize(
    ("concept", "caption", "composition"),
    [
        ("1f600", "grinning face", None),
        ("1f452", "woman's hat", None),
        (
            "1f469-1f3fe-200d-2695",
            "woman health worker, medium-dark skin tone",
            "health worker|medium-dark|woman",
        ),
        ("1f9d1-1f3fb-200d-2695", "health worker, light skin tone", "health worker|light|person"),
        ("1f469-200d-2695", "woman health worker", None),
        ("1f468-1f3fd", "man, medium skin tone", None),
        ("1f977-1f3fd", "ninja, medium skin tone", None),
        ("1f9dc-1f3fc-200d-2640", "mermaid, medium-light skin tone", "merperson|medium-light|woman"),
        (
            "1f6b6-1f3ff-200d-2640-200d-27a1",
            "woman walking, facing right, dark skin tone",
            "walking facing right|dark|woman",
        ),
        (concept_of(COUPLE["hexcode"]), "kiss, woman, man, light skin tone, dark skin tone", None),
    ],
)
def test_captions_and_compositions(words, concept, caption, composition):
    found = words.describe(concept, "a-name-of-the-set")
    assert (found.caption, composed(found)) == (caption, composition)


def test_everything_known_about_an_emoji(words):
    found = words.describe("1f469-1f3fe-200d-2695", "x")
    assert (found.gender, found.role, found.skin_tone) == ("woman", "health worker", ("medium-dark",))
    assert (found.group, found.subgroup, found.tags) == ("people-body", "person-role", ("x",))
    assert words.describe("1f600", "x").tags == ("happy", "smile")


def test_two_skin_tones_are_kept_and_make_no_composition(words):
    found = words.describe(concept_of(COUPLE["hexcode"]), "x")
    assert found.skin_tone == ("light", "dark")
    assert (found.role, found.gender, composed(found)) == (None, None, None)


def test_a_skin_tone_that_emojibase_does_not_list(words):
    assert words.describe("26f7-1f3ff", "skier-dark-skin-tone").caption == "skier, dark skin tone"


def test_an_emoji_that_emojibase_does_not_know_takes_the_name_of_its_icon(words):
    found = words.describe("1f574-1f3fc-200d-2640", "woman-in-suit-medium-light-skin-tone")
    assert found.caption == "woman in suit, medium-light skin tone"
    assert composed(found) == "in suit|medium-light|woman"
    assert words.describe("1facc", "monarch-butterfly").caption == "monarch butterfly"
    assert words.describe("20e3", "combining-enclosing-keycap") == words.describe("20e3", "keycap")
