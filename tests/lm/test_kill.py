"""`pictish train lm` as a process of its own, killed at random moments and in the middle of saves."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shards import write_shard

pytestmark = pytest.mark.exhaustive
ROOT = Path(__file__).parents[2]
LONGEST = 240  # seconds that a process may take on a busy machine


def start(folder: Path, run: str, model: Path) -> subprocess.Popen:
    source = f"{{paths: [{folder}/raw.tar], caption: 0.5, continuous: 0.5}}"
    changes = [
        f"tokenizer={model}",
        f"data.train={{pictures: {source}}}",
        f"data.validation={{unseen: {source}}}",
        "data.rows=4",
        "model.features=true",
        "stages=[{name: all, steps: 40, warmup: 4},"
        " {name: rows, steps: 20, warmup: 0, trainable: [new rows]}]",
        "checkpoint_every=1",
        "validate_every=30",
    ]
    command = [sys.executable, "-m", "pictish", "train", "lm", "tiny/lm", *changes, "--quiet"]
    return subprocess.Popen([*command, "--run", str(folder / run)], cwd=ROOT, stdout=subprocess.DEVNULL)


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*"))


def kill(process: subprocess.Popen, run: Path, after: float, in_a_save: bool) -> bool:
    """SIGKILL so many seconds after the next checkpoint, in a save when asked; True if it hit one."""
    before, deadline = set((run / "checkpoints").glob("step-*")), time.monotonic() + LONGEST
    while not set((run / "checkpoints").glob("step-*")) - before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after)
    while in_a_save and not saving(run) and process.poll() is None:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    return saving(run)


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("waiting", "tokens_per_second")} for row in rows]


def test_a_run_killed_anywhere_is_bit_equal_to_an_undisturbed_one(tmp_path, tiny_models):
    write_shard(tmp_path / "raw.tar", 60)
    assert start(tmp_path, "whole", tiny_models).wait(LONGEST) == 0
    chance, cut = random.Random(0), 0
    for number in range(6):
        process = start(tmp_path, "killed", tiny_models)
        cut += kill(process, tmp_path / "killed", chance.uniform(0, 0.2), in_a_save=number % 2 == 0)
    assert cut, "no kill hit a save"
    assert start(tmp_path, "killed", tiny_models).wait(LONGEST) == 0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    for name in ("model.safetensors", "projector.safetensors", "config.yaml"):
        whole, killed = ((tmp_path / run / "model" / name).read_bytes() for run in ("whole", "killed"))
        assert whole == killed, name
