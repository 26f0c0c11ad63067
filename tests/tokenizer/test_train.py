"""The training loop: the loss falls, a stopped run goes on bit for bit, the cache is made once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pictish.configs import load, parse
from pictish.tokenizer import train as loop
from pictish.tokenizer.cache import build_cache, resized
from pictish.tokenizer.config import TrainConfig
from pictish.tokenizer.conv import as_maps
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.train import code_numbers, train, with_flat
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup
from tests.shards import write_shard
from tests.tokenizer.conftest import ORDERED, random_pixels

QUIET = {"views": 1, "limit": None, "workers": 0, "seed": 0, "report": lambda done, count: None}


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
    folder = train(config(shards), tmp_path, "cpu")
    rows = [row for row in lines(tmp_path) if "mse" in row]
    assert rows[-1]["mse"] < 0.5 * rows[0]["mse"]
    assert rows[-1]["features"] < rows[0]["features"]
    assert all(row["perceptual"] > 0 and row["selector"] > 0 for row in rows)
    last = lines(tmp_path)[-1]
    assert {"validation_psnr", "validation_perplexity", "validation_dead_codes"} <= set(last)
    assert last["validation_tokens_p5"] <= last["validation_tokens_p95"]
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.tokenize([np.zeros((20, 30, 3), np.uint8)])[0].size == (20, 30)


def test_the_saved_model_keeps_its_rate_and_knows_what_codes_give(shards, tmp_path):
    """On validation images: the number of codes, and the PSNR that is asked for by `quality`."""
    tokenizer = Tokenizer.from_folder(train(config(shards, "model.selector.rate=0.25"), tmp_path, "cpu"))
    pictures = build_cache(tmp_path / "cache", [str(shards / "validation.tar")], 32, **QUIET).pictures
    pixels = torch.from_numpy(np.array(pictures))

    def lengths(**choice) -> list[int]:
        return [len(token) for token in tokenizer.tokenize_pixels(pixels, [(32, 32)] * 8, **choice)]

    def psnr(**choice) -> float:
        tokens = tokenizer.tokenize_pixels(pixels, [(32, 32)] * 8, **choice)
        found = tokenizer.pixels_in(tokenizer.reconstruct(tokens)).clamp(0, 1)
        errors = (found - as_maps(resized(pixels, 16))).square().mean((1, 2, 3))
        return float((-10 * errors.log10()).mean())

    assert np.mean(lengths()) == pytest.approx(4, abs=1)
    assert tokenizer.network.selector.calibration.tolist() != [1.0, 0.0, 0.0, 0.0]
    asked = psnr(budget=4)
    assert psnr(quality=asked) == pytest.approx(asked, abs=1.5)
    assert sum(lengths(quality=asked + 1)) >= sum(lengths(quality=asked))


# 5: in the first phase; 6: checkpoint at the switch, k-means comes after it; 11: codes in use
@pytest.mark.parametrize(("stop", "optimizer"), [(5, "adamw"), (6, "muon"), (11, "adamw"), (11, "muon")])
def test_a_stopped_run_goes_on_bit_for_bit(shards, tmp_path, stop, optimizer):
    settings = config(shards, *SHORT, f"optimizer={optimizer}")
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


def test_a_stopped_run_takes_moved_pictures_and_no_others(shards, tmp_path):
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done >= 3:
            raise Killed

    moved = Path(shutil.copytree(shards, tmp_path / "moved"))
    for folder in (shards, moved):
        with pytest.raises(Killed):
            train(config(folder, *SHORT), tmp_path / "run", "cpu", kill)
    assert lines(tmp_path / "run")[-1]["step"] == 4, "it went on"
    write_shard(moved / "train.tar", 39)
    with pytest.raises(ValueError, match=r"was trained with another data\.train: its fingerprint was"):
        train(config(moved, *SHORT), tmp_path / "run", "cpu", kill)


def test_the_codebook_starts_once_and_from_enough_vectors(shards, tmp_path, monkeypatch):
    started = []
    original = loop._start_codebook

    def count(network, training, config, step, process_group):
        original(network, training, config, step, process_group)
        started.append(step)

    monkeypatch.setattr(loop, "_start_codebook", count)
    train(config(shards, *SHORT), tmp_path, "cpu")
    assert started == [6]


def test_the_cache_is_built_once_and_knows_its_pictures(shards, tmp_path):
    reports: list[tuple[int, int]] = []
    settings = {**QUIET, "report": lambda *numbers: reports.append(numbers)}
    pattern = str(shards / "train*.tar")
    cache = build_cache(tmp_path, [pattern], 24, **settings | {"views": 2})
    assert cache.pictures.shape == (80, 24, 24, 3)
    assert reports[-1] == (80, 80)
    reports.clear()
    build_cache(tmp_path, [pattern], 24, **settings | {"views": 2})
    assert reports == []
    for side, views, count in ((24, 1, 40), (32, 2, 80)):  # others are other caches
        assert build_cache(tmp_path, [pattern], side, **settings | {"views": views}).pictures.shape[1] == side
        assert reports[-1] == (count, count)
    order = [cache.batch(step, 16, seed=3) for step in range(5)]
    rows = {row.numpy().tobytes() for batch in order for row in batch}
    assert rows == {row.tobytes() for row in np.array(cache.pictures)}
    assert not torch.equal(order[0], cache.batch(5, 16, seed=3)), "another epoch, another order"
    assert cache.names(0, 16, 3)[0].startswith("train.tar/")


def test_workers_do_not_change_the_cache(shards, tmp_path):
    made = [
        build_cache(
            tmp_path / str(workers),
            [str(shards / "train.tar")],
            32,
            **QUIET | {"views": 3, "limit": 10, "workers": workers},
        ).pictures
        for workers in (0, 2)
    ]
    assert (made[0] == made[1]).all()


def test_no_pictures_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="nothing matches"):
        build_cache(tmp_path, [str(tmp_path / "none-*.tar")], 32, **QUIET)


def test_pictures_are_resized_by_areas_and_kept_where_they_fit():
    pixels = random_pixels(3, 32)
    assert resized(pixels, 32) is pixels
    small = resized(pixels, 16)
    assert small.dtype == torch.uint8
    means = pixels.view(3, 16, 2, 16, 2, 3).float().mean(dim=(2, 4))
    assert (small.float() - means).abs().max() <= 0.5
    assert torch.equal(
        resized(torch.full((1, 8, 8, 3), 77, dtype=torch.uint8), 20).unique(), torch.tensor([77])
    )


def test_flat_pictures_replace_a_fraction_whatever_the_processes():
    pictures = random_pixels(400, 8)
    assert with_flat(pictures, 0.0, torch.Generator(), SINGLE_PROCESS) is pictures
    mixed = with_flat(pictures, 0.2, torch.Generator().manual_seed(0), SINGLE_PROCESS)
    flat = (mixed == mixed[:, :1, :1]).flatten(1).all(dim=1)
    assert float(flat.float().mean()) == pytest.approx(0.2, abs=0.06)
    assert torch.equal(mixed[~flat], pictures[~flat])
    colours = mixed[flat][:, 0, 0].float()
    assert (colours.std(dim=0) > 50).all(), "any colour"
    halves = [
        with_flat(part, 0.2, torch.Generator().manual_seed(0), ProcessGroup(index, 2))
        for index, part in enumerate(pictures.split(200))
    ]
    assert torch.equal(torch.cat(halves), mixed)


def test_codes_in_order_are_not_trained(shards):
    raw = load("tiny/tokenizer")
    raw["model"] |= ORDERED
    with pytest.raises(ValueError, match="of kind grid is trained; tokenizers of codes in order are not"):
        parse(TrainConfig, raw, "test")


def test_code_numbers_of_known_counts():
    even = code_numbers(torch.tensor([5, 5, 5, 5]), codes=8)
    assert even == {"usage": 0.5, "perplexity": pytest.approx(4.0), "dead_codes": 4}
    one = code_numbers(torch.tensor([0, 9, 0]), codes=4)
    assert one == {"usage": 0.25, "perplexity": pytest.approx(1.0), "dead_codes": 3}


def test_a_shrinking_codebook_raises_an_alarm(shards, tmp_path, caplog):
    train(config(shards, *SHORT, "usage_alarm=1.0"), tmp_path, "cpu")
    assert "of the codebook was used" in caplog.text
