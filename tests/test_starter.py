"""The shipped model does what the README shows: words to images and to answers, whatever is said to it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pictish.data.images import load_image
from pictish.io.model_folder import fingerprint, locate_model
from pictish.pipelines.describe import Describe
from pictish.pipelines.text_to_image import TextToImage

SAMPLES = Path(__file__).parents[1] / "docs" / "samples"


@pytest.fixture(scope="module")
def drawer() -> TextToImage:
    return TextToImage.from_folder("starter", steps=0)


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def test_any_words_give_a_picture(drawer):
    said = [
        "a red apple",
        "draw me a red apple",
        "a smiling cat please",
        "flurbl",  # no word
        "ein roter Apfel",  # no English
        "りんご 🍎",
        "a " + "very " * 60 + "long way to ask for a house",
    ]
    tokens = drawer.tokens([[words] for words in said], seeded(len(said)))
    assert all(1 <= len(one) <= 64 for one in tokens)
    assert all(one.ids.min() >= 0 and one.ids.max() < 2048 for one in tokens)
    pictures = drawer.reconstructor(tokens, 64)
    for picture in pictures:
        darkest, lightest = picture.convert("L").getextrema()
        assert lightest - darkest > 60, "something is drawn"


def test_the_same_seed_gives_the_same_codes(drawer):
    first, second, other = (
        drawer.tokens([["a red apple"]], [torch.Generator().manual_seed(seed)])[0].ids.tolist()
        for seed in (5, 5, 6)
    )
    assert first == second != other


def test_words_decide_about_colours(drawer):
    """Of eight images each, red ones are redder than blue ones."""
    redness = {}
    for colour in ("red", "blue"):
        tokens = drawer.tokens([[f"{colour} heart"]] * 8, seeded(8))
        pictures = [np.asarray(picture, np.float32) for picture in drawer.reconstructor(tokens, 32)]
        redness[colour] = np.mean([picture[..., 0] - picture[..., 2] for picture in pictures])
    assert redness["red"] > redness["blue"] + 30


def test_pictures_get_words(drawer):
    describe = Describe(drawer.language)
    styles = {
        "noto-woman-student": "noto",
        "twemoji-globe": "twemoji",
        "fluent-saxophone": "fluent-emoji-flat",
        "fluent-fallen-leaf": "fluent-emoji-flat",
    }
    pictures = [load_image(SAMPLES / f"{name}.png") for name in styles]
    assert all(text.strip() for text in describe.batch(pictures, [None] * 4))
    told = describe.batch(pictures, ["In which style is it drawn?"] * 4)
    assert set(told) <= {"noto", "twemoji", "fluent-emoji-flat", "openclipart"}, "the answer is a style"
    assert told[0] == "noto"


def test_all_parts_belong_together(drawer):
    tokenizer = drawer.language.tokenizer.fingerprint
    assert drawer.language.model.image_tokens.fingerprint == tokenizer
    assert drawer.reconstructor.tokenizer.fingerprint == tokenizer
    assert TextToImage.from_folder("starter").reconstructor.fingerprint == fingerprint(
        locate_model("starter", "decoder")
    )
