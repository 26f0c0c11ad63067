"""A recording whose prompt is longer than an image has cells: the official limit is the prompt's length."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pictish.pipelines.language import Language
from pictish.pipelines.lavit_replay import OfficialTextToImage, WithoutMarkers
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from tests.commands.test_generate import speaking_model
from tests.shards import told_picture
from tests.tokenizer.conftest import ORDERED, tiny_network
from tools.compare_lavit_generation import _image_ids

CELLS = 16
LONG, SHORT = "a red apple on a table and two green pears in front of a small blue house", "a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speaking")
    save_tokenizer(folder / "tokenizer", tiny_network(**ORDERED))  # as LaVIT's own does
    speaking_model(Tokenizer.from_folder(folder)).save(folder / "lm", dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def language(folder) -> Language:
    language = Language.from_folder(folder)
    assert language.model.image_tokens.max_tokens == CELLS
    return language


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return told_picture("red", "disc", 60).convert("RGB")


def length_of(language: Language, said: list) -> int:
    """Ids of a prompt, without the [IMG] behind it."""
    return len(WithoutMarkers(language.tokenizer, language.model).prompt(said, draw=True).full) - 1


def recorded(most: int) -> dict:
    settings = {"do_sample": False, "temperature": 1, "top_k": 50, "top_p": 1.0, "guidance_scale": 5.0}
    return {"note": "", "settings": {**settings, "min_new_tokens": 4, "max_new_tokens": most}}


def test_the_room_is_that_of_the_prompt_or_of_a_picture(language, picture, monkeypatch):
    limits = []
    original = TextToImage.draw

    def noted(self, prompts, generators, settled, *rest):
        limits.append((settled.min_codes, settled.max_codes))
        return original(self, prompts, generators, settled, *rest)

    monkeypatch.setattr(TextToImage, "draw", noted)
    drawer = OfficialTextToImage(language)
    short = length_of(language, [picture, SHORT])
    assert short < CELLS < length_of(language, [picture, LONG])
    for words, asked in ((LONG, 260), (SHORT, 260), (SHORT, None), (LONG, None)):
        said = [[picture, words]]
        config = GenerationConfig(min_codes=4, max_codes=asked)
        (drawn,) = drawer.tokens(said, torch.Generator(), config)
        assert 1 <= len(drawn) <= CELLS
    assert limits == [(4, CELLS), (4, short), (4, short), (4, CELLS)]
    for kind, said in ((TextToImage, [picture, LONG]), (OfficialTextToImage, [LONG])):  # words: no quirk
        config = GenerationConfig(min_codes=4, max_codes=260)
        with pytest.raises(ValueError, match="4 to 260 tokens asked for; an image of this model has 1 to 16"):
            kind(language).tokens([said], [torch.Generator()], config)


def test_the_tool_takes_such_a_recording(folder, language, picture):
    said = [picture, LONG]
    most = length_of(language, said)
    config = GenerationConfig(guidance_scale=5, image_guidance_scale=5, temperature=0, min_codes=4)
    (drawn,) = OfficialTextToImage(language).tokens([said], torch.Generator(), config)
    assert len(drawn) == CELLS, "it goes on as long as it may"
    vocabulary = language.model.vocabulary
    row = [vocabulary.begin, *vocabulary.ids_of(drawn.ids).tolist()]
    row += [vocabulary.first_code] * (most - CELLS)  # and the official code up to the prompt's length
    run = SimpleNamespace(folder=folder, expected={"llm.x.sequences": torch.tensor([row])})
    found = _image_ids(run, "x", [said], recorded(most))
    assert (found.right, found.equal) == (True, "1 of 1 rows")
    row[3] += 1 if row[3] == vocabulary.first_code else -1
    run.expected["llm.x.sequences"] = torch.tensor([row])
    assert not _image_ids(run, "x", [said], recorded(most)).right
