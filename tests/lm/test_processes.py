"""Processes over gloo: they learn what one would, and a killed run ends as an undisturbed one."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.lm import several
from tests.lm.pictures import pair_shard

ROOT = Path(__file__).parents[2]


def run(processes: int, shards: Path, name: str, *overrides: str, stop: int = 0) -> None:
    if processes == 1:
        several.main(shards, shards / name, stop, *overrides)
        return
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += [str(ROOT / "tests" / "lm" / "several.py"), str(shards), str(shards / name), str(stop)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *overrides], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == bool(stop), done.stderr[-3000:]


def used(shards: Path, name: str, processes: int = 2) -> list[dict[int, list[str]]]:
    """For each process, `EPOCH SAMPLE` of each step's documents; of a repeated step, the last ones."""
    found = []
    for rank in range(processes):
        runs: list[dict[int, list[str]]] = [{}]
        for line in (shards / f"{name}-used-{rank}.txt").read_text().splitlines():
            step, sample = line.split(maxsplit=1)
            if runs[-1] and int(step) < max(runs[-1]):  # a process that went on from a checkpoint
                runs.append({})
            runs[-1].setdefault(int(step), []).append(sample)
        found.append({step: samples for run in runs for step, samples in run.items()})
    return found


def lines(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("waiting", "tokens_per_second")} for row in rows]


def losses_of(run: Path) -> list[dict[str, float]]:
    """All losses and gradient norms by step; padding and speed are those of one process's own rows."""
    return [{k: v for k, v in row.items() if "loss" in k or "norm" in k} for row in lines(run)]


@pytest.fixture
def data(tmp_path) -> Path:
    """Where `run` finds shards, and leaves its runs."""
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 100, seed=number)
    pair_shard(tmp_path / "validation" / "unseen.tar", 16, seed=9)
    return tmp_path


@pytest.mark.slow
def test_two_processes_learn_what_one_does_from_the_same_samples(data):
    settings = ("stages=[{name: only, steps: 8, warmup: 2}]", "log_every=1", "validate_every=8")
    run(1, data, "one", *settings)
    run(2, data, "two", *settings)
    assert losses_of(data / "two") == [pytest.approx(row, rel=1e-5) for row in losses_of(data / "one")]
    weights, again = (load_file(data / name / "model" / "model.safetensors") for name in ("one", "two"))
    for key, weight in weights.items():
        torch.testing.assert_close(again[key], weight, rtol=1e-3, atol=1e-5)
    (alone,), both = used(data, "one", 1), used(data, "two", 2)
    assert len(alone) == 8
    for step in alone:
        assert all(rank[step] for rank in both)
        assert sorted(name for rank in both for name in rank[step]) == sorted(alone[step])


@pytest.mark.exhaustive
def test_two_processes_share_the_stream_and_resume_exactly(data):
    tmp_path = data
    run(2, tmp_path, "whole")
    run(2, tmp_path, "killed", stop=5)
    half = tmp_path / "killed" / "checkpoints" / ".step-00000006.pictish-tmp"  # a save that was killed, too
    half.mkdir()
    for number in range(3000):
        (half / str(number)).touch()
    run(2, tmp_path, "killed")
    assert not half.exists()
    steps = used(tmp_path, "whole")
    assert steps == used(tmp_path, "killed")
    for stage in (range(1, 7), range(7, 11)):
        taken = Counter(sample for own in steps for step in stage for sample in own[step])
        assert set(taken.values()) == {1}, "none twice in an epoch"
        first = [sample for sample in taken if sample.startswith("0 ")]
        assert len(first) == 200 or stage[0] == 7, "all of the first epoch in the longer stage"
    whole, killed = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")


@pytest.mark.exhaustive
def test_two_processes_begin_what_one_or_four_end(data):
    tmp_path = data
    settings = (
        "stages=[{name: only, steps: 20, warmup: 2}]",
        "log_every=1",
        "checkpoint_every=5",
        "validate_every=20",
        "objective={kind: autoregressive, corrupt: 0.5, corrupt_anneal: 0.75}",
        "objective.neighbors.count=4",
        "objective.alignment=1",
        "ema=0.9",
    )
    run(1, tmp_path, "one", *settings)
    run(2, tmp_path, "two", *settings, stop=12)
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    run(1, tmp_path, "two", *settings)
    run(4, tmp_path, "four", *settings)
    losses = {name: losses_of(tmp_path / name) for name in ("one", "two", "four")}
    weights = load_file(tmp_path / "one" / "model" / "model.safetensors")
    (alone,) = used(tmp_path, "one", 1)
    for name in ("two", "four"):
        assert losses[name] == [pytest.approx(row, rel=1e-5) for row in losses["one"]], name
        again = load_file(tmp_path / name / "model" / "model.safetensors")
        for key, weight in weights.items():
            torch.testing.assert_close(again[key], weight, rtol=1e-3, atol=1e-5)
    taken = [used(tmp_path, "two", 2), used(tmp_path, "four", 4)]
    for step in range(1, 11):  # of the two processes together
        assert sorted(name for rank in taken[0] for name in rank[step]) == sorted(alone[step])
    for step in range(11, 21):
        assert sorted(name for rank in taken[1] for name in rank[step]) == sorted(alone[step])
        assert sorted(taken[0][0][step]) == sorted(alone[step])
