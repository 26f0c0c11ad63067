import json

import numpy as np
import pytest

from pictish.data.images import load_image, png_bytes
from pictish.data.shards import ShardWriter
from pictish.evaluation.metrics import rounded
from pictish.recipes.starter.evaluation.emoji import image_of, read_emoji
from pictish.recipes.starter.evaluation.understanding import (
    CAPTION,
    Described,
    Reply,
    choose_some,
    describe_all,
    header,
    names_of,
    plain,
    report_split,
    turns_of,
)
from pictish.recipes.starter.phrases import Picture
from pictish.recipes.starter.questions import Turn
from tests.evaluation.emoji import HUES, every_emoji, facts_of, write_starter_data
from tests.evaluation.starter import boxed


def a_picture(caption: str, style: str = "noto", look: str | None = None, **known: object) -> Picture:
    tone = known.get("skin_tone")
    pixels = boxed(style, look or caption, tone if isinstance(tone, str) else None)
    facts = facts_of(style, caption.replace(" ", ""), caption, **known)
    return Picture(f"{style}-{caption.replace(' ', '-')}", png_bytes(pixels), facts)


APPLE = a_picture("red apple", tags=["fruit", "the", "apple"], group="food-drink", subgroup="food-fruit")
SINGER = a_picture(
    "woman singer, dark skin tone", tags=["rock"], skin_tone="dark", gender="woman", role="singer"
)


class Knowing:
    """Says what a table says of images, by their pixels, and notes the batches it was given."""

    def __init__(self, table):
        self.table = {(image_of(each).tobytes(), asked): said for (each, asked), said in table.items()}
        self.batches = []

    def batch(self, images, questions):
        self.batches.append(list(questions))
        return [self.table[image.tobytes(), asked] for image, asked in zip(images, questions, strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A drawing of the Red Apple.", "drawing of red apple"),
        ("woman farmer, medium-dark skin tone", "woman farmer medium dark skin tone"),
        ("Hawai'i", "hawaii"),
        ("rescue worker\N{RIGHT SINGLE QUOTATION MARK}s helmet", "rescue workers helmet"),
        ("keycap: #", "keycap #"),
        ("Côte d'Ivoire", "côte divoire"),
        ("", ""),
    ],
)
def test_plain_words(text, words):
    assert plain(text) == words


@pytest.mark.parametrize(
    ("picture", "said", "verdict"),
    [
        (APPLE, "red apple", "exact"),
        (APPLE, "A red apple.", "exact"),
        (APPLE, "a drawing of a red apple", "exact"),
        (APPLE, "red apple, noto style", "exact"),
        (APPLE, "red apple, twemoji style", "near"),  # which is false
        (APPLE, "fruit", "synonym"),
        (APPLE, "a drawing of fruit", "synonym"),
        (APPLE, "the", "wrong"),
        (APPLE, "green apple", "wrong"),  # one word of three
        (APPLE, "an apple", "near"),
        (APPLE, "a drawing of a pear", "wrong"),  # the wording is no merit
        (APPLE, "", "wrong"),
        (SINGER, "a woman singer with dark skin", "exact"),
        (SINGER, "woman singer: dark skin tone", "exact"),
        (SINGER, "a woman singer with light skin", "near"),
        (SINGER, "a man with dark skin", "wrong"),
        (SINGER, "rock", "wrong"),  # leaves the tone away
    ],
)
def test_what_a_caption_is_worth(picture, said, verdict):
    assert names_of([APPLE, SINGER])[picture.key].verdict(said) == verdict


def test_pictures_with_the_same_pixels_may_be_called_by_either_name():
    norway, island = (a_picture(name, look="flag") for name in ("flag, Norway", "flag, Bouvet Island"))
    names = names_of([norway, island, APPLE])
    assert names[norway.key].verdict("flag of Bouvet Island") == "synonym"
    assert names[norway.key].verdict("flag of Norway") == "exact"
    assert names[island.key].verdict("red apple") == "wrong"


def test_choice_is_seeded_and_shared_by_the_sets():
    pictures = [Picture(f"{style}-{n}", b"", {"set": style}) for style in HUES for n in range(9)]
    chosen = choose_some(pictures, 7, seed=1)
    assert chosen == choose_some(pictures[::-1], 7, seed=1)
    assert sorted(sum(each.set == style for each in chosen) for style in HUES) == [2, 2, 3]
    assert chosen[:6] == choose_some(pictures, 6, seed=1)
    assert {each.key for each in chosen} != {each.key for each in choose_some(pictures, 7, seed=2)}
    assert len(choose_some(pictures, 100, seed=1)) == len(pictures)


def test_emoji_of_a_split_are_read_by_key(tmp_path):
    found = read_emoji(write_starter_data(tmp_path), "train")
    expected = sorted((key, facts, image) for key, facts, image in every_emoji() if facts["split"] == "train")
    assert [picture.key for picture in found] == [key for key, _, _ in expected]
    assert [picture.facts for picture in found] == [facts for _, facts, _ in expected]
    assert image_of(found[3]).size == (64, 64)


def test_data_that_cannot_be_read_is_a_users_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"is no starter data: .*test/noto-000000\.tar"):
        read_emoji(tmp_path, "test")
    (tmp_path / "manifest.json").write_text("{}")
    with ShardWriter(tmp_path / "test", 1000, "noto") as shards:
        shards.write("lonely", {"txt": b"alone"})
    with pytest.raises(ValueError, match=r"lonely lacks its \.json or \.png"):
        read_emoji(tmp_path, "test")
    with pytest.raises(ValueError, match=r"torn\.png: "):
        image_of(Picture("torn", b"no picture", {}))


def test_questions_are_asked_about_the_chosen_ones_and_about_their_colour():
    pear = a_picture("pear", group="food-drink", subgroup="food-fruit")
    flat = load_image(APPLE.tokens)
    flat.paste("red", (0, 0, *flat.size))
    red = Picture("noto-red", png_bytes(flat), APPLE.facts)
    turns = turns_of([red, SINGER, pear], [red, SINGER])
    assert set(turns) == {"noto-red", SINGER.key}
    answers = {turn.kind: turn.answer for turn in turns["noto-red"]}
    assert (answers["what"], answers["style"], answers["colour"]) == ("red apple", "noto", "red")
    kinds = {turn.kind: turn.answer for turn in turns[SINGER.key]}
    assert (kinds["skin tone"], kinds["gender"]) == ("dark", "a woman")
    assert "colour" not in kinds


def test_everything_said_finds_its_picture_in_batches(monkeypatch):
    monkeypatch.setattr("pictish.recipes.starter.evaluation.understanding.BATCH", 2)
    turns = {
        APPLE.key: [Turn("what", "What is it?", "red apple"), Turn("is it", "Is it a pear?", "no")],
        SINGER.key: [Turn("gender", "Man or woman?", "a woman")],
    }
    table = {
        (APPLE, None): "a red apple",
        (SINGER, None): "a man",
        (APPLE, "What is it?"): "a red apple",
        (APPLE, "Is it a pear?"): "yes",
        (SINGER, "Man or woman?"): "A woman.",
    }
    model, reported = Knowing(table), []
    apple, singer = describe_all(model, [APPLE, SINGER], names_of([APPLE, SINGER]), turns, reported.append)
    assert (apple.caption, apple.verdict) == ("a red apple", "exact")
    assert (singer.caption, singer.verdict) == ("a man", "wrong")
    assert [(reply.said, reply.right) for reply in apple.replies] == [("a red apple", True), ("yes", False)]
    assert [(reply.said, reply.right) for reply in singer.replies] == [("A woman.", True)]
    assert model.batches == [[None, None], ["What is it?", "Is it a pear?"], ["Man or woman?"]]
    assert reported == [2, 2, 1]


def test_shares_and_what_the_commonest_answer_would_get():
    def described(picture, verdict, *answers):
        replies = [Reply(Turn("style", "Which style?", true), said) for true, said in answers]
        return Described(picture, "a thing", verdict, replies)

    twin = a_picture("red apple", "twemoji")
    report = report_split(
        [
            described(APPLE, "exact", ("noto", "noto"), ("noto", "twemoji")),
            described(APPLE, "synonym", ("noto", "noto")),
            described(APPLE, "wrong"),
            described(twin, "near", ("twemoji", "Twemoji")),
        ],
        seed=0,
    )
    assert [report["caption"][name]["mean"] for name in CAPTION] == [0.25, 0.5, 0.25]
    assert [report["parts"]["noto"][name]["mean"] for name in CAPTION] == pytest.approx([1 / 3, 2 / 3, 0])
    assert {name: part["pictures"] for name, part in report["parts"].items()} == {
        "noto": 3,
        "twemoji": 1,
        "no skin tone": 4,
    }
    style = report["questions"]["style"]
    assert (style["asked"], style["right"]["mean"]) == (4, 0.75)
    assert style["commonest"] == {"answer": "noto", "right": 0.75}
    assert report["near_misses"] == [{"key": twin.key, "said": "a thing", "name": "red apple"}]
    for number in (*(report["caption"][name] for name in CAPTION), style["right"]):
        assert number["low"] <= number["mean"] <= number["high"]
    whole = header("tokenizer", "language", "data", 0) | {"splits": {"seen": report}}
    assert json.loads(json.dumps(rounded(whole), allow_nan=False))["splits"]["seen"]["pictures"] == 4
    assert np.isfinite(style["right"]["high"])
