"""Packing: nothing lost, nothing moved, nothing seen across documents, on the path that trains."""

from itertools import chain, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.lm.config import NewModel
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.objective import cross_entropy, shifted
from pictish.lm.packing import IGNORED, attention_mask, batches, fill, pack
from pictish.lm.packing_check import check_packing
from pictish.lm.sequence import Codes, Document, Features, Text, build
from pictish.lm.vocabulary import text_ids
from tests.lm.tiny import ARCHITECTURES, tiny_tokenizer, tiny_unified

LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=40)


def plain(length: int, first: int = 0) -> Document:
    ids = np.arange(first, first + length)
    return Document("text", ids, np.ones(length, bool), np.zeros(0, np.int64), None)


@given(LENGTHS, st.integers(1, 4))
def test_filling_takes_documents_in_order_until_one_fits_nowhere(lengths, rows):
    placed = fill(lengths, rows, 16)
    taken = sorted(chain.from_iterable(placed))
    assert taken == list(range(len(taken)))
    assert all(sum(lengths[i] for i in row) <= 16 for row in placed)
    if len(taken) < len(lengths):
        assert all(sum(lengths[i] for i in row) + lengths[len(taken)] > 16 for row in placed)


@given(LENGTHS, st.integers(1, 4))
@settings(max_examples=50)
def test_batches_use_each_document_once_and_say_where_they_are(lengths, rows):
    stream = ((plain(length, 1000 * number), {"n": number}) for number, length in enumerate(lengths))
    seen: list[int] = []
    for members, position in batches(stream, rows, 16):
        seen += sorted(int(document.ids[0]) // 1000 for row in members for document in row)
        assert position == {"n": seen[-1]}
    assert seen == list(range(len(lengths)))


def test_targets_stay_inside_their_document():
    packed = pack([[plain(3, 10), plain(2, 20)], [plain(4, 30)]], 8)
    assert packed.ids[0].tolist() == [10, 11, 12, 20, 21, 0, 0, 0]
    assert packed.targets[0].tolist() == [10, 11, 12, 20, 21, *[IGNORED] * 3]
    packed = shifted(packed)
    assert packed.targets[0].tolist() == [11, 12, IGNORED, 21, IGNORED, IGNORED, IGNORED, IGNORED]
    assert packed.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert packed.documents[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert packed.learned == 2 + 1 + 3
    assert packed.padding == pytest.approx(7 / 16)


def test_the_mask_shows_earlier_tokens_of_the_same_document():
    mask = attention_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_mask_to_be_added_says_the_same():
    documents = torch.tensor([[1, 1, 2, 2, 0]])
    seen, added = attention_mask(documents), attention_mask(documents, torch.float16)
    assert added.dtype == torch.float16
    assert torch.equal(added == 0, seen)
    assert (added[~seen] == torch.finfo(torch.float16).min).all()


def some_documents(model: UnifiedModel, features: int) -> list[Document]:
    chance = np.random.default_rng(0)
    documents = []
    for number in range(9):
        picture = Codes(chance.integers(0, 30, chance.integers(1, 9)), learn=bool(number % 2))
        if features and number % 3 == 0:
            picture = Features(chance.normal(size=(chance.integers(1, 6), features)).astype(np.float32))
        parts = [picture, Text("a red apple on the sea"[: chance.integers(3, 20)], learn=True)]
        eos = model.vocabulary.eos
        documents.append(
            build("caption", parts, model.vocabulary, lambda t: text_ids(model.text_tokenizer, t), eos)
        )
    return documents


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [*product(ARCHITECTURES, ("sdpa", "eager")), ("gemma2", None)],  # gemma2 has eager attention alone
)
@pytest.mark.parametrize("features", [0, 5])
def test_packed_losses_are_those_of_documents_alone(architecture, features, attention):
    model = tiny_unified(architecture, features, attention)
    documents = some_documents(model, features)
    placed = fill([len(document) for document in documents], 3, 96)
    assert sum(map(len, placed)) == len(documents), "all fit"
    assert max(map(len, placed)) > 2, "some share a row"
    with torch.no_grad():
        rows = shifted(pack([[documents[i] for i in row] for row in placed], 96))
        packed = cross_entropy(model(rows, True), rows)
        each = [shifted(pack([[document]], len(document))) for document in documents]
        alone = [cross_entropy(model(one), one) for one in each]
    assert packed.counts.sum() == sum(one.counts.sum() for one in alone)
    assert float(packed.total) == pytest.approx(float(sum(one.total for one in alone)), rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_document_is_blind_to_its_neighbours(attention):
    model = tiny_unified("llama", attention=attention)
    documents = some_documents(model, 0)
    with torch.no_grad():
        first = model(pack([documents[:3]], 96)).logits
        other = model(pack([[documents[0], documents[4], documents[2]]], 96)).logits
    length = len(documents[0])
    assert torch.equal(first[0, :length], other[0, :length])
    changed = pack([documents[:3]], 96)
    changed.ids[0, 0] += 1
    with torch.no_grad():
        moved = model(changed).logits
    assert torch.equal(
        moved[0, length : sum(map(len, documents[:3]))], first[0, length : sum(map(len, documents[:3]))]
    )
    assert not torch.equal(moved[0, :length], first[0, :length])


def test_splitting_into_forwards_keeps_features_in_place():
    model = tiny_unified("llama", 5)
    documents = some_documents(model, 5)
    packed = pack([documents[:2], documents[2:4], documents[4:6], documents[6:]], 96)
    with torch.no_grad():
        whole = model(packed).logits
        parts = torch.cat([model(part).logits for part in packed.split(3)])
    assert torch.allclose(whole, parts, atol=1e-5)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def new(architecture: str, **settings) -> UnifiedModel:
    base = NewModel(architecture=architecture, settings=settings)
    return new_model(base, tiny_tokenizer(), ImageTokens("0" * 12, 30, 16, 5), features=True, seed=0)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", SIZES),
        ("mistral", SIZES),
        ("gemma2", SIZES),
        ("gemma3_text", SIZES),
        ("gpt_oss", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
        (
            "gpt_neo",
            {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]},
        ),
    ],
)
def test_models_that_keep_documents_apart_pass_the_check(architecture, settings):
    model = new(architecture, **settings).train()
    check_packing(model, 128)
    assert model.training


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen3_next", {**SIZES, **LINEAR, **EXPERTS}),
        ("qwen3_5_text", {**SIZES, **LINEAR}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_models_that_do_not_are_refused_in_one_line(architecture, settings):
    with pytest.raises(ValueError, match=f"^{architecture} cannot be trained on packed rows.*$") as refused:
        check_packing(new(architecture, **settings), 128)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_rows_longer_than_an_attention_window_are_refused(architecture):
    model = new(architecture, **SIZES, sliding_window=32)
    check_packing(model, 32)
    with pytest.raises(ValueError, match=f"33 is more than {architecture}'s attention window of 32"):
        check_packing(model, 33)


def test_a_model_that_sees_what_follows_is_refused(monkeypatch):
    model = new("llama", **SIZES)
    everything = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    monkeypatch.setattr("pictish.lm.model.attention_mask", lambda *given: everything)
    with pytest.raises(ValueError, match="llama cannot be trained on packed rows"):
        check_packing(model, 128)
