"""Two processes over gloo: each sample goes to one of them, and a killed run ends as an undisturbed one."""

import json
import os
import subprocess
import sys
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


def used(shards: Path, name: str) -> list[list[int]]:
    files = [shards / f"{name}-used-{rank}.txt" for rank in (0, 1)]
    lines = [file.read_text().splitlines() for file in files]
    return [[int(line.split()[0]) for line in own if "unseen.tar" not in line] for own in lines]


def lines(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("waiting", "tokens_per_second")} for row in rows]


def test_two_processes_share_the_stream_and_resume_exactly(tmp_path):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 200, seed=number)
    pair_shard(tmp_path / "validation" / "unseen.tar", 16, seed=9)
    run_two(tmp_path, "whole")
    first, second = used(tmp_path, "whole")
    assert first == list(range(0, 2 * len(first), 2)), "every other one, in order, none twice"
    assert second == list(range(1, 2 * len(second) + 1, 2))
    assert run_two(tmp_path, "killed", stop=5) != 0
    run_two(tmp_path, "killed")
    whole, killed = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
