"""Samplers of both kinds behind one protocol: caches that cut no corner change no id, nor does the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pictish.lm.autoregressive import Guidance, Prompt, embed_ids
from pictish.lm.config import FillingConfig, MaskedCache, MaskedDefaults, MaskedForm, TextFillingConfig
from pictish.lm.grammar import GenerationConstraints, ImageSegment, one_image
from pictish.lm.masked_cache import Interval
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.sampler import (
    AutoregressiveSampler,
    MaskedSampler,
    PictureRequest,
    Redraw,
    sampler_of,
)
from pictish.lm.sampling import Sampling
from pictish.lm.vocabulary import text_ids, widen
from tests.lm.tiny import tiny_model, tiny_tokenizer

CELLS, CODES = 16, 30
GRID = (4, 4)
GUIDED = Guidance(text_scale=2.0, rescale=0.5)


def masked_model(architecture: str = "llama", **form) -> UnifiedModel:
    """A masked model whose weights are large enough for its logits to differ; double precision."""
    text = tiny_tokenizer()
    language = tiny_model(architecture, len(text))
    widen(language, text, CODES, cells=CELLS, dense=True, generator=torch.Generator().manual_seed(0))
    tokens = ImageTokens("0" * 12, CODES, CELLS, 5, CELLS)
    return UnifiedModel(language, text, tokens, None, masked=MaskedForm(**form)).eval()


def cached(model: UnifiedModel, cache: MaskedCache, **settings) -> MaskedSampler:
    filling = {"steps": 5, "cache": cache, **settings}
    masked = MaskedDefaults(
        pictures=FillingConfig(schedule="cosine", **filling),
        texts=TextFillingConfig(block_length=4, **{**filling, "steps": 3}),
    )
    model.defaults = model.defaults.model_copy(update={"masked": masked})
    sampler = sampler_of(model)
    assert isinstance(sampler, MaskedSampler)
    return sampler


def prompts(model: UnifiedModel, draw: bool) -> list[Prompt]:
    """Words of different length, guided where something is to be drawn."""
    begin = [model.vocabulary.begin] if draw else []
    nothing = embed_ids(model.language, begin) if draw else None
    return [
        Prompt(
            embed_ids(model.language, [*text_ids(model.text_tokenizer, words), *begin]),
            nothing=nothing,
            inside=draw,
        )
        for words in ("a red apple on a table", "a car", "the sun over the sea by night")
    ]


def request(least: int = 1, most: int = CELLS, guidance: Guidance = GUIDED) -> PictureRequest:
    return PictureRequest(one_image(most, least, cells=CELLS), Sampling(0.8), guidance, GRID)


def seeded(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def drawn(model: UnifiedModel, cache: MaskedCache, **settings) -> list[ImageSegment]:
    return cached(model, cache, **settings).pictures(prompts(model, True), request(), seeded(3))


def said(model: UnifiedModel, cache: MaskedCache, **settings) -> list[list[int]]:
    sampler = cached(model, cache, **settings)
    return sampler.texts(prompts(model, False), 10, Sampling(0.8), seeded(3))


NONE = MaskedCache()
EXACT = {
    "prefix": MaskedCache(kind="prefix", refresh=1),
    "dual": MaskedCache(kind="dual", refresh=1),
    "interval": MaskedCache(kind="interval", prompt_interval=1, answer_interval=1, ratio=0),
}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_cache_that_cuts_no_corner_changes_no_id(kind, architecture):
    model = masked_model(architecture)
    assert drawn(model, EXACT[kind]) == drawn(model, NONE)
    assert said(model, EXACT[kind]) == said(model, NONE)


def test_a_share_of_all_computes_all():
    model = masked_model()
    always = MaskedCache(kind="interval", prompt_interval=1, answer_interval=50, ratio=1)
    assert drawn(model, always) == drawn(model, NONE)


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_other_architectures_have_these_caches_too(kind):
    model = masked_model("gpt2")
    assert drawn(model, EXACT[kind]) == drawn(model, NONE)


def test_caches_do_cut_corners_where_they_may():
    model = masked_model()
    for cache in (
        MaskedCache(kind="dual"),
        MaskedCache(kind="interval", prompt_interval=9, answer_interval=9, ratio=0.3),
    ):
        assert said(model, cache) != said(model, NONE)
        assert all(said(model, cache))


def test_a_prompt_that_does_not_see_its_answer_is_cached_exactly():
    model = masked_model(attention="prefix", block_length=4)
    assert said(model, MaskedCache(kind="prefix")) == said(model, NONE)
    assert drawn(model, MaskedCache(kind="prefix")) == drawn(model, NONE)


def test_the_interval_cache_refuses_layers_it_does_not_know():
    with pytest.raises(ValueError, match="not known how gpt2 is built; prefix, dual or none would fit"):
        Interval(masked_model("gpt2").language, 1, EXACT["interval"])


@pytest.mark.parametrize(
    "cache",
    [
        NONE,
        MaskedCache(kind="prefix"),
        MaskedCache(kind="dual", refresh=2),
        MaskedCache(kind="interval", prompt_interval=4, answer_interval=2, ratio=0.3),
    ],
)
@pytest.mark.parametrize("form", [{}, {"attention": "prefix"}])
def test_what_a_row_gets_does_not_depend_on_its_batch(cache, form):
    model = masked_model(**form)
    together = drawn(model, cache, threshold=0.3), said(model, cache, threshold=0.2)
    for row in range(3):
        sampler = cached(model, cache, threshold=0.3)
        alone = sampler.pictures(prompts(model, True)[row : row + 1], request(), seeded(1, row))
        assert alone == [together[0][row]]
        sampler = cached(model, cache, threshold=0.2)
        words = sampler.texts(prompts(model, False)[row : row + 1], 10, Sampling(0.8), seeded(1, row))
        assert words == [together[1][row]]


def test_pictures_have_as_many_codes_as_asked_for():
    model = masked_model()
    for least, most in ((1, 1), (4, 4), (CELLS, CELLS), (3, 6)):
        sampler = cached(model, NONE)
        for one in sampler.pictures(prompts(model, True), request(least, most), seeded(3)):
            assert least <= len(one.codes) <= most
            assert list(one.cells) == sorted(set(one.cells))
            assert min(one.codes) >= 0
            assert max(one.codes) < CODES
    too_many = replace(request(), constraints=GenerationConstraints(99, False, 1, 17, 17))
    with pytest.raises(ValueError, match="min_codes 17 asked for; an image has 16 cells"):
        sampler.pictures(prompts(model, True), too_many, seeded(3))


def test_what_lies_outside_a_region_stays():
    model = masked_model()
    anew = np.zeros(CELLS, bool)
    anew[[5, 6, 9, 10]] = True
    codes, cells = np.arange(8), np.arange(0, 16, 2)
    redraw = [Redraw(codes, cells, anew)] * 3
    kept = {(code, cell) for code, cell in zip(codes.tolist(), cells.tolist(), strict=True) if not anew[cell]}
    found = cached(model, NONE, correction=0.01).pictures(
        prompts(model, True), request(), seeded(3), redraw=redraw
    )
    for one in found:
        outside = {pair for pair in zip(one.codes, one.cells, strict=True) if not anew[pair[1]]}
        assert outside == kept
    assert len({one.codes for one in found}) > 1


def test_texts_are_not_empty_end_at_the_end_and_grow_by_blocks():
    model = masked_model()
    vocabulary = model.vocabulary
    for limit in (1, 3, 4, 9):
        for ids in cached(model, NONE).texts(prompts(model, False), limit, Sampling(0), None):
            assert 1 <= len(ids) <= limit
            assert all(token < vocabulary.text and token not in vocabulary.unspoken for token in ids)
            assert model.eos not in ids
            assert ids[0] not in vocabulary.blank
    with pytest.raises(ValueError, match=r"with 500 masked ones asked for; 128 in all fit"):
        cached(model, NONE).texts(prompts(model, False), 500, Sampling(0), None)


def test_a_stop_string_ends_a_text():
    model = masked_model()
    whole = cached(model, NONE).texts(prompts(model, False), 8, Sampling(0), None)
    row, place, stop = next(
        (row, place, model.text_tokenizer.decode([token]))
        for row, ids in enumerate(whole)
        for place, token in enumerate(ids)
        if place and text_ids(model.text_tokenizer, model.text_tokenizer.decode([token])) == [token]
    )
    texts = TextFillingConfig(block_length=4, steps=3, stop_strings=(stop,))
    model.defaults = model.defaults.model_copy(update={"masked": MaskedDefaults(texts=texts)})
    cut = sampler_of(model).texts(prompts(model, False), 8, Sampling(0), None)[row]
    assert len(cut) <= place


def test_what_follows_a_text_is_seen_while_it_is_written():
    model = masked_model()
    suffix = text_ids(model.text_tokenizer, " over the sea")
    prompt = prompts(model, False)[1]
    (found,) = cached(model, NONE).texts([prompt], 1, Sampling(0), None, suffix=suffix)
    ids = [*text_ids(model.text_tokenizer, "a car"), model.vocabulary.mask, *suffix]
    everything = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    likely = model.language(torch.tensor([ids]), attention_mask=everything).logits[0, -len(suffix) - 1]
    vocabulary = model.vocabulary
    barred = {*vocabulary.blank, *vocabulary.unspoken, model.eos, vocabulary.mask}
    allowed = [token for token in range(vocabulary.text) if token not in barred]
    assert found == [allowed[int(likely[allowed].argmax())]]


def test_a_text_before_a_suffix_grows_by_blocks_up_to_its_limit():
    model = masked_model()
    suffix = text_ids(model.text_tokenizer, " over the sea")
    for limit in (1, 4, 9):
        one, other = (
            cached(model, cache).texts(prompts(model, False), limit, Sampling(0), None, suffix=suffix)
            for cache in (NONE, MaskedCache(kind="dual", refresh=1))
        )
        assert one == other
        assert all(1 <= len(ids) <= limit and model.eos not in ids for ids in one)
    plain = cached(model, NONE).texts(prompts(model, False), 9, Sampling(0), None)
    assert one != plain
    with pytest.raises(ValueError, match="a model of block diffusion cannot see it"):
        cached(masked_model(block_length=4, attention="prefix"), NONE).texts(
            prompts(model, False), 8, Sampling(0), None, suffix=suffix
        )


def test_guidance_counts_inside_its_interval_alone():
    model = masked_model()
    sampler = cached(model, NONE)
    plain = sampler.pictures(prompts(model, True), request(guidance=Guidance(1.0)), seeded(3))
    guided = sampler.pictures(prompts(model, True), request(guidance=Guidance(9.0)), seeded(3))
    never = Guidance(9.0, interval=(0.999, 1.0))
    assert sampler.pictures(prompts(model, True), request(guidance=never), seeded(3)) == plain
    assert guided != plain
    assert [never.strength(done) for done in (0.0, 0.5, 1.0)] == [0, 0, 1]
    with pytest.raises(ValueError, match="two rising numbers"):
        Guidance(interval=(0.5, 0.5))


def test_the_model_says_which_sampler_it_takes():
    text = tiny_tokenizer()
    language = tiny_model("llama", len(text))
    widen(language, text, CODES, cells=CELLS, generator=torch.Generator().manual_seed(0))
    model = UnifiedModel(language, text, ImageTokens("0" * 12, CODES, CELLS, 5, CELLS), None)
    sampler = sampler_of(model)
    assert isinstance(sampler, AutoregressiveSampler)
    found = sampler.pictures(prompts(model, True), request(), seeded(3))
    assert all(isinstance(one, ImageSegment) for one in found)
    assert all(sampler.texts(prompts(model, False), 5, Sampling(0), None))
    redraw = [Redraw(np.arange(1), np.arange(1), np.ones(CELLS, bool))] * 3
    with pytest.raises(ValueError, match="an autoregressive language model cannot see it; a masked one"):
        sampler.texts(prompts(model, False), 5, Sampling(0), None, suffix=[1])
    with pytest.raises(ValueError, match="cannot redraw a region; a masked one would fit"):
        sampler.pictures(prompts(model, True), request(), seeded(3), redraw=redraw)
