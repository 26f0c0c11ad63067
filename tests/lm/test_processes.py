"""Two processes over gloo: each sample goes to one of them, and a killed run ends as an undisturbed one."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.lm.pictures import pair_shard

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run_two(shards: Path, name: str, stop: int = 0) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [str(ROOT / "tests" / "lm" / "several.py"), str(shards), str(shards / name), str(stop)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert stop or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def used(shards: Path, name: str) -> list[dict[int, list[str]]]:
    """For each process, `EPOCH SAMPLE` of each step's documents; of a repeated step, the last ones."""
    found = []
    for rank in (0, 1):
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


def test_two_processes_share_the_stream_and_resume_exactly(tmp_path):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 100, seed=number)
    pair_shard(tmp_path / "validation" / "unseen.tar", 16, seed=9)
    run_two(tmp_path, "whole")
    assert run_two(tmp_path, "killed", stop=5) != 0
    half = tmp_path / "killed" / "checkpoints" / ".step-00000006.pictish-tmp"  # a save that was killed, too
    half.mkdir()
    for number in range(3000):
        (half / str(number)).touch()
    run_two(tmp_path, "killed")
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
