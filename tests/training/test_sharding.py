"""A network in shards over processes is the network: learning, averages, checkpoints, and when killed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pictish.training.accelerate_settings import own_accelerate
from pictish.training.runtime import accelerator
from pictish.training.sharding import local, local_rows, plain, shard, whole

ROOT = Path(__file__).parents[2]


def several(work: str, folder: Path) -> str:
    command = [sys.executable, str(ROOT / "tests" / "training" / "shards.py"), work, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_process_alone_shares_nothing():
    alone = SimpleNamespace(num_processes=1, mixed_precision="no", is_main_process=True)
    with pytest.raises(ValueError, match="--fsdp shares weights out to several processes, and this is one"):
        shard(torch.nn.Linear(2, 2), alone)
    two = SimpleNamespace(num_processes=2, mixed_precision="fp16", is_main_process=True)
    with pytest.raises(ValueError, match="mixed_precision fp16: --fsdp does not scale gradients; bf16"):
        shard(torch.nn.Linear(2, 2), two)


def test_what_is_not_sharded_stays_as_it_is():
    network = torch.nn.Linear(2, 3)
    main, other = (SimpleNamespace(is_main_process=first) for first in (True, False))
    assert whole(network, None, main) is network
    assert whole(network, None, other) is None
    assert plain(network.weight) is local(network.weight) is network.weight
    assert local_rows(network.weight) == (0, 3)


def test_accelerate_does_not_wrap_fsdp_around_a_network_itself(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with own_accelerate(torch.device("cpu"), "no", fsdp=True):
        accelerator("cpu")
        assert "ACCELERATE_USE_FSDP" not in os.environ, "it would read it"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.exhaustive
def test_a_run_moves_between_numbers_of_processes(tmp_path):
    several("learn", tmp_path)
    one, moved = (
        [list(map(float, line.split())) for line in (tmp_path / name / "said.txt").read_text().splitlines()]
        for name in ("one", "moved")
    )
    assert len(one) == 8
    assert moved == [pytest.approx(row, rel=1e-5) for row in one]
    names = [
        tmp_path / name / "checkpoints" / "step-00000008" / "tensors.safetensors" for name in ("one", "moved")
    ]
    first, second = map(load_file, names)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert [path.name for path in (tmp_path / "moved" / "checkpoints").iterdir()]


@pytest.mark.exhaustive
def test_killed_in_the_middle_of_a_save_the_whole_checkpoint_is_old_or_new(tmp_path):
    rows = [tuple(map(int, line.split())) for line in several("kill", tmp_path).splitlines()]
    for step, victim, least in ((1, 0, 8), (2, 0, 8), (2, 1, 1)):
        mine = [(value, killed) for s, v, value, killed in rows if (s, v) == (step, victim)]
        assert mine[-1] == (2, 0), "the last one was not killed"
        assert len(mine) > least
        values = [value for value, _ in mine]
        assert values[0] == 1
        assert values == sorted(values), "old up to some moment, new from then on"
