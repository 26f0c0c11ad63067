"""Candidates are ranked by how likely the model finds the prompt as their caption."""

import numpy as np
import pytest
import torch

from pictish.lm.grammar import ImageSegment
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.rerank import candidate_generators, caption_scores
from pictish.lm.sequence import picture_ids
from pictish.lm.vocabulary import text_ids, widen
from tests.lm.tiny import tiny_model, tiny_tokenizer

CELLS, CODES = 16, 30
IMAGES = [ImageSegment((3, 1, 2), (0, 4, 9)), ImageSegment((7,), (15,)), ImageSegment((3, 1), (0, 1))]


@pytest.fixture
def model() -> UnifiedModel:
    text = tiny_tokenizer()
    language = tiny_model("llama", len(text))
    widen(language, text, CODES, cells=CELLS, generator=torch.Generator().manual_seed(0))
    return UnifiedModel(language, text, ImageTokens("0" * 12, CODES, CELLS, 5, CELLS), None).eval()


def alone(model: UnifiedModel, image: ImageSegment, caption: str) -> float:
    """The same by the transformers model itself, one sequence at a time."""
    shown = picture_ids(np.array(image.codes), np.array(image.cells), model.vocabulary).tolist()
    words = [*text_ids(model.text_tokenizer, caption), model.eos]
    ids = torch.tensor([shown + words])
    likely = model.language(ids).logits[0].log_softmax(dim=-1)
    return sum(likely[len(shown) + at - 1, word].item() for at, word in enumerate(words))


def test_a_score_is_the_log_likelihood_of_the_caption(model):
    scores = caption_scores(model, IMAGES, [" a red apple "])
    expected = [alone(model, image, "a red apple") for image in IMAGES]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
    assert len(set(scores.tolist())) == len(IMAGES)


def test_several_pieces_of_text_are_read_one_after_the_other(model):
    (score,) = caption_scores(model, IMAGES[:1], ["a red apple", "on a table"])
    pieces = [*text_ids(model.text_tokenizer, "a red apple"), *text_ids(model.text_tokenizer, "on a table")]
    shown = picture_ids(np.array(IMAGES[0].codes), np.array(IMAGES[0].cells), model.vocabulary).tolist()
    likely = model.language(torch.tensor([shown + pieces])).logits[0].log_softmax(dim=-1)
    words = [*pieces, model.eos]
    expected = sum(likely[len(shown) + at - 1, word].item() for at, word in enumerate(words))
    assert score.item() == pytest.approx(expected, abs=1e-4)


def test_a_score_is_the_same_in_any_company_of_shorter_images(model):
    (first, *_) = caption_scores(model, IMAGES, ["a car"])
    assert torch.equal(first, caption_scores(model, [IMAGES[0], IMAGES[0], IMAGES[2]], ["a car"])[0])


def test_candidates_follow_from_the_seed():
    def draws(seed: int, count: int) -> list[float]:
        found = candidate_generators(torch.Generator().manual_seed(seed), count)
        return [torch.rand((), generator=one, dtype=torch.float64).item() for one in found]

    plain = torch.rand((), generator=torch.Generator().manual_seed(5), dtype=torch.float64).item()
    assert draws(5, 1) == [plain]
    assert draws(5, 8)[:3] == draws(5, 3), "more candidates are further ones"
    assert len({*draws(5, 64), *draws(6, 64), *draws(2**31 + 5, 64)}) == 192
