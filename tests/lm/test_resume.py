"""What a stopped run leaves and what the next one takes over."""

import gc
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pictish.data.mixture import Report
from pictish.data.shards import ShardFile
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.train import _Begun, train
from tests.lm.pictures import CODES, encoded, pair_shard
from tests.lm.test_train import IMAGE_TOKENS, Killed, config_for, killed_at, lines
from tests.shards import write_shard


@pytest.fixture
def shards(tmp_path):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 40, seed=number)
    pair_shard(tmp_path / "validation" / "0.tar", 16, seed=9)
    return tmp_path


def stopped(shards, config, at, **settings) -> None:
    with pytest.raises(Killed):
        train(config, shards / "run", IMAGE_TOKENS, "cpu", progress=killed_at({at}), **settings)


@pytest.mark.parametrize(
    "other", [ImageTokens("ffffffffffff", CODES, 16, 12), ImageTokens(IMAGE_TOKENS.fingerprint, 31, 16, 12)]
)
def test_a_run_goes_on_with_its_own_tokenizer_only(shards, other):
    stopped(shards, config_for(shards), 5)
    with pytest.raises(ValueError, match="begun with the image tokenizer 0123456789ab of 30 codes"):
        train(config_for(shards), shards / "run", other, "cpu")


def test_a_run_keeps_its_own_positions(shards):
    """Also one from before they were stored, which counted tokens."""
    stopped(shards, config_for(shards, "model.cell_positions=true"), 5)
    other = config_for(shards, "model.cell_positions=false")
    with pytest.raises(ValueError, match=r"was begun with model\.cell_positions true; give that one"):
        train(other, shards / "run", IMAGE_TOKENS, "cpu")
    shutil.copytree(shards / "run", shards / "earlier")
    for state in (shards / "earlier" / "checkpoints").glob("*/state.json"):
        document = json.loads(state.read_text())
        del document["state"]["cell_positions"]
        state.write_text(json.dumps(document))
    for run, counted in (("run", True), ("earlier", False)):
        folder = train(config_for(shards), shards / run, IMAGE_TOKENS, "cpu")
        assert UnifiedModel.from_folder(folder).vocabulary.cell_positions == counted


def test_raw_and_continuous_pictures_resume_bit_for_bit(shards):
    write_shard(shards / "raw" / "0.tar", 40)

    def encode_images(pictures):
        """Codes and rows that follow from the bytes."""
        found = []
        for picture in pictures:
            chance = np.random.default_rng(int(hashlib.sha256(picture.blob).hexdigest()[:8], 16))
            rows = chance.standard_normal((5, IMAGE_TOKENS.features), np.float32)
            found.append(encoded(chance.integers(0, CODES, 5).tolist(), None, rows))
        return found

    source = f"data.train.raw={{paths: [{shards}/raw/*.tar], continuous: 0.6, caption: 0.6}}"
    config = config_for(shards, source, "model.features=true", "stages=[{name: a, steps: 8, warmup: 2}]")
    train(config, shards / "whole", IMAGE_TOKENS, "cpu", encode_images=encode_images)
    for at in (4, 7):
        stopped(shards, config, at, encode_images=encode_images)
    train(config, shards / "run", IMAGE_TOKENS, "cpu", encode_images=encode_images)
    for name in ("model.safetensors", "projector.safetensors"):
        whole, broken = (load_file(shards / run / "model" / name) for run in ("whole", "run"))
        assert all(torch.equal(whole[key], broken[key]) for key in whole), name
    assert lines(shards / "whole") == lines(shards / "run")


def test_a_run_resumes_with_moved_data_and_less_memory_and_not_with_other_data(shards):
    short = "stages=[{name: a, steps: 4, warmup: 1}, {name: b, steps: 2, warmup: 0}]"
    config = config_for(shards, short, "checkpoint_every=2")
    train(config, shards / "whole", IMAGE_TOKENS, "cpu")
    stopped(shards, config, 5)  # step 4 is saved: the next stage has no place in its data yet
    (shards / "shards").rename(shards / "moved")
    moved = [
        f"data.train.pictures.paths=[{shards}/moved/*.tar]",
        "data.gradient_accumulation_steps=2",
        "checkpointing=true",
    ]
    pair_shard(shards / "moved" / "2.tar", 4, seed=5)
    with pytest.raises(ValueError, match=r"trained with another data\.train\.pictures: its fingerprint was"):
        train(config_for(shards, short, *moved), shards / "run", IMAGE_TOKENS, "cpu")
    (shards / "moved" / "2.tar").unlink()
    train(config_for(shards, short, *moved), shards / "run", IMAGE_TOKENS, "cpu")
    whole, broken = (load_file(shards / run / "model" / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.allclose(whole[key], broken[key], atol=1e-4) for key in whole)


def damage(shards) -> None:
    with ShardFile(shards / "shards" / "2.tar") as shard:
        shard.write("bad", {"tokens": b"hello", "txt": b"a red car"})
    with ShardFile(shards / "validation" / "1.tar") as shard:
        shard.write("worse", {"tokens": b"hello", "txt": b"a red car"})


def test_damage_is_said_when_a_run_is_stopped_and_remembered_by_the_next(shards, caplog):
    damage(shards)
    config = config_for(shards)
    report = Report()
    stopped(shards, config, 5, report=report)
    said = " ".join(record.message for record in caplog.records)
    for name in ("2.tar/bad", "1.tar/worse"):
        assert name in said
        assert name in str(report.lines())
    train(config, shards / "run", IMAGE_TOKENS, "cpu")
    caplog.clear()
    train(config, shards / "run", IMAGE_TOKENS, "cpu")  # has nothing left to read
    assert "2.tar/bad" in caplog.text


def test_optimizer_state_of_a_checkpoint_is_not_kept(shards):
    stopped(shards, config_for(shards), 5)
    held = []

    def progress(done: int, total: int) -> None:
        held.extend(len(one.moments) for one in gc.get_objects() if type(one) is _Begun)

    train(config_for(shards), shards / "run", IMAGE_TOKENS, "cpu", progress=progress)
    assert held
    assert not any(held)


VECTORS = torch.randn(CODES, 6, generator=torch.Generator().manual_seed(8))
RECIPE = (
    "model.base.architecture=qwen3",
    "model.attn_implementation=eager",
    "objective={kind: autoregressive, corrupt: 0.8, corrupt_anneal: 0.75}",
    "objective.neighbors.count=4",
    "objective.alignment=1",
    "attention_dropout=0.1",
    "hidden_dropout=0.1",
    "ema=0.9",
)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_whole_recipe_resumes_bit_for_bit(shards, optimizer):
    config = config_for(shards, *RECIPE, f"optimizer={optimizer}")
    train(config, shards / "whole", IMAGE_TOKENS, "cpu", code_vectors=VECTORS)
    for at in (4, 5, 7):
        stopped(shards, config, at, code_vectors=VECTORS)
    train(config, shards / "run", IMAGE_TOKENS, "cpu", code_vectors=VECTORS)
    whole, broken = (load_file(shards / run / "model" / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert lines(shards / "whole") == lines(shards / "run")
    assert all(0 < row["alignment"] < 2 for row in lines(shards / "whole") if "loss" in row)
    last = load_file(shards / "run" / "checkpoints" / "step-00000010" / "tensors.safetensors")
    kind = "momentum_buffer" if optimizer == "muon" else "exp_avg_sq"
    assert f"optimizer.language.model.layers.1.mlp.up_proj.weight.{kind}" in last
    assert "optimizer.language.model.embed_tokens.weight.exp_avg_sq" in last


def test_what_is_saved_is_the_average_of_all_stages(shards):
    config = config_for(shards, "ema=0.9", "objective={kind: autoregressive, alignment: 1}")
    folder = train(config, shards / "run", IMAGE_TOKENS, "cpu", code_vectors=VECTORS)
    last = load_file(shards / "run" / "checkpoints" / "step-00000010" / "tensors.safetensors")
    saved = load_file(folder / "model.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(tensor, last[f"average.language.{name}"]), name
        if name.startswith("model.layers.0."):  # frozen in the second stage, so that its average comes near
            assert not torch.equal(tensor, last[f"language.{name}"]), name
    assert "alignment.current.0.weight" in last
    assert "average.alignment.current.0.weight" not in last


def test_validation_and_samples_are_of_the_average(shards):
    seen = []

    def show(model, step: int) -> None:
        seen.append(model.language.model.norm.weight.clone())

    stage = "stages=[{name: only, steps: 6, warmup: 0, learning_rate: 0.05}]"
    config = config_for(shards, "ema=0.9", stage, "sample_every=6", "validate_every=6", "checkpoint_every=6")
    folder = train(config, shards / "run", IMAGE_TOKENS, "cpu", show=show)
    assert torch.equal(seen[-1], load_file(folder / "model.safetensors")["model.norm.weight"])
    raw = load_file(shards / "run" / "checkpoints" / "step-00000006" / "tensors.safetensors")
    assert not torch.equal(seen[-1], raw["language.model.norm.weight"])
    plain = config.model_copy(update={"ema": 0.0})
    train(plain, shards / "plain", IMAGE_TOKENS, "cpu")
    rows = [[row for row in lines(shards / run) if "validation_loss" in row][-1] for run in ("run", "plain")]
    assert rows[0] != rows[1], "the same weights were trained, and others measured"
