"""Tokenizer and decoder on processes over gloo: they learn what one would, and others may go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pictish.training.share import Share
from tests.shards import write_shard

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(processes: int, part: str, run: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += ["-m", "--", "pictish", "train", part, f"tiny/{part}", *overrides, "--run", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--device", "cpu"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def without(row: dict[str, float], names: set[str]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in names}


def only(row: dict[str, float], names: set[str]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name in names}


def lines(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "pictures_per_second"} for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "train.tar", 40)
    write_shard(folder / "validation.tar", 8, first=1000)
    return [
        f"data.train=[{folder / 'train.tar'}]",
        f"data.validation=[{folder / 'validation.tar'}]",
        f"data.cache={folder / 'cache'}",
        "log_every=1",
        "validate_every=20",
        "checkpoint_every=5",
        "keep_checkpoints=9",
    ]


PHASES = (
    "phases=[{name: a, steps: 6, quantize: false, learning_rate: 0.003, warmup: 2},"
    " {name: b, steps: 14, quantize: true, learning_rate: 0.003, warmup: 2}]"
)


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    run(1, "tokenizer", folder, *data, PHASES)
    return folder


def begun(source: Path, target: Path, step: int) -> None:
    """A run as it was killed behind the checkpoint of `step`."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "model")
    for folder in (target / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def check(several: Path, one: Path) -> None:
    for ours, theirs in zip(lines(several), lines(one), strict=True):
        assert ours.keys() == theirs.keys()
        norms = {name for name in ours if "norm" in name}
        assert without(ours, norms) == pytest.approx(without(theirs, norms), rel=1e-5, abs=1e-6), ours["step"]
        assert only(ours, norms) == pytest.approx(only(theirs, norms), rel=1e-4), ours["step"]
    weights = load_file(one / "model" / "model.safetensors")  # in fp16
    for name, tensor in load_file(several / "model" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=2e-3, atol=2e-3)


def test_processes_learn_a_tokenizer_together(tmp_path, data, tokenizer):
    run(2, "tokenizer", tmp_path / "two", *data, PHASES)
    check(tmp_path / "two", tokenizer)
    for processes in (1, 4):  # k-means has placed the codes in the checkpoint
        begun(tmp_path / "two", tmp_path / f"then-{processes}", 10)
        run(processes, "tokenizer", tmp_path / f"then-{processes}", *data, PHASES)
        check(tmp_path / f"then-{processes}", tokenizer)


def test_processes_learn_a_decoder_together(tmp_path, data, tokenizer):
    settings = [*data, f"tokenizer={tokenizer / 'model'}", "objective.perceptual=0.1", "steps=20"]
    run(1, "decoder", tmp_path / "one", *settings)
    run(2, "decoder", tmp_path / "two", *settings)
    check(tmp_path / "two", tmp_path / "one")
    begun(tmp_path / "two", tmp_path / "four", 10)
    run(4, "decoder", tmp_path / "four", *settings)
    check(tmp_path / "four", tmp_path / "one")


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="3 processes cannot share out a batch_size of 8; give a multiple"):
        Share(0, 3).rows(8)
