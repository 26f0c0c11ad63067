import io
import itertools
import json
import re
from collections import Counter

import pytest
from PIL import Image

from pictish import cli
from pictish.data.samples import Edit, Pair, Question, index_shard
from pictish.data.shards import ShardFile
from pictish.data.starter.captions import descriptions, prompts
from pictish.data.starter.colours import main_colour
from pictish.data.starter.concepts import GENDERS, TONES, split_of
from pictish.data.starter.edits import CAPS, HAIR, changes
from pictish.data.starter.phrases import Picture, phrase_of
from pictish.data.starter.questions import questions
from pictish.data.starter.tasks import make_tasks
from pictish.data.tokens import TokenizedImage

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


def a_picture(style, concept, caption, **more):
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
    key = f"{style}-{re.sub('[/.]', '-', concept)}"
    number = sum(key.encode())
    tokens = TokenizedImage(
        [number % 64, len(key)], [0, 1], (2, 2), (9, number), "abcdefabcdef", 64
    ).to_bytes()
    return Picture(key, tokens, facts)


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
        assert 4 <= len(said) <= 10
        assert len(set(said)) == len(said)
        assert 2 <= len(short) <= 4
        assert any(picture.set in caption for caption in said)
        for caption in (*said, *short):
            words = set(re.findall(r"[a-z-]+", caption.lower()))
            assert words.isdisjoint({*SETS} - {picture.set}), caption
            assert not (words & {"draw", "please"} and caption in short), caption
            tones = {tone for tone in TONES if re.search(rf"(?<!-)\b{tone}\b(?!-(?!skin))", caption)}
            assert tones <= {picture.facts["skin_tone"]}, caption
            of_tags = set(caption.split(", ")) <= set(picture.facts["tags"])
            genders = {"man", "woman"} & words
            if picture.facts["gender"] is not None:
                assert of_tags or genders == {picture.facts["gender"]} & {"man", "woman"}, caption


def test_every_edit_is_true(pictures):
    found = changes(pictures)
    assert set(CAPS) == {change.kind for change in found}
    fixed = {
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
    for change in found:
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
                    assert turn.answer == noun
                case "style":
                    assert turn.answer == facts["set"]
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
    for name, kind in (("drawings", Pair), ("captions", Pair), ("edits", Edit), ("questions", Question)):
        found = samples(tmp_path / "out", name)
        assert len(found) == manifest["samples"][name] > 0
        assert all(isinstance(sample, kind) for sample in found)
        if kind is not Edit:
            assert all(sample.picture == tokens[sample.key] for sample in found)
    assert manifest["split"] == "train"
    assert sum(manifest["counts"]["edits"].values()) == manifest["samples"]["edits"]
    assert manifest["counts"]["answers"]["yes"] == manifest["counts"]["answers"]["no"]


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
    things = [picture for picture in pictures if picture.facts["group"] != "people-body"]
    assert manifest["counts"]["colours"] == {"red": len(things)}
    assert "profession" in capsys.readouterr().out
    assert cli.main(["data", "tasks", str(tokens), out]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["data", "tasks", str(tokens), out, "--overwrite", "--quiet"]) == 0
    assert cli.main(["data", "tasks", str(tokens), str(tmp_path / "new"), "--pictures", str(tokens)]) == 2
    assert re.fullmatch(r"pictish: .* lacks \d+ pictures, such as \S+\n", capsys.readouterr().err)
