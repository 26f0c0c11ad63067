"""A model whose tokenizer places codes: from words to tokens on cells, to files, and back into prompts."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pictish.data.images import png_bytes
from pictish.data.loader import ImageBytes
from pictish.data.tokens import EncodedImage, TokenizedImage
from pictish.lm.autoregressive import embed_ids
from pictish.lm.config import DefaultsConfig, ImageGenerationConfig
from pictish.lm.grammar import ImageSegment
from pictish.lm.model import UnifiedModel
from pictish.lm.rerank import candidate_generators, caption_scores
from pictish.lm.sequence import picture_ids
from pictish.lm.vocabulary import widen
from pictish.pipelines.describe import Describe
from pictish.pipelines.language import Language
from pictish.pipelines.lm_training import image_encoder, image_tokens_of
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage
from pictish.tokenizer.dynamic import Tokenizer
from tests.lm.tiny import tiny_model, tiny_tokenizer
from tests.shards import told_picture
from tests.tokenizer.conftest import ORDERED, tiny_network


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A tiny tokenizer that places codes."""
    tokenizer = Tokenizer(tiny_network(), "0123456789ab")
    assert tokenizer.places_codes
    return tokenizer


@pytest.fixture
def language(tokenizer) -> Language:
    return Language(tokenizer, speaking(tokenizer, tokenizer.cells))


def speaking(tokenizer: Tokenizer, cells: int | None) -> UnifiedModel:
    text = tiny_tokenizer()
    model = tiny_model("llama", len(text), dtype=torch.float32)
    model.config.max_position_embeddings = 512
    generator = torch.Generator().manual_seed(0)
    widen(model, text, tokenizer.codebook_size, cells=cells, generator=generator)
    return UnifiedModel(model, text, image_tokens_of(tokenizer), None)


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_drawn_pictures_have_cells(language):
    drawer = TextToImage(language)
    most = language.tokenizer.cells
    for least, allowed in ((None, None), (3, 3), (most, None), (1, 2)):
        config = GenerationConfig(min_codes=least, max_codes=allowed)
        drawn = drawer.tokens([["a red apple"]] * 4, seeded(4), config)
        for tokens in drawn:
            assert tokens.cells is not None
            assert (least or 1) <= len(tokens) <= (allowed or most)
            assert all(a < b for a, b in itertools.pairwise((-1, *tokens.cells, most)))
            assert TokenizedImage.from_bytes(tokens.to_bytes()) == tokens
    with pytest.raises(ValueError, match=f"an image of this model has 1 to {most}"):
        drawer.tokens([["a"]], seeded(1), GenerationConfig(max_codes=most + 1))


def test_the_best_of_several_candidates_is_kept(language):
    drawer = TextToImage(language)
    prompts = [["a red apple"], ["two green pears", "in a bowl"]]
    rows = [prompt for prompt in prompts for _ in range(4)]
    each = [one for seed in seeded(2) for one in candidate_generators(seed, 4)]
    candidates = drawer.tokens(rows, each, GenerationConfig(max_codes=6))
    best = drawer.tokens(prompts, seeded(2), GenerationConfig(max_codes=6, best_of=4))
    chosen = set()
    for number, words in enumerate(prompts):
        mine = candidates[4 * number : 4 * number + 4]
        segments = [ImageSegment(tuple(one.ids.tolist()), tuple(one.cells.tolist())) for one in mine]
        place = int(caption_scores(language.model, segments, words).argmax())
        assert best[number] == mine[place]
        chosen.add(place)
    assert chosen != {0}, "else nothing was ranked"
    language.model.defaults = DefaultsConfig(drawing=ImageGenerationConfig(best_of=4))
    assert drawer.tokens(prompts, seeded(2), GenerationConfig(max_codes=6)) == best
    plain = GenerationConfig(max_codes=6, best_of=1)
    assert drawer.tokens(prompts, seeded(2), plain) == [candidates[0], candidates[4]]


def test_candidates_of_prompts_with_images_are_not_ranked(language):
    drawer, picture = TextToImage(language), told_picture("red", "disc", 60)
    with pytest.raises(ValueError, match="best_of: 4 asked for, and prompts with images have no"):
        drawer.tokens([[picture, "blue"]], seeded(1), GenerationConfig(best_of=4))
    usual = drawer.tokens([[picture, "blue"]], seeded(1))
    language.model.defaults = DefaultsConfig(drawing=ImageGenerationConfig(best_of=4))
    assert drawer.tokens([[picture, "blue"]], seeded(1)) == usual


def test_a_picture_in_a_prompt_says_where_its_codes_lie(language, monkeypatch):
    picture = told_picture("red", "disc", 60)
    tokens = replace(language.tokenizer.tokenize([picture], budget=3)[0], cells=np.array([2, 3, 7]))
    encoded = EncodedImage(tokens)
    monkeypatch.setattr(language.tokenizer, "encode", lambda pictures, **_: [encoded for _ in pictures])
    ids = picture_ids(tokens.ids, tokens.cells, language.model.vocabulary)
    assert len(ids) == 3 + 2 + 2, "two skips"
    embedded = embed_ids(language.model.language, ids.tolist())
    assert torch.equal(language.prompt([picture], draw=False).full, embedded)
    assert torch.equal(language.prompt([picture, "blue"], draw=True).image_only[:-1], embedded)
    assert Describe(language)(picture), "text alone follows"


def test_a_model_may_read_fewer_codes_of_a_picture_than_the_tokenizer_keeps(language):
    picture = told_picture("red", "disc", 60)
    (kept,) = language.parts([picture])
    language.model.defaults = DefaultsConfig(threshold=0.999)
    (fewer,) = language.parts([picture])
    (expected,) = language.tokenizer.tokenize([picture], threshold=0.999)
    assert 1 <= len(fewer.codes) == len(expected) < len(kept.codes)


def test_raw_pictures_are_encoded_with_their_cells(tokenizer):
    (encoded,) = image_encoder(tokenizer)([ImageBytes(png_bytes(told_picture("red", "disc", 60)), "a.png")])
    assert len(encoded.tokens) == len(encoded.tokens.cells) == len(encoded.features)


def test_parts_that_do_not_agree_on_cells_are_refused(tokenizer):
    ordered = Tokenizer(tiny_network(**ORDERED), tokenizer.fingerprint)
    assert not ordered.places_codes
    for one, other in ((tokenizer, ordered), (ordered, tokenizer)):
        Language(one, speaking(one, one.cells if one.places_codes else None))
        with pytest.raises(ValueError, match="only one reads where codes lie"):
            Language(one, speaking(other, other.cells if other.places_codes else None))
