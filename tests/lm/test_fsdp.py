"""Weights in shards (FSDP2 over gloo): what is learned, said and saved is what one process has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.lm.pictures import pair_shard
from tests.lm.test_processes import ROOT, losses_of, used

pytestmark = pytest.mark.exhaustive
SETTINGS = [
    "stages=[{name: all, steps: 12, warmup: 2},"
    " {name: rows, steps: 8, warmup: 0, trainable: [language.model.layers.1.*, new rows]}]",
    "log_every=1",
    "checkpoint_every=5",
    "validate_every=20",
    "sample_every=10",
    "data.gradient_accumulation_steps=2",
    "checkpointing=true",
    "objective={kind: autoregressive, corrupt: 0.5}",
    "objective.neighbors.count=4",
    "objective.alignment=1",
    "ema=0.9",
]


def runs(shards: Path, *wanted: dict) -> None:
    plan = json.dumps([{"settings": SETTINGS, **one} for one in wanted])
    command = [sys.executable, str(ROOT / "tests" / "lm" / "planned.py"), str(shards), plan]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def shown(shards: Path, name: str) -> list[tuple[int, float]]:
    lines = (shards / f"{name}-shown.txt").read_text().splitlines()
    return [(int(step), float(said)) for step, said in map(str.split, lines)]


def test_shards_learn_what_one_process_does_on_any_number_of_processes(tmp_path):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 100, seed=number)
    pair_shard(tmp_path / "validation" / "unseen.tar", 16, seed=9)
    runs(
        tmp_path,
        {"run": "one", "processes": 1},
        {"run": "ddp", "processes": 2, "stop": 17},
        {"run": "fsdp", "processes": 2, "stop": 12, "fsdp": True},
        {"run": "one-again", "like": "fsdp", "processes": 1},
        {"run": "ddp-again", "like": "fsdp", "processes": 4},
        {"run": "four", "like": "fsdp", "processes": 4, "fsdp": True},
        {"run": "two", "like": "ddp", "processes": 2, "fsdp": True},
    )
    losses = losses_of(tmp_path / "one")
    assert len(losses) == 21
    weights = load_file(tmp_path / "one" / "model" / "model.safetensors")
    (alone,) = used(tmp_path, "one", 1)
    for name, processes in (("one-again", 1), ("ddp-again", 4), ("four", 4), ("two", 2)):
        assert losses_of(tmp_path / name) == [pytest.approx(row, rel=1e-5) for row in losses], name
        again = load_file(tmp_path / name / "model" / "model.safetensors")
        assert again.keys() == weights.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(again[key], weight, rtol=1e-3, atol=1e-5)
        taken = used(tmp_path, name, processes)
        for step in taken[0]:
            assert sorted(one for rank in taken for one in rank[step]) == sorted(alone[step]), (name, step)
    said = shown(tmp_path, "one")
    assert [step for step, _ in said] == [0, 10, 20]
    assert shown(tmp_path, "fsdp") == [pytest.approx(one, rel=1e-5) for one in said[:2]]
    assert shown(tmp_path, "four")[-1] == pytest.approx(said[-1], rel=1e-5)
    names = sorted(path.name for path in (tmp_path / "four" / "checkpoints" / "step-00000020").iterdir())
    assert names == ["state.json", *(f"tensors-0000{number}-of-00004.safetensors" for number in range(4))]
