"""What a stopped run leaves and what the next one takes over."""

import gc
import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pictish.data.mixture import Report
from pictish.data.shards import ShardFile
from pictish.lm.documents import Seen
from pictish.lm.model import ImageTokens
from pictish.lm.train import _Begun, train
from tests.lm.pictures import CODES, pair_shard
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


def test_raw_and_continuous_pictures_resume_bit_for_bit(shards):
    write_shard(shards / "raw" / "0.tar", 40)

    def look(pictures):
        """Codes and rows that follow from the bytes."""
        found = []
        for picture in pictures:
            chance = np.random.default_rng(int(hashlib.sha256(picture.blob).hexdigest()[:8], 16))
            rows = chance.standard_normal((5, IMAGE_TOKENS.features), np.float32)
            found.append(Seen(chance.integers(0, CODES, 5), None, rows))
        return found

    source = f"data.train.raw={{paths: [{shards}/raw/*.tar], continuous: 0.6, caption: 0.6}}"
    config = config_for(shards, source, "model.features=true", "stages=[{name: a, steps: 8, warmup: 2}]")
    train(config, shards / "whole", IMAGE_TOKENS, "cpu", look=look)
    for at in (4, 7):
        stopped(shards, config, at, look=look)
    train(config, shards / "run", IMAGE_TOKENS, "cpu", look=look)
    for name in ("model.safetensors", "projector.safetensors"):
        whole, broken = (load_file(shards / run / "model" / name) for run in ("whole", "run"))
        assert all(torch.equal(whole[key], broken[key]) for key in whole), name
    assert lines(shards / "whole") == lines(shards / "run")


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
