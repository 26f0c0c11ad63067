import io
import itertools
import json
import re
from collections import Counter

import pytest
from PIL import Image

from pictish import cli
from pictish.data.samples import Document, Edit, Pair, Question, index_shard
from pictish.data.shards import ShardFile
from pictish.data.tokens import TokenizedImage
from pictish.recipes.starter.avatars import STYLES
from pictish.recipes.starter.captions import descriptions, prompts
from pictish.recipes.starter.colours import main_colour
from pictish.recipes.starter.concepts import GENDERS, TONES, composition_of, split_of
from pictish.recipes.starter.edits import CAPS, HAIR, changes
from pictish.recipes.starter.icons import Look
from pictish.recipes.starter.mixes import mixes
from pictish.recipes.starter.phrases import COLOURS, Picture, phrase_of
from pictish.recipes.starter.portraits import caption as portrait_caption
from pictish.recipes.starter.portraits import sayings
from pictish.recipes.starter.questions import questions
from pictish.recipes.starter.tasks import make_tasks

SETS = ("noto", "twemoji", "fluent-emoji-flat")
PEOPLE = [None, "farmer", "firefighter", "with veil", "beard", "red hair", "bald", "walking"]
THINGS = {
    "red heart": ("smileys-emotion", "heart", ["love"]),
    "blue heart": ("smileys-emotion", "heart", ["love", "sea"]),
    "bell": ("objects", "sound", ["break", "church"]),
    "bell with slash": ("objects", "sound", ["quiet"]),
    "dog": ("animals-nature", "animal-mammal", ["pet", "puppy"]),
    "guide dog": ("animals-nature", "animal-mammal", ["dog", "blind"]),
    "cat": ("animals-nature", "animal-mammal", ["pet"]),
    "red apple": ("food-drink", "food-fruit", ["fruit"]),
    "hamburger": ("food-drink", "food-prepared", []),
    "flag, Cook Islands": ("flags", "country-flag", ["CK"]),
    "flag, Chad": ("flags", "country-flag", []),
    "family, man, woman, girl, girl": ("people-body", "family", []),
    "fire": ("travel-places", "sky-weather", []),
}


def person_label(role, gender):
    if role in ("bald", "beard", "red hair"):
        return f"{gender}, {role}"
    if gender == "person" and role in ("farmer", "firefighter"):
        return role
    return f"{gender} {role}" if role else gender


def a_picture(style, concept, caption, /, **more):
    facts = {
        "set": style,
        "style": style,
        "name": caption.replace(" ", "-"),
        "concept": concept,
        "label": None,
    }
    facts |= {"tags": [], "group": None, "subgroup": None, "skin_tone": None, "gender": None, "role": None}
    facts |= {
        "caption": caption,
        "license": "MIT",
        "attribution": "https://example.org",
        "split": "train",
    } | more
    facts = {"wider": [], "keywords": [], "attributes": {}} | facts
    key = facts.pop("key", f"{style}-{re.sub('[/.]', '-', concept)}")
    number = sum(key.encode())
    tokens = TokenizedImage(
        [number % 64, len(key)], [0, 1], (2, 2), (9, number), "abcdefabcdef", 64
    ).to_bytes()
    return Picture(key, tokens, facts)


def avatars():
    """A family in `train` of each of some styles: its first look, and others with one attribute changed."""
    found = []
    for style in ("lorelei", "micah", "toon-head", "pixel-art", "notionists"):
        family = next(number for number in range(100) if split_of(f"{style}/{number}") == "train")
        kept = {name: next(value for value in values if value) for name, values in STYLES[style].items()}
        for changed in (None, *kept):
            values = [value for value in STYLES[style].get(changed, ()) if value != kept[changed]]
            for value in values[:3] or [None]:
                look = {name: v for name, v in (kept | {changed: value}).items() if name and v}
                concept = f"{style}/{family}"
                facts = {"attributes": look, "style": f"avatar {style}", "label": portrait_caption(look)}
                if split_of(concept, composition_of(facts)) == "train":
                    key = f"{style}-{family}-{len(found)}"
                    found.append(a_picture(style, concept, portrait_caption(look), key=key, **facts))
    return found


def painted(label, look):
    return Look(look["colour"], look.get("background", ""), look.get("position", ""), ("", "")).caption(label)


def icons():
    """Two icons with two looks each, and others in the colours of the second."""
    looks = {
        "running dog": ({"colour": "red"}, {"colour": "blue"}),
        "saw": ({"colour": "blue"}, {"colour": "blue", "background": "yellow"}),
        "lamp": ({"colour": "grey", "background": "yellow"}, {"colour": "grey"}),
        "boots": ({"colour": "pink"}, {"colour": "pink", "position": "top left"}),
        "tent": ({"colour": "black", "position": "top left"}, {"colour": "black"}),
    }
    return [
        a_picture(
            "phosphor",
            f"icon/{label.replace(' ', '-')}",
            Look(look["colour"], look.get("background", ""), look.get("position", ""), ("", "")).caption(
                label
            ),
            key=f"phosphor-{label.replace(' ', '-')}-{number}",
            name=label,
            style="icon phosphor",
            label=label,
            attributes=look,
            wider=["animal"] if "dog" in label else [],
        )
        for label, both in looks.items()
        for number, look in enumerate(both)
    ]


def a_photograph():
    return a_picture(
        "photos", "photos/lemon", "lemon", key="photos-train-1", style="photo", label="lemon", wider=["fruit"]
    )


def table():
    """People of every role, gender and tone, and things, in three sets; only what belongs to `train`."""
    found = []
    for style, role, gender, tone in itertools.product(SETS, PEOPLE, GENDERS, (None, "light", "dark")):
        label = person_label(role, gender)
        said = f"{label}, {tone} skin tone" if tone else label
        facts = {"skin_tone": tone, "gender": gender, "role": role, "group": "people-body"}
        subgroup = "person-role" if role in ("farmer", "firefighter", "with veil") else "person"
        composition = f"{role}|{tone}|{gender}" if role and tone else None
        concept = f"{gender}-{role}-{tone}".replace(" ", "")
        if split_of(concept, composition) == "train":
            found.append(a_picture(style, concept, said, subgroup=subgroup, label=label, **facts))
    for style, (label, (group, subgroup, tags)) in itertools.product(SETS, THINGS.items()):
        concept = re.sub("[^a-z]", "", label.lower())
        if split_of(concept) == "train":
            found.append(a_picture(style, concept, label, group=group, subgroup=subgroup, tags=tags))
    found += [*avatars(), *icons(), a_photograph()]
    name = "food/fruit/lemon_simple_01.png"
    clip = a_picture("openclipart", f"openclipart/{name}", "lemon simple, fruit", name=name)
    assert split_of(clip.facts["concept"]) == "train"
    return [*found, clip]


@pytest.fixture(scope="module")
def pictures():
    return table()


def write(folder, pictures, shards=2):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        with ShardFile(folder / f"noto-{number:06d}.tar") as shard:
            for picture in pictures[number::shards]:
                shard.write(
                    picture.key, {"tokens": picture.tokens, "json": json.dumps(picture.facts).encode()}
                )
    return folder


def read(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples(folder, name):
    index = index_shard(folder / f"{name}-000000.tar")
    return [index.read(row) for row in range(len(index))]


@pytest.mark.parametrize(
    ("caption", "more", "full"),
    [
        ("red apple", {}, "a red apple"),
        ("orange heart", {}, "an orange heart"),
        ("unicorn", {}, "a unicorn"),
        ("socks", {}, "socks"),
        ("octopus", {}, "an octopus"),
        ("OK button", {}, "an OK button"),
        ("NEW button", {}, "a NEW button"),
        ("fire", {}, "fire"),
        ("glass of milk", {}, "a glass of milk"),
        ("Santa Claus, dark skin tone", {"skin_tone": "dark"}, "Santa Claus with dark skin"),
        ("flag, Chad", {}, "the flag of Chad"),
        ("flag, Cook Islands", {}, "the flag of the Cook Islands"),
        ("keycap, 1", {}, "a keycap with 1"),
        ("family, man, woman, girl, girl", {}, "a family of a man, a woman and two girls"),
        ("kiss, woman, woman, light skin tone, dark skin tone", {"skin_tone": ["light", "dark"]},
         "a kiss between two women, light and dark skin"),
        ("man, dark skin tone, red hair", {"role": "red hair", "skin_tone": "dark"},
         "a man with red hair and dark skin"),
        ("man, light skin tone, bald", {"role": "bald", "skin_tone": "light"}, "a bald man with light skin"),
        ("woman with veil", {"role": "with veil"}, "a woman with a veil"),
        ("man lifting weights", {"role": "lifting weights"}, "a man lifting weights"),
        ("no smoking", {"subgroup": "warning"}, "a no smoking sign"),
        ("medium skin tone", {}, "a medium skin tone"),  # a swatch of it
    ],
)  # fmt: skip
def test_phrases_are_plain_english(caption, more, full):
    assert a_picture("noto", "1", caption, **more).phrase.full == full


@pytest.mark.parametrize(
    ("name", "caption", "full"),
    [
        ("recreation/games/cards/simple/simple_h_7.png", "simple h, simple", "the seven of hearts"),
        ("signs_and_symbols/flags/africa/togo.png", "togo, africa", "the flag of Togo"),
        ("shapes/stars/star_27pt11step.png", "star 27pt11step, stars", "a star with 27 points"),
        ("buildings/homes/home12.png", "home12, homes", "home"),
    ],
)
def test_phrases_of_clip_art(name, caption, full):
    subgroup = "/".join(name.split("/")[1:-1])
    facts = {"set": "openclipart", "name": name, "caption": caption, "subgroup": subgroup}
    assert phrase_of(facts).full == full


def test_every_picture_has_captions_that_are_true(pictures):
    for picture in pictures:
        said, short = prompts(picture), descriptions(picture)
        assert 4 <= len(said) <= 20
        assert len(set(said)) == len(said)
        assert 2 <= len(short) <= 6
        assert any(picture.style in caption for caption in said)
        assert short[-1].endswith(f", {picture.style} style")
        for caption in (*said, *short):
            words = set(re.findall(r"[a-z-]+", caption.lower()))
            assert words.isdisjoint({*SETS} - {picture.set}), caption
            assert not (words & {"draw", "please"} and caption in short), caption
            tones = {tone for tone in TONES if re.search(rf"(?<!-)\b{tone}\b(?!-(?!skin))", caption)}
            assert tones <= {picture.facts["skin_tone"], picture.attributes.get("skin")}, caption
            of_tags = set(caption.split(", ")) <= set(picture.facts["tags"])
            genders = {"man", "woman"} & words
            if picture.kind in ("avatar", "icon"):
                check_attributes(caption, picture.attributes)
            if picture.facts["gender"] is not None:
                assert of_tags or genders == {picture.facts["gender"]} & {"man", "woman"}, caption


def check_attributes(caption, known):
    """No colour is said that the image does not have."""
    colours = {value.split(" ")[0] for value in known.values()}
    assert {word for word in re.findall(r"[a-z]+", caption) if word in COLOURS} <= colours, caption


@pytest.mark.parametrize(
    ("caption", "more", "said"),
    [
        ("dog", {"subgroup": "animal-mammal", "wider": ["animal"]}, ["a dog, an animal", "an animal"]),
        ("pear", {"subgroup": "food-fruit", "wider": ["fruit"]}, ["a red fruit", "a red pear"]),
        ("red apple", {"subgroup": "food-fruit", "wider": ["fruit"]}, ["a red fruit"]),
        ("hamburger", {"subgroup": "food-prepared", "keywords": ["beef"]}, ["hamburger, beef"]),
        ("grinning face", {"subgroup": "face-smiling", "tags": ["happy"]}, ["a happy face"]),
        ("grinning cat", {"subgroup": "cat-face", "tags": ["happy"]}, ["a happy cat"]),
        ("rocket", {"subgroup": "transport-air"}, ["something that flies"]),
        ("fuel pump", {"subgroup": "transport-ground"}, []),
    ],
)
def test_things_are_asked_for_in_plain_speech(caption, more, said):
    asked = prompts(a_picture("noto", "1", caption, group="objects", **more), "red")
    assert set(said) <= set(asked)
    if not said:
        assert not any("travel" in each for each in asked)


def test_avatars_are_asked_for_by_some_of_their_attributes():
    look = {
        "hair": "long",
        "hair colour": "pink",
        "eyewear": "glasses",
        "expression": "happy",
        "skin": "dark",
    }
    assert portrait_caption(look) == "happy woman with long pink hair, glasses and dark skin"
    asked = sayings(look, "a key", 60)
    assert {"happy girl with glasses", "woman with long pink hair and glasses"} <= set(asked)
    assert portrait_caption({"hair": "bald", "facial hair": "beard"}) == "bald man with a beard"
    assert portrait_caption({"hair colour": "blue", "gesture": "waving"}) == "person with blue hair, waving"
    assert portrait_caption({"eyewear": "eyepatch", "clothes colour": "orange", "background": "grey"}) == (
        "person with an eyepatch in an orange shirt on a grey background"
    )


def test_every_mix_is_true(pictures):
    found = mixes(pictures)
    assert {"style", "skin tone", "hair colour", "expression", "colour", "background", "position"} <= {
        mix.kind for mix in found
    }
    for mix in found:
        first, second, target = (p.facts for p in (mix.first, mix.second, mix.target))
        assert second["concept"] not in (first["concept"], target["concept"])
        if mix.kind == "style":
            assert first["concept"] == target["concept"]
            assert second["set"] == target["set"] != first["set"]
        elif mix.first.is_emoji:
            assert second["skin_tone"] == target["skin_tone"] != first["skin_tone"]
        else:
            name = "skin" if mix.kind == "skin tone" else mix.kind
            assert second["attributes"][name] == target["attributes"][name] != first["attributes"].get(name)
    assert len({mix.key for mix in found}) == len(found)


def test_every_edit_is_true(pictures):
    found = changes(pictures)
    assert set(CAPS) == {change.kind for change in found}
    fixed = dict.fromkeys(CAPS, ("set", "concept"))
    fixed |= {
        "style": ("concept",),
        "skin tone": ("set", "gender", "role"),
        "gender": ("set", "skin_tone", "role"),
        "hair": ("set", "skin_tone", "gender"),
        "profession": ("set", "skin_tone", "gender"),
        "add": ("set", "skin_tone", "gender"),
        "remove": ("set", "skin_tone", "gender"),
        "colour": ("set", "skin_tone", "group"),
        "same": ("set", "concept"),
        "already": ("set", "concept"),
    }
    drawn = [change for change in found if change.before.attributes]
    for change in drawn:
        before, after, said = change.before.attributes, change.after.attributes, change.instruction
        assert change.before.facts["concept"] == change.after.facts["concept"]
        if change.kind in ("same", "already"):
            assert before == after
            continue
        name = "skin" if change.kind == "skin tone" else change.kind
        assert {n for n in {*before, *after} if before.get(n) != after.get(n)} - {"hair colour"} <= {name}
        if name in ("hair colour", "expression", "skin", "clothes colour", "colour") or "background" in said:
            assert after.get(name, "background") in said
    for change in found:
        if change in drawn:
            continue
        before, after, said = change.before.facts, change.after.facts, change.instruction
        assert all(before[name] == after[name] for name in fixed[change.kind]), change
        match change.kind:
            case "style":
                assert before["set"] != after["set"]
                assert after["set"].removesuffix("-emoji-flat") in said
            case "skin tone":
                assert before["skin_tone"] != after["skin_tone"]
                assert re.search(rf"\b{after['skin_tone']}\b", said)
            case "gender":
                assert before["gender"] != after["gender"]
                assert after["gender"] in said or "gender" in said
            case "hair":
                assert after["role"] in HAIR
                assert after["role"].removesuffix(" hair") in said or after["role"] == "bald"
            case "profession":
                assert after["role"] in said
            case "add":
                assert len(change.after.phrase.noun) > len(change.before.phrase.noun)
            case "remove":
                assert len(change.after.phrase.noun) < len(change.before.phrase.noun)
            case "colour":
                assert change.after.phrase.noun.split()[0] in said
        pronouns = {"him": "man", "her": "woman", "his": "man"}
        assert {pronouns[word] for word in said.split() if word in pronouns} <= {before["gender"]}, said
    counts = Counter((change.kind, change.before.phrase.noun) for change in found)
    assert all(count <= CAPS[kind] for (kind, _), count in counts.items())
    assert len({change.key for change in found}) == len(found)


def test_every_answer_is_true(pictures):
    found = questions(pictures, {"noto-redheart": "red"})
    by_key = {picture.key: picture for picture in pictures}
    kinds = {
        "an animal": "animals-nature",
        "food": "food-drink",
        "a flag": "flags",
        "a person": "people-body",
    }
    for key, turns in found.items():
        facts, noun = by_key[key].facts, by_key[key].phrase.noun
        for turn in turns:
            match turn.kind:
                case "what":
                    assert turn.answer == (noun if by_key[key].is_emoji else facts["label"])
                case "style":
                    assert turn.answer == by_key[key].style
                case _ if turn.kind in facts["attributes"]:
                    assert turn.answer == facts["attributes"][turn.kind]
                case "wears":
                    part = "eyewear" if "eyes" in turn.question else "facial hair"
                    assert (turn.answer == "yes") == (part in facts["attributes"])
                case "skin tone":
                    assert turn.answer == facts["skin_tone"]
                case "gender":
                    assert turn.answer == f"a {facts['gender']}"
                case "colour":
                    assert (key, turn.answer) == ("noto-redheart", "red")
                case "is it":
                    shown = turn.question.endswith(f" {by_key[key].phrase.skinless}?")
                    assert shown == (turn.answer == "yes"), turn
                case "is it a kind":
                    group = next(kinds[kind] for kind in kinds if turn.question.endswith(f" {kind}?"))
                    assert (facts["group"] == group) == (turn.answer == "yes"), turn
    turns = [turn for asked in found.values() for turn in asked]
    for kind in ("is it", "is it a kind"):
        answers = Counter(turn.answer for turn in turns if turn.kind == kind)
        assert answers["yes"] == answers["no"] > 0


def test_what_is_wider_or_narrower_is_not_called_wrong(pictures):
    by_key = {picture.key: picture for picture in pictures}
    for key, turns in questions(pictures, {}).items():
        facts = by_key[key].facts
        wrong = next((t.question for t in turns if t.kind == "is it" and t.answer == "no"), "")
        if by_key[key].phrase.noun == "guide dog":
            assert "dog?" not in wrong
        if facts["role"] == "walking" and facts["gender"] != "person":
            assert "person walking" not in wrong
        assert "a person?" not in wrong


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        ((220, 30, 40), "red"),
        ((250, 140, 20), "orange"),
        ((255, 215, 50), "yellow"),
        ((60, 160, 60), "green"),
        ((40, 90, 220), "blue"),
        ((140, 60, 190), "purple"),
        ((255, 150, 180), "pink"),
        ((120, 70, 40), "brown"),
        ((20, 20, 22), "black"),
        ((250, 250, 250), "white"),
        ((140, 142, 145), "grey"),
        ((255, 180, 40), None),  # orange or yellow
    ],
)
def test_main_colour(pixels, name):
    def png(*parts):
        picture = Image.new("RGBA", (60, 60))
        for colour, box in parts:
            picture.paste((*colour, 255), box)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    assert main_colour(png((pixels, (10, 10, 50, 50)))) == name
    other = (40, 90, 220) if name != "blue" else (220, 30, 40)
    assert main_colour(png((pixels, (10, 10, 50, 50)), (other, (10, 10, 50, 30)))) is None


def test_the_bytes_do_not_depend_on_the_order(tmp_path, pictures):
    first = make_tasks(write(tmp_path / "a", pictures), tmp_path / "one")
    second = make_tasks(write(tmp_path / "b", pictures[::-1], shards=3), tmp_path / "two")
    assert first == second
    assert read(tmp_path / "one") == read(tmp_path / "two")


def test_the_samples_are_read_as_what_they_are(tmp_path, pictures):
    manifest = make_tasks(write(tmp_path / "tokens", pictures), tmp_path / "out")
    tokens = {picture.key: TokenizedImage.from_bytes(picture.tokens) for picture in pictures}
    kinds = {"drawings": Pair, "captions": Pair, "edits": Edit, "questions": Question, "mixes": Document}
    for name, kind in kinds.items():
        found = samples(tmp_path / "out", name)
        assert len(found) == manifest["samples"][name] > 0
        assert all(isinstance(sample, kind) for sample in found)
        if kind is Document:
            assert all(sample.given == (True, True, True, False) for sample in found)
        elif kind is not Edit:
            assert all(sample.picture == tokens[sample.key] for sample in found)
    assert manifest["split"] == "train"
    assert sum(manifest["counts"]["edits"].values()) == manifest["samples"]["edits"]


def test_samples_of_another_split_are_refused(tmp_path, pictures):
    frog = a_picture("noto", "1f438", "frog")  # belongs to validation
    with pytest.raises(ValueError, match=r"noto-1f438: its JSON says split 'train', .* to 'validation'"):
        make_tasks(write(tmp_path / "wrong", [*pictures, frog]), tmp_path / "out")
    frog = a_picture("noto", "1f438", "frog", split="validation")
    with pytest.raises(ValueError, match="splits train, validation; give those of one"):
        make_tasks(write(tmp_path / "mixed", [*pictures, frog]), tmp_path / "out")
    held_out = {"role": "health worker", "skin_tone": "dark", "gender": "woman"}  # as in test_starter_build
    nurse = a_picture("noto", "1f469-1f3ff-200d-2695", "woman health worker, dark skin tone", **held_out)
    with pytest.raises(ValueError, match="belongs to 'composition-test'"):
        make_tasks(write(tmp_path / "held", [*pictures, nurse]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, pictures, capsys):
    tokens = write(tmp_path / "tokens", pictures)
    raw = tmp_path / "raw"
    raw.mkdir()
    with ShardFile(raw / "noto-000000.tar") as shard:
        for picture in pictures:
            buffer = io.BytesIO()
            Image.new("RGB", (30, 30), "red").save(buffer, "PNG")
            shard.write(picture.key, {"png": buffer.getvalue()})
    out = str(tmp_path / "out")
    assert cli.main(["data", "tasks", str(tokens), out, "--pictures", str(raw)]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    things = [p for p in pictures if p.facts["group"] != "people-body" and p.kind != "avatar"]
    assert manifest["counts"]["colours"] == Counter(p.attributes.get("colour", "red") for p in things)
    assert "profession" in capsys.readouterr().out
    assert cli.main(["data", "tasks", str(tokens), out]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["data", "tasks", str(tokens), out, "--overwrite", "--quiet"]) == 0
    assert cli.main(["data", "tasks", str(tokens), str(tmp_path / "new"), "--pictures", str(tokens)]) == 2
    assert re.fullmatch(r"pictish: .* lacks \d+ pictures, such as \S+\n", capsys.readouterr().err)
