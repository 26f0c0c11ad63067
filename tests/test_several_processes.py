"""Tokenizer and decoder on processes over gloo, with whole weights or in shards: they learn what one would,
and others may go on.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pictish.cli import main
from pictish.training.process_group import ProcessGroup
from tests.shards import write_shard

ROOT = Path(__file__).parents[1]


def run(processes: int, part: str, run: Path, *overrides: str, **more: str) -> None:
    """`pictish train`, of several processes under torchrun; `more` goes into its environment."""
    words = ["train", part, f"tiny/{part}", *overrides, "--run", str(run), "--device", "cpu"]
    if processes == 1:
        assert main(words) == 0
        return
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += ["-m", "--", "pictish", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
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


# Slow steps before k-means, and few codes: else all vectors lie so near to each other that the last bit of a
# sum decides which code each is nearest to.
FEW_CODES = "model.quantizer.codes=16"
PHASES = (
    "phases=[{name: a, steps: 6, quantize: false, learning_rate: 0.0003, warmup: 2},"
    " {name: b, steps: 14, quantize: true, learning_rate: 0.001, warmup: 2}]"
)


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    run(1, "tokenizer", folder, *data, FEW_CODES, PHASES)
    return folder


@pytest.fixture(scope="module")
def decoder_settings(data, tokenizer) -> list[str]:
    told = f"tokenizer={tokenizer / 'model'}"
    return [*data, told, "objective.perceptual=0.1", "objective.ema=0.9", "steps=20", "sample_every=20"]


@pytest.fixture(scope="module")
def decoder(decoder_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    run(1, "decoder", folder, *decoder_settings)
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
    check_weights(several / "model", one / "model")


def check_weights(several: Path, one: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(several) for path in several.rglob("*.safetensors"))
    for file in files:
        weights = load_file(one / file)  # in fp16
        for name, tensor in load_file(several / file).items():
            torch.testing.assert_close(tensor, weights[name], rtol=2e-3, atol=2e-3)


def check_shards(two: Path, one: Path) -> None:
    for ours, theirs in zip(lines(two), lines(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), ours["step"]
    names = sorted(path.name for path in (two / "checkpoints" / "step-00000020").iterdir())
    assert names == ["state.json", *(f"tensors-0000{number}-of-00002.safetensors" for number in (0, 1))]
    check_weights(two / "model", one / "model")


@pytest.mark.slow
def test_two_processes_learn_a_tokenizer_together(tmp_path, data, tokenizer):
    run(2, "tokenizer", tmp_path / "two", *data, FEW_CODES, PHASES)
    check(tmp_path / "two", tokenizer)


@pytest.mark.slow
def test_two_processes_learn_a_decoder_together(tmp_path, decoder_settings, decoder):
    run(2, "decoder", tmp_path / "two", *decoder_settings)
    check(tmp_path / "two", decoder)


@pytest.mark.exhaustive
def test_other_numbers_of_processes_end_what_two_began_of_a_tokenizer(tmp_path, data, tokenizer):
    run(2, "tokenizer", tmp_path / "two", *data, FEW_CODES, PHASES)
    for processes in (1, 4):  # k-means has placed the codes in the checkpoint
        begun(tmp_path / "two", tmp_path / f"then-{processes}", 10)
        run(processes, "tokenizer", tmp_path / f"then-{processes}", *data, FEW_CODES, PHASES)
        check(tmp_path / f"then-{processes}", tokenizer)


@pytest.mark.exhaustive
def test_four_processes_end_what_two_began_of_a_decoder(tmp_path, decoder_settings, decoder):
    run(2, "decoder", tmp_path / "two", *decoder_settings)
    begun(tmp_path / "two", tmp_path / "four", 10)
    run(4, "decoder", tmp_path / "four", *decoder_settings)
    check(tmp_path / "four", decoder)


@pytest.mark.exhaustive
def test_a_tokenizer_in_shards_is_what_one_process_learns(tmp_path, data, tokenizer):
    run(2, "tokenizer", tmp_path / "two", *data, FEW_CODES, PHASES, "--fsdp")
    check_shards(tmp_path / "two", tokenizer)


@pytest.mark.exhaustive
def test_a_decoder_in_shards_is_what_one_process_learns(tmp_path, decoder_settings, decoder):
    run(2, "decoder", tmp_path / "two", *decoder_settings, ACCELERATE_USE_FSDP="true")  # as its launcher says
    check_shards(tmp_path / "two", decoder)
    assert (tmp_path / "two" / "samples" / "step-00000020.png").is_file()


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="3 processes cannot divide a batch_size of 8; give a multiple"):
        ProcessGroup(0, 3).rows(8)
