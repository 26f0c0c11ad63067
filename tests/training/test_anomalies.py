"""The three loops when a step goes wrong, and when they are asked to stop."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pictish.configs import load, parse
from pictish.decoder import config as decoder_config
from pictish.decoder import train as decoder_loop
from pictish.io.interrupt import Stopped, handled
from pictish.lm import config as lm_config
from pictish.lm import train as lm_loop
from pictish.lm.model import ImageTokens
from pictish.tokenizer import config as tokenizer_config
from pictish.tokenizer import network as tokenizer_network
from pictish.tokenizer import train as tokenizer_loop
from pictish.tokenizer.dynamic import save_tokenizer
from pictish.training.loss_guard import Anomaly
from tests.lm.pictures import CODES, FINGERPRINT, pair_shard
from tests.shards import write_shard
from tests.tokenizer.conftest import tiny_network

TIMES = ("pictures_per_second", "waiting", "tokens_per_second")
BAD = 10  # the step, from 1, that is made to go wrong
Loop = Callable[..., Path]  # (run, progress=..., anomaly_skip=...)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "train.tar", 16)
    write_shard(folder / "validation.tar", 4, first=1000)
    pair_shard(folder / "pairs.tar", 40)
    save_tokenizer(folder / "model" / "tokenizer", tiny_network())
    return folder


def _tokenizer(data: Path) -> Loop:
    changes = [
        f"data.train=[{data / 'train.tar'}]",
        f"data.validation=[{data / 'validation.tar'}]",
        f"data.cache={data / 'cache'}",
        "data.views=2",
        "phases=[{name: a, steps: 6, quantize: false, learning_rate: 0.003, warmup: 2},"
        " {name: b, steps: 8, quantize: true, learning_rate: 0.003, warmup: 2}]",
        "log_every=2",
        "checkpoint_every=4",
    ]
    config = parse(tokenizer_config.TrainConfig, load("tiny/tokenizer", changes), "test")
    return partial(tokenizer_loop.train, config, device="cpu")


def _decoder(data: Path) -> Loop:
    changes = [
        f"tokenizer={data / 'model'}",
        f"data.train=[{data / 'train.tar'}]",
        f"data.validation=[{data / 'validation.tar'}]",
        f"data.cache={data / 'cache'}",
        "steps=14",
        "log_every=2",
        "checkpoint_every=4",
    ]
    config = parse(decoder_config.TrainConfig, load("tiny/preview", changes), "test")
    return partial(decoder_loop.train, config, device="cpu")


def _lm(data: Path) -> Loop:
    changes = [
        f"data.train.pictures.paths=[{data / 'pairs.tar'}]",
        "data.validation={}",
        "stages=[{name: a, steps: 6, warmup: 2}, {name: b, steps: 8, warmup: 0}]",
        "log_every=2",
        "checkpoint_every=4",
    ]
    config = parse(lm_config.TrainConfig, load("tiny/lm", changes), "test")
    image_tokens = ImageTokens(FINGERPRINT, CODES, 16, 12)
    return lambda run, **more: lm_loop.train(config, run, image_tokens, "cpu", **more)


LOOPS = {"tokenizer": _tokenizer, "decoder": _decoder, "lm": _lm}
SAMPLE = {"tokenizer": "train.tar", "decoder": "train.tar", "lm": "pairs.tar"}


def sicken(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Make the images that step BAD is trained on, or its loss, no number."""
    loop = {"tokenizer": tokenizer_loop, "decoder": decoder_loop, "lm": lm_loop}[part]
    original, steps = loop.seeded, []

    def seeded(seed, step):
        steps.append(step)
        return original(seed, step)

    def factor() -> float:
        return float("nan") if steps and steps[-1] == BAD - 1 else 1.0

    monkeypatch.setattr(loop, "seeded", seeded)
    if part == "lm":
        backward = lm_loop.backward

        def sick_backward(*arguments):
            losses = backward(*arguments)
            return losses._replace(total=losses.total * factor())

        monkeypatch.setattr(lm_loop, "backward", sick_backward)
    else:
        reader = tokenizer_network if part == "tokenizer" else decoder_loop
        maps = reader.as_maps
        monkeypatch.setattr(reader, "as_maps", lambda pixels: maps(pixels) * factor())


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def same_model(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("part", LOOPS)
def test_a_bad_step_stops_or_is_passed_over(data, tmp_path, part, monkeypatch):
    sicken(monkeypatch, part)
    loop = LOOPS[part](data)
    run = tmp_path / "run"
    with pytest.raises(Anomaly, match=f"step {BAD}: its loss is nan; its batch"):
        loop(run)
    facts = json.loads((run / "anomalies" / f"step-{BAD:08d}.json").read_text())
    assert facts["samples"]
    assert {name.split("/")[0] for name in facts["samples"]} == {SAMPLE[part]}
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "step-00000008"
    saved = load_file(run / "checkpoints" / "step-00000008" / "tensors.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values() if tensor.is_floating_point())

    loop(run, anomaly_skip=1)  # goes on from there, over it
    assert [row["skipped_steps"] for row in lines(run) if "learning_rate" in row][-3:] == [1, 1, 1]
    assert [row["step"] for row in lines(run) if "learning_rate" in row] == [2, 4, 6, 8, 10, 12, 14]
    model = load_file(run / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.values())

    whole = tmp_path / "whole"
    loop(whole, anomaly_skip=1)
    assert lines(whole) == lines(run)
    assert same_model(whole, run)


@pytest.mark.parametrize("part", LOOPS)
def test_sigterm_saves_the_run_and_the_next_start_goes_on(data, tmp_path, part):
    loop = LOOPS[part](data)

    def progress(done: int, total: int) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopped() -> None:
        with handled():
            loop(tmp_path / "run", progress=progress)

    with pytest.raises(Stopped, match="step 10 of 14 is saved, the same command resumes there"):
        stopped()
    assert (tmp_path / "run" / "checkpoints" / "step-00000010").is_dir()
    loop(tmp_path / "run")
    loop(tmp_path / "whole")
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")
    assert same_model(tmp_path / "whole", tmp_path / "run")
