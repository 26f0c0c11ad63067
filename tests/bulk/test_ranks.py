import subprocess
import sys

import pytest

from pictish.bulk.ranks import Rank, devices
from pictish.cli import main
from tests.bulk_runs import content, raw_shards
from tests.tree import ROOT


def test_a_lone_process_does_everything():
    for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}):
        rank = Rank.of(environment)
        assert rank == Rank()
        assert rank.share(range(5)) == [0, 1, 2, 3, 4]
        rank.wait_for_others()


def test_ranks_of_torchrun_and_slurm_share_everything_once():
    for count in (2, 3, 7):
        ranks = [
            Rank.of({"WORLD_SIZE": str(count), "RANK": str(number), "LOCAL_RANK": "0"})
            for number in range(count)
        ]
        assert sorted(item for rank in ranks for item in rank.share(range(11))) == list(range(11))
        assert all(rank.torchrun for rank in ranks)
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    assert Rank.of(slurm) == Rank(5, 8, 1)
    assert Rank.of(slurm).share(range(16)) == [5, 13]


def test_cuda_devices_are_taken_in_turn(monkeypatch):
    import torch

    assert devices("cpu", Rank(), 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices("auto", Rank(), 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices("cuda", Rank(3, 4, 1), 2) == ["cuda:2", "cuda:3"]
    assert devices("cuda:2", Rank(), 2) == ["cuda:2"] * 2


def test_slurm_ranks_fill_one_folder_and_it_is_the_same(tmp_path, tiny_models, monkeypatch, capsys):
    """Two ranks one after the other; each does its half, and what they leave is what one process leaves."""
    raw = raw_shards(tmp_path / "raw", 3, samples=2)

    def tokenize(out: str) -> str:
        words = ["tokenize", raw, tmp_path / out, "--model", tiny_models, "--workers", "0"]
        assert main([*map(str, words)]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    tokenize("alone")
    for number, done in ((0, 4), (1, 2)):
        slurm = {"SLURM_PROCID": str(number), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
        for name, value in slurm.items():
            monkeypatch.setenv(name, value)
        assert tokenize("out").startswith(f"rank {number} of 2: {done} images tokenized")
    assert content(tmp_path / "out") == content(tmp_path / "alone")


WAIT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import os
from pictish.bulk.ranks import Rank
rank = Rank.of(os.environ)
if rank.number == 0:
    time.sleep(1.5)
    print("still working", flush=True)
rank.wait_for_others()
sys.exit(1 if rank.number == 1 else 0)
"""


@pytest.mark.exhaustive
def test_under_torchrun_a_rank_that_ends_badly_waits_for_the_others(tmp_path):
    (tmp_path / "wait.py").write_text(WAIT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(tmp_path / "wait.py"), str(ROOT)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert done.stdout.count("still working") == 1
