"""The training loop: the loss falls, a stopped run goes on bit for bit, the cache is made once."""

import json
from pathlib import Path

import pytest
import torch

from pictish.configs import load, parse
from pictish.data.model_folder import read_model_folder
from pictish.tokenizer import train as loop
from pictish.tokenizer.cache import build_cache
from pictish.tokenizer.config import TrainConfig
from pictish.tokenizer.train import code_numbers, train
from tests.shards import write_shard
from tests.tokenizer.conftest import random_pixels, tiny_network


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train.tar", 40)
    write_shard(folder / "validation.tar", 8, first=1000)
    return folder


def config(shards: Path, *changes: str) -> TrainConfig:
    data = [f"data.train=[{shards / 'train.tar'}]", f"data.validation=[{shards / 'validation.tar'}]"]
    return parse(TrainConfig, load("tiny/tokenizer", [*data, "data.views=2", *changes]), "test")


SHORT = (
    "phases=[{name: a, steps: 6, quantize: false, learning_rate: 0.003, warmup: 2},"
    " {name: b, steps: 8, quantize: true, learning_rate: 0.003, warmup: 2}]",
    "checkpoint_every=3",
    "validate_every=7",
    "log_every=1",
)


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("pictures_per_second", None)
    return rows


def test_the_loss_falls_and_the_model_loads(shards, tmp_path):
    from pictish.tokenizer.dynamic import Tokenizer

    folder = train(config(shards), tmp_path, "cpu")
    cosine = [row["cosine"] for row in lines(tmp_path) if "cosine" in row]
    assert cosine[-1] < 0.7 * cosine[0]
    last = lines(tmp_path)[-1]
    assert {"validation_cosine", "validation_perplexity", "validation_dead_codes"} <= set(last)
    assert last["validation_tokens_p5"] <= last["validation_tokens_p95"]
    tokens = Tokenizer.from_folder(folder).tokenize([torch.zeros(20, 30, 3, dtype=torch.uint8).numpy()])
    assert tokens[0].size == (20, 30)


# 5: in the first phase; 6: checkpoint at the switch, k-means comes after it; 11: codes in use
@pytest.mark.parametrize("stop", [5, 6, 11])
def test_a_stopped_run_goes_on_bit_for_bit(shards, tmp_path, stop, monkeypatch):
    settings = config(shards, *SHORT)
    train(settings, tmp_path / "whole", "cpu")

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == stop:
            raise Killed

    with pytest.raises(Killed):
        train(settings, tmp_path / "parts", "cpu", kill)
    train(settings, tmp_path / "parts", "cpu")
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    for name in ("config.yaml", "model.safetensors"):
        whole, parts = (tmp_path / run / "model" / name for run in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()


def test_the_codebook_starts_once_and_from_enough_vectors(shards, tmp_path, monkeypatch):
    started = []
    original = loop._start_codebook

    def count(network, training, config, step, share):
        original(network, training, config, step, share)
        started.append(step)

    monkeypatch.setattr(loop, "_start_codebook", count)
    train(config(shards, *SHORT), tmp_path, "cpu")
    assert started == [6]


def test_the_cache_is_built_once_and_knows_its_pictures(shards, tmp_path):
    network = tiny_network()
    reports: list[tuple[int, int]] = []
    settings = {"limit": None, "workers": 0, "seed": 0, "report": lambda *numbers: reports.append(numbers)}
    pattern = str(shards / "train*.tar")
    cache = build_cache(tmp_path, network.encoder, [pattern], views=2, **settings)
    assert len(cache) == 80
    assert reports[-1] == (80, 80)
    reports.clear()
    build_cache(tmp_path, network.encoder, [pattern], views=2, **settings)
    assert reports == []
    build_cache(tmp_path, network.encoder, [pattern], views=1, **settings)
    assert reports[-1] == (40, 40)
    order = [cache.batch(step, 16, seed=3)[0] for step in range(5)]
    rows = {row.numpy().tobytes() for batch in order for row in batch}
    assert rows == {row.numpy().tobytes() for row in torch.from_numpy(cache.features[:].copy())}
    assert not torch.equal(order[0], cache.batch(5, 16, seed=3)[0]), "another epoch, another order"


def test_workers_do_not_change_the_cache(shards, tmp_path):
    network = tiny_network()
    made = [
        build_cache(
            tmp_path / str(workers),
            network.encoder,
            [str(shards / "train.tar")],
            views=3,
            limit=10,
            workers=workers,
            seed=0,
            report=lambda *_: None,
        ).features
        for workers in (0, 2)
    ]
    assert (made[0] == made[1]).all()


def test_no_pictures_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="nothing matches"):
        build_cache(
            tmp_path,
            tiny_network().encoder,
            [str(tmp_path / "none-*.tar")],
            views=1,
            limit=None,
            workers=0,
            seed=0,
            report=print,
        )


def test_code_numbers_of_known_counts():
    even = code_numbers(torch.tensor([5, 5, 5, 5]), codes=8)
    assert even == {"usage": 0.5, "perplexity": pytest.approx(4.0), "dead_codes": 4}
    one = code_numbers(torch.tensor([0, 9, 0]), codes=4)
    assert one == {"usage": 0.25, "perplexity": pytest.approx(1.0), "dead_codes": 3}


def test_a_shrinking_codebook_raises_an_alarm(shards, tmp_path, caplog):
    train(config(shards, *SHORT, "usage_alarm=1.0"), tmp_path, "cpu")
    assert "of the codebook was used" in caplog.text


def test_the_squared_error_brings_vectors_to_their_length(shards, tmp_path):
    """The cosine leaves the length of a predicted vector open; with `magnitude` it nears the target's."""
    misses = {}
    for magnitude in (0.0, 1.0):
        run = tmp_path / str(magnitude)
        train(config(shards, f"model.magnitude={magnitude}"), run, "cpu")
        network = tiny_network()
        network.load_state_dict(read_model_folder(run / "model").tensors)
        raw = network.encoder.raw(random_pixels(8, 32))
        there = network.eval().round_trip(raw)
        misses[magnitude] = float(
            (there.predicted.norm(dim=-1) / there.features.norm(dim=-1)).log().abs().mean()
        )
    assert misses[1.0] < 0.9 * misses[0.0], misses
