"""The loop takes from an objective what is seen, what is learned and what it costs."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pictish.lm.objective import OBJECTIVES, Objective, cross_entropy
from pictish.lm.packing import IGNORED, Packed, attention_mask
from pictish.lm.train import train
from tests.lm.pictures import pair_shard
from tests.lm.test_train import IMAGE_TOKENS, Killed, config_for, killed_at, lines

MASK = 0  # an id that stands for a hidden token


def hide_half(packed: Packed, generator: torch.Generator) -> Packed:
    """Half of the learned tokens are hidden, and to be told at their own place: a masked diffusion's step."""
    learned = packed.targets.roll(1, dims=1) != IGNORED
    hidden = learned & (torch.rand(learned.shape, generator=generator) < 0.5)
    return replace(
        packed, ids=packed.ids.masked_fill(hidden, MASK), targets=packed.ids.masked_fill(~hidden, IGNORED)
    )


def test_an_objective_that_sees_both_ways_needs_no_other_loop(tmp_path, monkeypatch):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 40, seed=number)
    pair_shard(tmp_path / "validation" / "0.tar", 16, seed=9)
    learned = []

    def losses(logits: torch.Tensor, packed: Packed):
        learned.append(packed.learned)
        assert not (packed.ids[packed.targets != IGNORED] != MASK).any()
        return cross_entropy(logits, packed)

    monkeypatch.setitem(OBJECTIVES, "autoregressive", Objective(hide_half, causal=False, losses=losses))
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
    seen = attention_mask(documents, dtype, causal=False)[0, 0]
    seen = seen if dtype == torch.bool else seen == 0
    assert torch.equal(seen, documents[0][:, None] == documents[0][None])
    causal = attention_mask(documents, dtype)[0, 0]
    assert torch.equal(causal if dtype == torch.bool else causal == 0, seen.tril())
