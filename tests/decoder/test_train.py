"""Training the diffusion decoder: losses fall, a stop changes nothing, the average is what is saved."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pictish.configs import load, parse
from pictish.decoder.config import ObjectiveConfig, TrainConfig
from pictish.decoder.diffusion import load_diffusion
from pictish.decoder.objective import Batch, diffusion_losses
from pictish.decoder.pixel import Decoder
from pictish.decoder.train import train
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from pictish.training.checkpoint import latest_checkpoint
from tests.decoder.tiny import TRANSFORMER, UNET, conditioning_of, config, decode, decoder_of, teacher
from tests.shards import write_shard
from tests.tokenizer.conftest import ORDERED, tiny_network


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "train.tar", 16)
    write_shard(folder / "validation.tar", 8, first=1000)
    return folder


def experiment(folder: Path, data: Path, *changes: str) -> TrainConfig:
    given = [
        f"tokenizer={folder / 'tokenizer'}",
        f"data.train=[{data / 'train.tar'}]",
        f"data.validation=[{data / 'validation.tar'}]",
        f"data.cache={data / 'cache'}",
        "objective.perceptual=0.1",
        "steps=6",
        "log_every=1",
        "validate_every=3",
        "sample_every=6",
        "checkpoint_every=2",
    ]
    return parse(TrainConfig, load("tiny/decoder", [*given, *changes]), "test")


def rows(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in found]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stopped(Exception):
    pass


# dropout inside the network draws from torch's own generator
DROPOUT = "model.denoiser.settings.dropout=0.3"


@pytest.fixture(scope="module")
def whole(folder, data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "whole"
    train(experiment(folder, data, DROPOUT), run, "cpu")
    return run


@pytest.mark.parametrize("stops", [[1], [3, 5], [6]], ids=str)
def test_a_stop_changes_nothing(folder, data, whole, tmp_path, stops):
    for stop in stops:

        def progress(done: int, total: int, stop: int = stop) -> None:
            assert total == 6
            if done == stop:
                raise Stopped

        with pytest.raises(Stopped):
            train(experiment(folder, data, DROPOUT), tmp_path / "run", "cpu", progress)
    torch.rand(5)  # another process has another state
    train(experiment(folder, data, DROPOUT), tmp_path / "run", "cpu")
    assert rows(tmp_path / "run") == rows(whole)
    for part in ("model", "samples", "checkpoints/step-00000006"):
        assert files(tmp_path / "run" / part) == files(whole / part), part


def test_the_average_is_what_is_saved(whole):
    latest = latest_checkpoint(whole)
    assert latest is not None
    tensors = {}
    for path in latest.glob("*.safetensors"):
        tensors |= load_file(path)
    saved = load_file(whole / "model" / "denoiser" / "diffusion_pytorch_model.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(tensor, tensors[f"average.denoiser.network.{name}"].half()), name
    assert any(not torch.equal(t, tensors[f"denoiser.network.{name}"].half()) for name, t in saved.items())
    for name, tensor in load_file(whole / "model" / "model.safetensors").items():
        assert torch.equal(tensor, tensors[f"average.condition.{name}"].half()), name


def test_what_a_run_leaves_behind(whole, tokenizer, tokens):
    assert {"loss", "perceptual", "gradient_norm", "learning_rate"} <= rows(whole)[0].keys()
    assert sum("validation_loss" in row for row in rows(whole)) == 2
    with Image.open(whole / "samples" / "step-00000006.png") as sheet:
        assert sheet.size == (8 * 16, 4 * 16)  # originals, told pixels, without and with guidance
        assert sheet.convert("L").getextrema()[0] < sheet.convert("L").getextrema()[1]
    decoder = Decoder.from_folder(whole / "model", tokenizer)
    assert decode(decoder, tokens[:1], [torch.Generator()]).float().std() > 1


@pytest.mark.parametrize("side", [32, 64])
def test_a_decoder_may_draw_another_side_than_the_tokenizers(folder, data, tokenizer, tmp_path, side):
    """Images are cached at the larger side, and the tokenizer sees them at its own."""
    changes = [f"model.side={side}", "steps=1", "warmup=0", "sample_every=1", "log_every=1"]
    run = train(experiment(folder, data, f"data.cache={tmp_path}", *changes), tmp_path / "run", "cpu")
    model = load_diffusion(run, tokenizer)
    assert (model.config.side, model.sample_size) == (side, side)
    with Image.open(tmp_path / "run" / "samples" / "step-00000001.png") as sheet:
        assert sheet.height == 4 * side
    (cached, _) = tmp_path.glob("pictures-*/pictures.npy")
    assert np.load(cached, mmap_mode="r").shape[1:] == (side, side, 3)


def test_a_decoder_of_codes_in_order_is_trained_as_well(data, tmp_path):
    save_tokenizer(tmp_path / "tokenizer", tiny_network(**ORDERED))
    run = train(experiment(tmp_path, data, "steps=2", "sample_every=2", "warmup=0"), tmp_path / "run", "cpu")
    assert load_diffusion(run, Tokenizer.from_folder(tmp_path)).config.side == 16


OBJECTIVES = [
    ({"kind": "diffusion", "predicts": "epsilon"}, {}, {}),
    ({"kind": "diffusion", "predicts": "v"}, {}, {"weighting": "min_snr"}),
    ({"kind": "diffusion", "predicts": "x0"}, {}, {}),
    ({"kind": "flow", "predicts": "x0"}, {}, {"weighting": "velocity"}),
    ({"kind": "flow", "predicts": "x0"}, {}, {"perceptual": 1.0}),
    ({"kind": "flow", "predicts": "velocity"}, {}, {"times": "logit_normal"}),
    ({"kind": "flow", "predicts": "x0"}, {"residual": 0.3}, {}),
    ({"kind": "diffusion", "predicts": "v"}, {"residual": 0.3}, {}),
]


@pytest.mark.parametrize(
    ("noise", "changes", "objective"), OBJECTIVES, ids=lambda v: "-".join(map(str, v.values()))
)
def test_every_objective_is_learnt(tokenizer, noise, changes, objective):
    network = UNET if noise["predicts"] == "epsilon" else TRANSFORMER
    torch.manual_seed(0)
    condition = {"channels": 3, "width": 16}
    model = decoder_of(tokenizer, config(network, noise=noise, condition=condition, **changes)).train()
    conditioning = conditioning_of(tokenizer, 4)
    conditioning = conditioning._replace(
        pixels=conditioning.pixels.flip(0)
    )  # what the codes tell is not the whole truth
    batch = Batch(*conditioning[:3], conditioning_of(tokenizer, 4).pixels, conditioning.pixels)
    settings = ObjectiveConfig(**objective)
    losses = partial(diffusion_losses, model, model, teacher(), batch, settings)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)

    @torch.no_grad()
    def mean_loss() -> float:
        drawn = [torch.Generator().manual_seed(100 + number) for number in range(6)]
        return float(torch.stack([losses(generator)["loss"] for generator in drawn]).mean())

    before = mean_loss()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        loss = losses(generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean_loss() < 0.85 * before


def test_the_loss_is_logged_by_noise_level_and_the_condition_is_dropped(tokenizer):
    model = decoder_of(tokenizer)
    conditioning = conditioning_of(tokenizer, 32)
    batch = Batch(*conditioning[:3], conditioning.pixels, conditioning.pixels)
    other = batch._replace(features=batch.features.flip(0), codes=batch.codes.flip(0))

    def losses(batch: Batch, dropout: float) -> dict[str, torch.Tensor]:
        settings = ObjectiveConfig(dropout=dropout)
        return diffusion_losses(model, model, None, batch, settings, torch.Generator().manual_seed(0))

    assert [name for name in losses(batch, 0.0) if name != "loss"] == [
        f"x0_error_{n}of4" for n in (1, 2, 3, 4)
    ]
    assert torch.allclose(losses(batch, 1.0)["loss"], losses(other, 1.0)["loss"], rtol=1e-5)
    assert not torch.allclose(losses(batch, 0.0)["loss"], losses(other, 0.0)["loss"], rtol=1e-5)


def test_settings_that_do_not_fit_are_refused_before_pictures_are_read(folder, data, tmp_path):
    with pytest.raises(ValueError, match="side: 18 pixels do not fit 4 x 4 cells"):
        train(experiment(folder, data, "model.side=18"), tmp_path / "run", "cpu")
