"""What a model does of itself: where texts are cut, how prompts are guided, which shape is drawn."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pictish.data.tokens import TokenizedImage
from pictish.lm.config import BeamSearchConfig, ImageGenerationConfig
from pictish.lm.lavit import DEFAULTS
from pictish.pipelines.describe import _shorter, cut, lemmatised
from pictish.pipelines.image_requests import shape_of
from pictish.pipelines.reconstruct import Reconstructor
from pictish.pipelines.settings import GenerationConfig, settle_codes

SHAPES = ((1024, 1024), (896, 1152), (832, 1216), (768, 1344), (1216, 832), (1152, 896))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Brown. It is a dog", "brown"),
        (" two, or three", "two"),
        ("A dog\nQuestion: what", "a dog"),
        ("red question: which", "red"),
        ("yes Long answer: no", "yes"),
        (". nothing", ""),
    ],
)
def test_answers_are_cut_as_lavit_does(text, answer):
    assert DEFAULTS.answer is not None
    assert cut(text, DEFAULTS.answer.stop_strings, lower=DEFAULTS.answer.lowercase) == answer


def test_captions_keep_their_commas():
    assert DEFAULTS.caption is not None
    assert (
        cut("A dog, a cat. And", DEFAULTS.caption.stop_strings, lower=DEFAULTS.caption.lowercase)
        == "A dog, a cat"
    )


def test_basic_forms_are_those_of_spacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match="basic forms need spaCy: pip install"):
        lemmatised("two dogs")
    words = [
        SimpleNamespace(text="two", lemma_="2", pos_="NUM"),
        SimpleNamespace(text="dogs", lemma_="dog", pos_="NOUN"),
        SimpleNamespace(text="ran", lemma_="run", pos_="VERB"),
    ]
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: lambda text: words))
    assert lemmatised("two dogs ran") == "two dog run"


def test_fewer_ids_at_most_are_fewer_at_least():
    shorter = _shorter(BeamSearchConfig(num_beams=2, min_new_tokens=8, max_new_tokens=36), 5)
    assert (shorter.min_new_tokens, shorter.max_new_tokens) == (5, 5)


def test_prompts_with_pictures_may_have_a_scale_of_their_own():
    def scale(defaults: ImageGenerationConfig, pictures: bool) -> float | None:
        return settle_codes(GenerationConfig(), defaults, 256, pictures=pictures).guidance_scale

    assert scale(DEFAULTS.drawing, False) == 4
    assert scale(DEFAULTS.drawing, True) == DEFAULTS.drawing.image_guidance == 5
    assert scale(ImageGenerationConfig(), True) == ImageGenerationConfig().guidance


@pytest.mark.parametrize("shape", SHAPES)
def test_a_published_size_is_drawn_for_its_aspect_ratio(shape, monkeypatch):
    monkeypatch.setattr(Reconstructor, "_shapes", SHAPES)
    size = shape_of(f"{shape[1]}:{shape[0]}")
    assert size is not None
    assert size[0] * shape[1] == size[1] * shape[0]
    token = TokenizedImage(np.array([1]), None, (2, 2), size, "0" * 12, 4)
    reconstructor = object.__new__(Reconstructor)
    assert reconstructor._shape(token) == shape
