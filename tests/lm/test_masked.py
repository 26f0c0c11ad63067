"""The masked objective: what is masked, who sees whom, what is learned and what it counts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pictish.configs import load, parse
from pictish.lm.config import Masked, MaskedForm, NewModel, PretrainedModel, TrainConfig
from pictish.lm.masked import blocks_of, prepare_masked
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.objective import OBJECTIVES, cross_entropy
from pictish.lm.packing import IGNORED, Packed, attention_mask, pack
from pictish.lm.packing_check import check_packing
from pictish.lm.sequence import (
    Codes,
    Document,
    Text,
    build,
    caption,
    drawing,
    pad_text,
    picture_ids,
    picture_of,
)
from pictish.lm.train import train
from pictish.lm.vocabulary import Vocabulary, vocabulary_of
from tests.lm.pictures import CODES, FINGERPRINT, pair_shard
from tests.lm.test_train import Killed, killed_at, lines
from tests.lm.tiny import tiny_tokenizer, tiny_unified

CELLS = 16
VOCABULARY = Vocabulary(text=40, codes=8, skips=CELLS - 1, has_drop=True, eos=0, unspoken=(1,))
EOS = 0


def encode(text: str) -> list[int]:
    return [2 + ord(one) % 30 for one in text]


def picture(*cells: int, learn: bool = False) -> Codes:
    return Codes(np.arange(len(cells)) % 8, np.array(cells), learn)


def document(task: str, parts) -> Document:
    return build(task, parts, VOCABULARY, encode, EOS)


def masked_rows(rows: list[list[Document]], length: int, seed: int = 0, **settings) -> tuple[Packed, Packed]:
    packed = pack(rows, length)
    generator = torch.Generator().manual_seed(seed)
    config = Masked(**settings)
    return packed, prepare_masked(packed, generator, 0.0, config=config, vocabulary=VOCABULARY)


def captions(count: int, letters: int) -> list[list[Document]]:
    return [[document("caption", caption(picture(1, 4), "abcdefghij"[:letters] * 4))] for _ in range(count)]


def drawings(count: int) -> list[list[Document]]:
    return [[document("drawing", drawing("abc", picture(0, 3, 9, 15)))] for _ in range(count)]


# An image is dense


def test_each_cell_is_a_code_or_dropped_and_the_same_picture_comes_back():
    ids = picture_ids(np.array([5, 0, 7]), np.array([2, 3, 14]), VOCABULARY)
    assert len(ids) == CELLS + 2
    assert (ids[1:-1] == VOCABULARY.drop).sum() == CELLS - 3
    codes, cells = picture_of(ids, VOCABULARY)
    assert (codes.tolist(), cells.tolist()) == ([5, 0, 7], [2, 3, 14])
    with pytest.raises(ValueError, match=r"^an image of 16 cells .* found 16 cells with 0 codes$"):
        picture_of(np.where(VOCABULARY.is_code(ids), VOCABULARY.drop, ids), VOCABULARY)
    with pytest.raises(ValueError, match="found 15 cells with 3 codes"):
        picture_of(np.delete(ids, 1), VOCABULARY)
    with pytest.raises(ValueError, match="codes without cells"):
        picture_ids(np.array([5]), None, VOCABULARY)


def test_dropped_is_a_range_behind_all_others_and_old_vocabularies_keep_theirs():
    plain = Vocabulary(text=40, codes=8, skips=CELLS - 1)
    assert VOCABULARY.size == plain.size + 1
    assert VOCABULARY.drop == plain.size
    assert "dropped" not in plain.ranges
    assert {n: r for n, r in VOCABULARY.ranges.items() if n != "dropped"} == dict(plain.ranges)
    with pytest.raises(ValueError, match="also needs"):
        Vocabulary(text=40, codes=8, has_drop=True)


# What is masked, and what it counts


def test_text_is_masked_at_a_rate_of_its_document_and_weighed_by_it():
    packed, seen = masked_rows(captions(400, 10), 64)
    learn = packed.targets != IGNORED
    masked = seen.ids == VOCABULARY.mask
    assert not masked[~learn].any(), "the prompt stays"
    assert torch.equal(seen.targets != IGNORED, masked)
    assert torch.equal(seen.targets[masked], packed.ids[masked])
    assert torch.equal(seen.ids[~masked], packed.ids[~masked])
    shares = masked.sum(dim=1) / learn.sum(dim=1)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(shares.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.05)
    for row in range(5):
        weight = seen.weights[row][masked[row]]
        rate = 1 / (weight[0] * learn[row].sum())
        assert (weight == weight[0]).all()
        assert abs(float(rate) - float(shares[row])) < 0.3
        assert 0.001 <= float(rate) <= 1
    # 1 / p makes up for what is not masked: in the mean the weights of a document sum to 1
    assert float(seen.weights.sum(dim=1).mean()) == pytest.approx(1, abs=0.2)
    assert seen.learned == 400
    assert seen.counts.sum(dim=1).tolist() == [1] * 400


def test_cells_are_masked_to_a_cosine_share_and_their_losses_averaged():
    packed, seen = masked_rows(drawings(400), 32)
    masked = seen.ids == VOCABULARY.mask
    assert VOCABULARY.is_cell(packed.ids[masked]).all(), "no marker, no EOS, no words"
    counts = masked.sum(dim=1)
    assert int(counts.min()) == 1
    assert int(counts.max()) == CELLS
    # the mean of cos(pi t / 2) over t
    assert float(counts.float().mean()) / CELLS == pytest.approx(2 / math.pi, abs=0.03)
    assert torch.allclose(seen.weights.sum(dim=1), torch.ones(400))
    by_cell = masked[:, packed.ids[0].tolist().index(VOCABULARY.begin) + 1 :].float().mean(dim=0)[:CELLS]
    assert float(by_cell.std()) < 0.06, "no cell is masked more often than others"


def test_the_loss_is_the_mean_over_documents_of_weighed_cross_entropies():
    model = masked_model()
    vocabulary = model.vocabulary
    rows = [
        [build("caption", caption(Codes(np.array([1]), np.array([3])), "abcdef"), vocabulary, encode, 2)],
        [build("drawing", drawing("ab", Codes(np.array([1]), np.array([3]))), vocabulary, encode, 2)] * 2,
    ]
    objective = OBJECTIVES["masked"](Masked(), vocabulary, None)
    packed = objective.prepare(pack(rows, 64), torch.Generator().manual_seed(2), 0.0)
    with torch.no_grad():
        everywhere, at_targets = model(packed), model(packed, True)
        losses = objective.losses(at_targets, packed)
    at = packed.targets != IGNORED
    assert at_targets.logits.shape == (int(at.sum()), everywhere.logits.shape[-1]), "no logits but of targets"
    assert torch.allclose(at_targets.logits, everywhere.logits[at], atol=1e-5)
    each = torch.nn.functional.cross_entropy(everywhere.logits[at], packed.targets[at], reduction="none")
    expected = float((each * packed.weights[at]).sum())
    assert float(losses.total) == pytest.approx(expected, rel=1e-5)
    assert float(losses.counts.sum()) == packed.learned == 3
    assert float(cross_entropy(everywhere, packed).total) == pytest.approx(expected, rel=1e-5)


# Switches


def test_marks_between_contents_are_learned_where_asked():
    rows = [[document("caption", caption(picture(1, 4), "abcd"))] for _ in range(200)]
    for structure in (False, True):
        packed, seen = masked_rows(rows, 32, structure=structure)
        marks = (packed.ids == VOCABULARY.begin) | (packed.ids == VOCABULARY.end)
        learned = seen.targets != IGNORED
        assert bool(learned[marks].any()) == structure
        assert not learned[VOCABULARY.is_cell(packed.ids)].any()
        assert learned[packed.targets == EOS].any(), "the end of an answer is part of it"
    _, drawn = masked_rows(drawings(200), 32)
    assert not (drawn.targets == EOS).any(), "the end behind a picture is a mark"


def test_padded_texts_learn_to_go_on_ending():
    short = document("caption", caption(picture(1), "abc"))
    padded = pad_text(short, 8, EOS)
    assert padded.ids[-5:].tolist() == [EOS] * 5
    assert padded.learn.sum() == 8
    assert len(padded.turns) == len(padded.structure) == len(padded)
    assert not padded.structure[-5:].any()
    assert len(pad_text(short, 4, EOS)) == len(short)
    assert pad_text(document("drawing", drawing("a", picture(1))), 1, EOS).ids[-1] == EOS


def test_complementary_views_mask_each_candidate_once():
    packed, seen = masked_rows([*captions(20, 5), *drawings(20)], 64, complementary=True)
    first, second = (part.ids == VOCABULARY.mask for part in seen.split(40))
    learn = (packed.targets != IGNORED) & ~packed.structure
    assert torch.equal(first ^ second, learn)
    assert seen.learned == 80
    one, other = seen.split(40)
    text = first[:20].any(dim=1) & second[:20].any(dim=1)
    rates = [1 / (part.weights[:20].amax(dim=1) * learn[:20].sum(dim=1)) for part in (one, other)]
    assert torch.allclose((rates[0] + rates[1])[text], torch.ones(int(text.sum())), atol=1e-3)


def test_visible_ids_are_read_wrong_and_as_many_right_ones_learned():
    packed, seen = masked_rows([*captions(300, 10), *drawings(300)], 64, corrupt=0.25)
    learn = (packed.targets != IGNORED) & ~packed.structure
    masked, learned = seen.ids == VOCABULARY.mask, seen.targets != IGNORED
    visible = learned & ~masked
    wrong = visible & (seen.ids != packed.ids)
    assert not learned[~learn].any()
    assert torch.equal(seen.targets[learned], packed.ids[learned]), "the truth is learned"
    share = float(visible.sum() / (learn & ~masked).sum())
    assert share == pytest.approx(0.5, abs=0.03)
    assert 0.4 < float(wrong.sum() / visible.sum()) < 0.5, "some of the others are the same by chance"
    cells = VOCABULARY.is_cell(packed.ids)
    assert VOCABULARY.is_cell(seen.ids[wrong & cells]).all()
    assert (seen.ids[wrong & ~cells] < VOCABULARY.text).all()
    assert not (seen.ids[wrong] == 1).any(), "an id that no text holds"
    right = Masked(corrupt=0.25, complementary=True).none()
    assert (right.corrupt, right.complementary) == (0, False)


DIALOGUE = [Text("ab"), Text("c", learn=True), Text("de"), Text("fg", learn=True)]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"attention": "full"}, [1] * 8),
        ({"attention": "dialogue"}, [1, 1, 1, 2, 2, 2, 2, 2]),
        ({"attention": "prefix"}, [1, 1, 2, 3, 3, 4, 4, 4]),
        ({"attention": "prefix", "block_length": 2}, [1, 1, 2, 3, 3, 4, 4, 5]),
    ],
)
def test_who_sees_whom(form, expected):
    packed = pack([[document("answer", DIALOGUE), document("text", [Text("a", learn=True)])]], 16)
    blocks = blocks_of(packed, packed.targets != IGNORED, MaskedForm(**form), VOCABULARY)
    assert blocks[0, :8].tolist() == expected
    assert blocks[0, 8] == expected[-1] + 1, "the next document has blocks of its own"
    seen = attention_mask(packed.documents, blocks=blocks)[0, 0]
    for query in range(8):
        for key in range(10):
            assert bool(seen[query, key]) == (key < 8 and expected[key] <= expected[query])


def test_a_picture_is_a_block_of_its_own():
    rows = [[document("interleaved", [Text("abc", learn=True), picture(1, 2, learn=True), Text("de", True)])]]
    packed = pack(rows, 32)
    form = MaskedForm(attention="prefix", block_length=2)
    blocks = blocks_of(packed, packed.targets != IGNORED, form, VOCABULARY)[0, : len(rows[0][0])].tolist()
    assert blocks == [1, 1, 2, *[3] * (CELLS + 2), 4, 4, 5]


def test_in_block_diffusion_a_copy_is_masked_that_sees_whole_blocks_before_it():
    rows = [[document("caption", caption(picture(1), "abcdef")), document("text", [Text("gh", learn=True)])]]
    packed, seen = masked_rows(rows, 40, attention="prefix", block_length=4)
    learn = (packed.targets != IGNORED)[0]
    count = int(learn.sum())
    assert seen.ids.shape[1] == 40 + count
    assert torch.equal(seen.ids[0, :40], packed.ids[0]), "the row itself stays whole"
    assert (seen.targets[0, :40] == IGNORED).all()
    copy = slice(40, 40 + count)
    for name in ("documents", "positions", "tasks"):
        assert torch.equal(getattr(seen, name)[0, copy], getattr(packed, name)[0][learn])
    masked = seen.ids[0, copy] == VOCABULARY.mask
    assert torch.equal(seen.ids[0, copy][~masked], packed.ids[0][learn][~masked])
    assert torch.equal(seen.targets[0, copy] != IGNORED, masked)
    assert seen.learned == 2
    visible = attention_mask(seen.documents, blocks=seen.blocks, noisy=seen.noisy)[0, 0]
    blocks, documents = seen.blocks[0], seen.documents[0]
    for query in range(40 + count):
        for key in range(40 + count):
            if documents[query] == 0:
                continue
            same = bool(documents[query] == documents[key])
            clean = key < 40 and blocks[key] < blocks[query]
            own = (query < 40) == (key < 40) and blocks[key] == blocks[query]
            assert bool(visible[query, key]) == (same and bool(clean or own)), (query, key)


def test_blocks_of_one_document_are_masked_at_rates_of_their_own():
    rows = [[document("text", [Text("abcdefghijklmnop" * 4, learn=True)])] for _ in range(50)]
    _, seen = masked_rows(rows, 80, attention="prefix", block_length=16)
    weights = [set(seen.weights[row][seen.weights[row] > 0].tolist()) for row in range(50)]
    assert max(map(len, weights)) == 5
    _, plain = masked_rows(rows, 80)
    assert all(len(set(row[row > 0].tolist())) <= 1 for row in plain.weights)


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValidationError, match="attention: prefix would fit"):
        Masked(block_length=4)
    assert Masked(attention="prefix", block_length=4).form == MaskedForm(attention="prefix", block_length=4)


# The model


def masked_model(attention: str = "full") -> UnifiedModel:
    base = NewModel(
        architecture="llama",
        settings={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    )
    tokens = ImageTokens("0" * 12, 30, CELLS, 5, CELLS)
    form = MaskedForm(attention=attention)
    return new_model(base, tiny_tokenizer(), tokens, features=False, seed=0, masked=form)


def test_the_model_folder_says_which_kind_it_holds(tmp_path):
    model = masked_model("prefix")
    assert model.vocabulary.has_drop
    model.save(tmp_path / "masked", dtype=torch.float32)
    assert UnifiedModel.from_folder(tmp_path / "masked").masked == MaskedForm(attention="prefix")
    tiny_unified("llama").save(tmp_path / "plain", dtype=torch.float32)
    assert UnifiedModel.from_folder(tmp_path / "plain").masked is None
    with pytest.raises(ValueError, match=r"holds a masked model; only objective\.kind masked trains it"):
        new_model(
            PretrainedModel(folder=str(tmp_path / "masked")), None, model.image_tokens, features=False, seed=0
        )


def test_an_autoregressive_model_becomes_a_masked_one_and_keeps_its_ids(tmp_path):
    plain = tiny_unified("llama", cells=CELLS)
    plain.save(tmp_path / "plain", dtype=torch.float32)
    base = PretrainedModel(folder=str(tmp_path / "plain"))
    model = new_model(base, None, plain.image_tokens, features=False, seed=0, masked=MaskedForm())
    assert model.vocabulary == replace(plain.vocabulary, has_drop=True)
    assert vocabulary_of(model.text_tokenizer) == model.vocabulary
    before, after = (m.language.get_input_embeddings().weight for m in (plain, model))
    assert torch.equal(after[: len(before)], before)
    assert len(after) == len(before) + 1


def test_an_image_tokenizer_without_places_is_refused():
    with pytest.raises(ValueError, match="this image tokenizer places no codes"):
        new_model(
            NewModel(settings={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}),
            tiny_tokenizer(),
            ImageTokens("0" * 12, 30, 16, 5),
            features=False,
            seed=0,
            masked=MaskedForm(),
        )


def test_a_model_that_is_causal_whatever_the_mask_says_is_refused(monkeypatch):
    model = masked_model()
    check_packing(model, 128)
    causal = attention_mask
    monkeypatch.setattr("pictish.lm.model.attention_mask", lambda d, dtype, b, n: causal(d, dtype))
    with pytest.raises(ValueError, match=r"^llama is causal whatever the mask says; .*$"):
        check_packing(model, 128)


@pytest.mark.parametrize(
    "objective", ["corrupt: 0.1, complementary: true", "attention: prefix, block_length: 4"]
)
def test_it_trains_in_the_same_loop_and_resumes_bit_for_bit(tmp_path, objective):
    pair_shard(tmp_path / "shards" / "0.tar", 40, seed=0)
    pair_shard(tmp_path / "validation" / "0.tar", 16, seed=9)
    config = parse(
        TrainConfig,
        load(
            "tiny/lm-masked",
            [
                f"data.train.pictures.paths=[{tmp_path}/shards/*.tar]",
                "data.validation.unseen={paths: [%s/validation/*.tar], caption: 0.5}" % tmp_path,  # noqa: UP031
                "objective={kind: masked, end_padding: 4, %s}" % objective,  # noqa: UP031
                "stages=[{name: only, steps: 24, learning_rate: 0.01, warmup: 2}]",
                "checkpoint_every=8",
                "validate_every=8",
            ],
        ),
        "tiny/lm-masked",
    )
    tokens = ImageTokens(FINGERPRINT, CODES, CELLS, 12, CELLS)
    train(config, tmp_path / "whole", tokens, "cpu")
    rows = lines(tmp_path / "whole")
    seen = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert seen[-1] < seen[0]
    with pytest.raises(Killed):
        train(config, tmp_path / "broken", tokens, "cpu", progress=killed_at({13}))
    train(config, tmp_path / "broken", tokens, "cpu")
    whole, broken = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert rows == lines(tmp_path / "broken")
    assert UnifiedModel.from_folder(tmp_path / "whole" / "model").masked is not None
