"""The loop takes from an objective what is seen, what is learned and what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pictish.lm.config import Autoregressive
from pictish.lm.model import Output
from pictish.lm.objective import OBJECTIVES, Objective, autoregressive, cross_entropy, shifted
from pictish.lm.packing import IGNORED, Packed, attention_mask, pack
from pictish.lm.sequence import Codes, build, drawing, edit
from pictish.lm.train import train
from pictish.lm.vocabulary import Vocabulary
from tests.lm.pictures import pair_shard
from tests.lm.test_train import IMAGE_TOKENS, Killed, config_for, killed_at, lines

MASK = 0  # an id that stands for a hidden token


def hide_half(packed: Packed, generator: torch.Generator, done: float) -> Packed:
    """Half of the learned tokens are hidden, and to be told at their own place: a masked diffusion's step."""
    hidden = (packed.targets != IGNORED) & (torch.rand(packed.ids.shape, generator=generator) < 0.5)
    targets = packed.targets.masked_fill(~hidden, IGNORED)
    return replace(packed, ids=packed.ids.masked_fill(hidden, MASK), targets=targets, blocks=packed.documents)


def test_an_objective_that_sees_both_ways_needs_no_other_loop(tmp_path, monkeypatch):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 40, seed=number)
    pair_shard(tmp_path / "validation" / "0.tar", 16, seed=9)
    learned = []

    def losses(output: Output, packed: Packed):
        learned.append(packed.learned)
        assert not (packed.ids[packed.targets != IGNORED] != MASK).any()
        return cross_entropy(output, packed)

    both_ways = Objective(hide_half, losses)
    monkeypatch.setitem(OBJECTIVES, "autoregressive", lambda config, vocabulary, vectors: both_ways)
    stage = "stages=[{name: only, steps: 30, learning_rate: 0.01, warmup: 2}]"
    config = config_for(tmp_path, stage, "checkpoint_every=10", "log_every=10", "validate_every=10")
    train(config, tmp_path / "whole", IMAGE_TOKENS, "cpu")
    rows = lines(tmp_path / "whole")
    seen = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert seen[-1] < seen[0]
    assert len(set(learned)) > 3, "another half each step"
    with pytest.raises(Killed):
        train(config, tmp_path / "broken", IMAGE_TOKENS, "cpu", progress=killed_at({17}))
    train(config, tmp_path / "broken", IMAGE_TOKENS, "cpu")
    whole, broken = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert rows == lines(tmp_path / "broken")


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_document_may_see_all_of_itself_and_nothing_else(dtype):
    documents = torch.tensor([[1, 1, 2, 2, 0]])
    seen = attention_mask(documents, dtype, documents)[0, 0]
    seen = seen if dtype == torch.bool else seen == 0
    assert torch.equal(seen, documents[0][:, None] == documents[0][None])
    causal = attention_mask(documents, dtype)[0, 0]
    assert torch.equal(causal if dtype == torch.bool else causal == 0, seen.tril())


def drawings(vocabulary: Vocabulary, count: int, codes: int) -> Packed:
    """One document a row: a source image, an instruction, and the image that is learned."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(count):
        source, target = torch.randint(vocabulary.codes, (2, codes), generator=generator).numpy()
        parts = edit(Codes(source), "words", Codes(target))
        rows.append([build("edit", parts, vocabulary, lambda text: [1, 2, 3], eos=0)])
    return pack(rows, 2 * codes + 16)


def test_codes_are_read_wrong_where_they_are_learned_and_nowhere_else():
    vocabulary = Vocabulary(text=8, codes=4096, eos=0)
    packed = drawings(vocabulary, 200, 40)
    objective = autoregressive(Autoregressive(corrupt=0.6), vocabulary)
    seen = objective.prepare(packed, torch.Generator().manual_seed(0), 0.9)
    again = objective.prepare(packed, torch.Generator().manual_seed(0), 0.9)
    assert torch.equal(seen.ids, again.ids)
    assert torch.equal(seen.targets, shifted(packed).targets), "what is learned stays the truth"
    changed = seen.ids != packed.ids
    learned = (packed.targets != IGNORED) & vocabulary.is_code(packed.ids)
    assert learned.sum() == 200 * 40
    assert not changed[~learned].any(), "source, words and markers are read as they are"
    assert vocabulary.is_code(seen.ids[changed]).all()
    shares = changed.sum(dim=1) / 40  # of each document
    assert float(shares.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(shares.min()) < 0.1, "some documents stay nearly whole"
    assert 0.5 < float(shares.max()) < 0.8


def test_all_codes_of_some_documents_are_read_wrong():
    vocabulary = Vocabulary(text=8, codes=4096, eos=0)
    packed = drawings(vocabulary, 400, 40)
    objective = autoregressive(Autoregressive(corrupt_all=0.25), vocabulary)
    seen = objective.prepare(packed, torch.Generator().manual_seed(0), 1.0)
    changed = (seen.ids != packed.ids).sum(dim=1)
    blind = changed > 30  # some of 4,096 codes are exchanged for themselves
    assert float(blind.float().mean()) == pytest.approx(0.25, abs=0.06)
    assert not changed[~blind].any()
    learned = (packed.targets != IGNORED) & vocabulary.is_code(packed.ids)
    assert not (seen.ids != packed.ids)[~learned].any(), "the source image stays"
    assert torch.equal(seen.targets, shifted(packed).targets)


def test_wrong_codes_can_be_those_of_another_image():
    vocabulary = Vocabulary(text=8, codes=4096, eos=0)
    chance = np.random.default_rng(0)
    images = [chance.integers(0, 4096, size) for size in (5, 9, 7, 6)]
    made = [
        build("drawing", drawing("words", Codes(image)), vocabulary, lambda text: [1, 2], eos=0)
        for image in images
    ]
    packed = pack([made[:2], made[2:]], 40)  # two documents a row
    every = autoregressive(Autoregressive(corrupt_all=1, corrupt_foreign=1), vocabulary)
    seen = every.prepare(packed, torch.Generator().manual_seed(1), 0.0)
    learned = (packed.targets != IGNORED) & vocabulary.is_code(packed.ids)
    read = vocabulary.codes_of(seen.ids[learned]).split([len(image) for image in images])
    partners = []
    for own, codes in enumerate(read):
        fits = [
            other for other, image in enumerate(images) if np.array_equal(codes, np.resize(image, len(codes)))
        ]
        assert len(fits) == 1
        assert fits[0] != own
        partners += fits
    assert sorted(partners) == [0, 1, 2, 3], "each image is read once"
    assert torch.equal(seen.targets, shifted(packed).targets)
    assert torch.equal(seen.ids[~learned], packed.ids[~learned])
    half = autoregressive(Autoregressive(corrupt_all=1, corrupt_foreign=0.5), vocabulary)
    many = drawings(vocabulary, 100, 40)
    found = half.prepare(many, torch.Generator().manual_seed(1), 0.0)
    learned = (many.targets != IGNORED) & vocabulary.is_code(many.ids)
    known = [set(row[at].tolist()) for row, at in zip(many.ids, learned, strict=True)]
    share = np.mean([set(row[at].tolist()) in known for row, at in zip(found.ids, learned, strict=True)])
    assert share == pytest.approx(0.5, abs=0.15)
    alone = pack([made[:1]], 40)
    wrong = every.prepare(alone, torch.Generator().manual_seed(1), 0.0)
    assert (wrong.ids != alone.ids).sum() >= 4, "without another image any codes are read"


def test_validation_reads_what_is_true():
    vocabulary = Vocabulary(text=8, codes=64, eos=0)
    packed = drawings(vocabulary, 2, 10)
    measured = autoregressive(Autoregressive(corrupt=0.6, corrupt_all=0.5).none(), vocabulary)
    assert torch.equal(measured.prepare(packed, torch.Generator(), 0.0).ids, packed.ids)


def test_skips_are_never_read_wrong():
    vocabulary = Vocabulary(text=8, codes=4096, skips=63, eos=0)
    chance = np.random.default_rng(0)
    rows = []
    for _ in range(50):
        cells = np.sort(chance.choice(64, 30, replace=False))
        target = Codes(chance.integers(0, 4096, 30), cells)
        parts = drawing("words", target)
        rows.append([build("drawing", parts, vocabulary, lambda text: [1, 2, 3], eos=0)])
    packed = pack(rows, 80)
    seen = autoregressive(Autoregressive(corrupt=1), vocabulary).prepare(packed, torch.Generator(), 0.0)
    changed = seen.ids != packed.ids
    assert vocabulary.ranges["skips"].holds(packed.ids).sum() > 300
    assert changed.any()
    assert vocabulary.is_code(packed.ids[changed]).all()
    assert vocabulary.is_code(seen.ids[changed]).all()


def test_corruption_falls_to_nothing_over_its_share_of_training():
    vocabulary = Vocabulary(text=8, codes=4096, eos=0)
    packed = drawings(vocabulary, 200, 40)
    objective = autoregressive(Autoregressive(corrupt=0.8, corrupt_anneal=0.75), vocabulary)

    def share(done: float) -> float:
        seen = objective.prepare(packed, torch.Generator().manual_seed(0), done)
        return float((seen.ids != packed.ids).sum()) / (200 * 40)

    assert share(0.0) == pytest.approx(0.4, abs=0.03)
    assert share(0.375) == pytest.approx(0.2, abs=0.02)
    assert share(0.75) == share(1.0) == 0
