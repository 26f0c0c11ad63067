"""Positions that count the cells which skips pass over: in training, in a cache, and in a model's folder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pictish.lm.autoregressive import (
    UNGUIDED,
    Branch,
    DecodeBatch,
    Prompt,
    check_context,
    embed_ids,
    generate,
)
from pictish.lm.config import NewModel, PretrainedModel
from pictish.lm.continuous import ContinuousBatch
from pictish.lm.grammar import GenerationConstraints, one_image
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.packing import pack
from pictish.lm.sampling import Sampling
from pictish.lm.sequence import Codes, Text, build, picture_ids
from pictish.lm.vocabulary import Vocabulary, text_ids
from tests.lm.tiny import tiny_tokenizer, tiny_unified

CELLS = np.array([2, 3, 7, 15])
CODES = np.array([5, 0, 9, 5])


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    model = tiny_unified("llama", cells=16)
    model.vocabulary = replace(model.vocabulary, cell_positions=True)
    return model


def document(model: UnifiedModel):
    encode = lambda text: text_ids(model.text_tokenizer, text)  # noqa: E731
    parts = [Text("a red apple"), Codes(CODES, CELLS, learn=True)]
    return build("drawing", parts, model.vocabulary, encode, model.eos)


def test_codes_are_as_far_apart_as_their_cells(model):
    made = document(model)
    code = model.vocabulary.is_code(made.ids)
    begin = int(np.flatnonzero(made.ids == model.vocabulary.begin)[0])
    assert (made.positions[code] - made.positions[begin] - 1).tolist() == CELLS.tolist()
    assert (np.diff(made.positions) > 0).all()
    plain = replace(made, strides=None)
    assert plain.positions.tolist() == list(range(len(made)))
    packed = pack([[made, plain]], 64)
    assert packed.positions[0, : 2 * len(made)].tolist() == [*made.positions, *plain.positions]


def test_torch_and_numpy_agree(model):
    ids = picture_ids(CODES, CELLS, model.vocabulary)
    assert model.vocabulary.strides(torch.from_numpy(ids)).tolist() == model.vocabulary.strides(ids).tolist()
    assert Vocabulary(10, 4, skips=3).strides(np.arange(20)).tolist() == [1] * 20


@torch.no_grad()
def test_with_a_cache_an_image_is_read_as_in_training(model):
    """Row by row, behind prompts of different lengths, one of them with an image in it."""
    made = document(model)
    whole = model(pack([[made]], len(made))).logits[0]
    vocabulary, start = model.vocabulary, 6
    other = made.ids[: start - 3].tolist()
    embedded = embed_ids(model.language, made.ids[:start].tolist())
    prompts = [
        Branch(embedded, torch.from_numpy(made.positions[:start])),
        Branch.of(embed_ids(model.language, other)),
    ]
    for kind in ("dynamic", "static"):
        batch = DecodeBatch(model.language, prompts, len(made), kind, vocabulary)
        for place in range(start, len(made)):
            assert torch.allclose(batch.logits[0], whole[place - 1].to(batch.logits.dtype), atol=1e-4)
            batch.step([int(made.ids[place]), int(other[0])])
    counted = DecodeBatch(model.language, prompts[:1], len(made), "dynamic")
    for place in range(start, len(made)):
        counted.step([int(made.ids[place])])
    assert not torch.allclose(counted.logits[0], whole[-1].to(counted.logits.dtype), atol=1e-3)


def test_continuous_batching_writes_what_generate_writes(model):
    prompt = Prompt(embed_ids(model.language, [3, 4, 5, model.vocabulary.begin]), inside=True)
    constraints, sampling = one_image(12, cells=16), Sampling(0.9)
    for seed in range(4):
        batch = ContinuousBatch(model.language, model.vocabulary)
        member = batch.add(
            prompt,
            constraints,
            sampling=sampling,
            guidance=UNGUIDED,
            generator=torch.Generator().manual_seed(seed),
        )
        while batch.members:
            batch.choose(member)
            batch.read()
        (expected,) = generate(
            model.language,
            model.vocabulary,
            [prompt],
            constraints,
            sampling=sampling,
            generators=[torch.Generator().manual_seed(seed)],
        )
        assert member.decoding.segments == expected


def test_an_image_needs_the_room_of_its_cells_and_a_text_only_its_own(model):
    few = one_image(2, cells=16)
    assert few.max_new_tokens == 6
    assert few.reach(model.vocabulary) == 17
    assert few.reach(replace(model.vocabulary, cell_positions=False)) == 6
    assert GenerationConstraints(5).reach(model.vocabulary) == 5
    prompt = Branch.of(torch.zeros(112, 32))
    check_context(model.language, [prompt], 16)
    with pytest.raises(ValueError, match="a prompt of 112 tokens with 17 new ones asked for; 128 in all fit"):
        check_context(model.language, [prompt], 17)


def test_new_models_have_them_and_folders_remember(tmp_path):
    def made(base, cells: int | None, **more) -> UnifiedModel:
        tokens = ImageTokens("0" * 12, 30, 16, 5, cells)
        return new_model(base, tiny_tokenizer(), tokens, features=False, seed=0, **more)

    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    base = NewModel(architecture="llama", settings=settings, vocab_size=280)
    assert not made(base, None).vocabulary.cell_positions
    assert not made(base, 16, cell_positions=False).vocabulary.cell_positions
    for counted in (True, False):
        folder = tmp_path / str(counted)
        made(base, 16, cell_positions=counted).save(folder)
        assert UnifiedModel.from_folder(folder).vocabulary.cell_positions == counted
        again = made(PretrainedModel(folder=str(folder)), 16)
        assert again.vocabulary.cell_positions == counted, "as the base has it"
    assert made(base, 16).vocabulary.cell_positions
