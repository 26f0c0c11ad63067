"""MeanFlow: the identity where the flow is known, derivatives of real networks, training, sampling."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from pictish.configs import load, parse
from pictish.decoder.config import ObjectiveConfig, TrainConfig
from pictish.decoder.denoiser import build_denoiser
from pictish.decoder.diffusion import load_diffusion, save_diffusion
from pictish.decoder.meanflow import SCALE, average_velocity, derivative, draw, draw_times
from pictish.decoder.objective import Batch, diffusion_losses
from pictish.decoder.pixel import Decoder, Source
from pictish.decoder.train import train
from pictish.evaluation.decoder import STEPS, DecoderEvaluation
from pictish.pipelines.reconstruct import Drawing, Reconstructor
from pictish.tokenizer.config import EncoderConfig
from pictish.tokenizer.encoder import Encoder
from tests.decoder.tiny import TRANSFORMER, UNET, conditioning_of, config, decode, decoder_of
from tests.shards import write_shard

MEANFLOW = {"kind": "meanflow"}
SAMPLING = {"steps": 2, "guidance": 1.0}
DENOISERS = {
    "unet": UNET,
    "transformer": {**TRANSFORMER, "settings": {**TRANSFORMER["settings"], "attention_head_dim": 12}},
}


@pytest.fixture(params=DENOISERS)
def settings(request):
    return partial(config, DENOISERS[request.param], noise=MEANFLOW, sampling=SAMPLING)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


MEAN, DEVIATION = 0.2, 0.3


def normal_x(z: torch.Tensor, t: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """The exact prediction where x is normal: the flow moves z_t in its own distribution, mean and scale."""
    t, r = (times[:, None, None, None] / SCALE for times in (t, t - length))

    def deviation(time: torch.Tensor) -> torch.Tensor:
        return (((1 - time) * DEVIATION) ** 2 + time**2).sqrt()

    beside = z - (1 - t) * MEAN
    if not length.any():
        slope = (t - (1 - t) * DEVIATION**2) / deviation(t) ** 2
        return z - t * (slope * beside - MEAN)
    there = (1 - r) * MEAN + deviation(r) / deviation(t) * beside  # z_r
    return z - t * (z - there) / (t - r)


def test_the_identity_holds_where_the_flow_is_known():
    z = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, r = torch.tensor([0.9, 0.6, 0.4]).double(), torch.tensor([0.0, 0.5, 0.1]).double()
    u, v = average_velocity(normal_x, z, t, r), average_velocity(normal_x, z, t, t)
    along = derivative(normal_x, z, t, r)
    assert along.abs().amax((1, 2, 3)).min() > 0.01
    assert torch.allclose(u, v - (t - r)[:, None, None, None] * along, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 30])
def test_any_number_of_exact_steps_lands_on_the_picture(steps):
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = MEAN + DEVIATION * noise
    assert torch.allclose(draw(normal_x, noise, steps), expected, atol=1e-6)
    # from half of the way, with a source image below the noise
    count, seen = max(1, steps // 2), []
    time = count / steps
    z = 0.5 * (1 - time) + time * noise
    beside = (z - (1 - time) * MEAN) / math.hypot((1 - time) * DEVIATION, time)
    settings = {"strength": 0.5, "progress": lambda *done: seen.append(done)}
    found = draw(normal_x, noise, steps, source=torch.full_like(noise, 0.5), **settings)
    assert torch.allclose(found, MEAN + DEVIATION * beside, atol=1e-6)
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_the_derivative_is_that_of_finite_differences(tokenizer, settings):
    model = decoder_of(tokenizer, settings(residual=0.3))
    conditioning, generator = conditioning_of(tokenizer, 2), torch.Generator().manual_seed(0)
    conditions, prior = model.condition(conditioning, torch.tensor([False, True])), model.prior(conditioning)

    def predict(z, t, length):
        return model.denoiser(z, t, conditions, prior, None, length)

    z, t, r = (
        torch.randn(2, 3, 16, 16, generator=generator),
        torch.tensor([0.8, 0.5]),
        torch.tensor([0.1, 0.3]),
    )
    found, step = derivative(predict, z, t, r), 3e-3
    with torch.no_grad():
        v = average_velocity(predict, z, t, t)
        above, below = (average_velocity(predict, z + d * v, t + d, r) for d in (step, -step))
        other = average_velocity(predict, z, t, t - 0.1)
    expected = (above - below) / (2 * step)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert not torch.allclose(other, average_velocity(predict, z, t, r), rtol=1e-3), "r is read"


def batch_of(tokenizer) -> Batch:
    conditioning = conditioning_of(tokenizer, 4)
    conditioning = conditioning._replace(pixels=conditioning.pixels.flip(0))
    return Batch(*conditioning[:3], conditioning_of(tokenizer, 4).pixels, conditioning.pixels)


def test_it_learns(tokenizer, settings):
    condition = {"channels": 3, "width": 16, "source": True}
    model = decoder_of(tokenizer, settings(residual=0.3, condition=condition)).train()
    objective = ObjectiveConfig(
        weighting="adaptive", times="logit_normal", mean=0.8, deviation=0.8, source=0.5
    )
    losses = partial(diffusion_losses, model, model, None, batch_of(tokenizer), objective)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)

    @torch.no_grad()
    def error() -> float:
        return sum(float(losses(generator)["velocity_error"]) for generator in seeded(100, 101)) / 2

    before, (generator,) = error(), seeded(1)
    for _ in range(12):
        found = losses(generator)["loss"]
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert error() < 0.85 * before


def test_bfloat16_autocast_leaves_gradients_to_the_weights(tokenizer, settings):
    model = decoder_of(tokenizer, settings()).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = diffusion_losses(
            model, model, None, batch_of(tokenizer), ObjectiveConfig(flow_matching=0.0), *seeded(0)
        )
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    exact = diffusion_losses(
        model, model, None, batch_of(tokenizer), ObjectiveConfig(flow_matching=0.0), *seeded(0)
    )
    assert torch.allclose(found["loss"], exact["loss"], rtol=0.1)


def test_two_times_are_drawn_of_which_a_fraction_is_equal():
    objective = ObjectiveConfig(times="logit_normal", mean=0.8, deviation=0.8, flow_matching=0.25)
    t, r = draw_times(20_000, objective, *seeded(0))
    assert (r <= t).all()
    assert float((r == t).float().mean()) == pytest.approx(0.25, abs=0.02)
    same = torch.logit(t[r == t])
    assert (float(same.mean()), float(same.std())) == pytest.approx((0.8, 0.8), abs=0.04)


def test_pictures_are_compared_only_below_a_time(tokenizer):
    teacher = Encoder(parse(EncoderConfig, load("tiny/decoder")["teacher"], "test"))
    model = decoder_of(tokenizer, config(DENOISERS["transformer"], noise=MEANFLOW, sampling=SAMPLING))
    found = {
        bound: diffusion_losses(
            model,
            model,
            teacher,
            batch_of(tokenizer),
            ObjectiveConfig(perceptual=2.0, perceptual_below=bound, weighting="adaptive"),
            *seeded(0),
        )
        for bound in (1e-6, 0.5, 1.0)
    }
    assert found[1e-6]["perceptual"] == 0 < found[0.5]["perceptual"] < found[1.0]["perceptual"]
    assert 1.5 < found[1.0]["loss"] - found[1e-6]["loss"] < 2.0, "each distance is divided by itself"


@pytest.mark.parametrize("steps", [1, 4])
def test_drawing_is_deterministic_and_independent_of_the_batch(tokenizer, tokens, settings, steps):
    model = decoder_of(tokenizer, settings(residual=0.3))
    decoder = Decoder(model, tokenizer, "0" * 12)
    together = decode(decoder, tokens[:3], seeded(0, 1, 2), steps=steps)
    assert together.shape == (3, 16, 16, 3)
    for place in range(3):
        assert torch.equal(decode(decoder, [tokens[place]], seeded(place), steps=steps)[0], together[place])
    assert not torch.equal(decode(decoder, tokens[:1], seeded(5), steps=steps)[0], together[0])
    assert not torch.equal(decode(decoder, tokens[:1], seeded(0), steps=steps, guidance=3.0)[0], together[0])


def test_it_keeps_parts_of_a_source(tokenizer, tokens, settings):
    condition = {"channels": 2, "width": 16, "source": True}
    decoder = Decoder(decoder_of(tokenizer, settings(condition=condition)), tokenizer, "0" * 12)
    stays = torch.arange(16) < 8  # the upper half
    source = Source(torch.full((16, 16, 3), 77, dtype=torch.uint8), stays)
    for strength in (1.0, 0.5):
        drawn = decode(decoder, tokens[:1], seeded(0), sources=[source], strength=strength)[0]
        assert (drawn[:8] == 77).all()
        assert (drawn[8:] != 77).any()


def test_a_folder_has_no_scheduler_and_takes_none(tokenizer, tokens, settings, tmp_path):
    model = decoder_of(tokenizer, settings())
    save_diffusion(tmp_path / "decoder", model, tokenizer.fingerprint, half=False)
    assert not (tmp_path / "decoder" / "scheduler").exists()
    loaded, decoder = load_diffusion(tmp_path / "decoder", tokenizer), Decoder(model, tokenizer, "0" * 12)
    again = decode(Decoder(loaded, tokenizer, "0" * 12), tokens[:1], seeded(0))
    assert torch.equal(again, decode(decoder, tokens[:1], seeded(0)))
    with pytest.raises(ValueError, match="DDIMScheduler: noise of kind meanflow is sampled without"):
        decode(decoder, tokens[:1], seeded(0), scheduler="DDIMScheduler")


def test_an_evaluation_goes_through_steps_without_schedulers(tokenizer, settings):
    decoder = Decoder(decoder_of(tokenizer, settings()), tokenizer, "0" * 12)
    draws = Reconstructor(tokenizer, None, decoder, "0" * 12)
    ways = DecoderEvaluation(draws, None, None, Drawing(), seed=0).curve_ways()
    assert list(ways) == [("meanflow", steps) for steps in STEPS]
    with pytest.raises(ValueError, match="scheduler DDIMScheduler: noise of kind meanflow"):
        DecoderEvaluation(draws, None, None, Drawing(scheduler="DDIMScheduler"), seed=0)


def test_what_does_not_fit_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="num_attention_heads x attention_head_dim is 16"):
        decoder_of(tokenizer, config(noise=MEANFLOW, sampling=SAMPLING))
    with pytest.raises(ValueError, match="scheduler: none is given; try FlowMatchEuler"):
        decoder_of(tokenizer, config(sampling=SAMPLING))
    scheduled = {**SAMPLING, "scheduler": "FlowMatchEulerDiscreteScheduler"}
    with pytest.raises(ValueError, match="is sampled without one; omit it"):
        decoder_of(tokenizer, config(UNET, noise=MEANFLOW, sampling=scheduled))
    one = build_denoiser(config(UNET), 3, 16).network
    one.save_pretrained(tmp_path / "unet")
    stored = {"kind": "unet", "folder": str(tmp_path)}
    with pytest.raises(ValueError, match="needs a denoiser that embeds two times"):
        decoder_of(tokenizer, config(stored, noise=MEANFLOW, sampling=SAMPLING))
    with pytest.raises(ValueError, match="DDIMScheduler: not for noise of kind flow"):
        decoder_of(tokenizer, config(redraw={**SAMPLING, "scheduler": "DDIMScheduler"}))


CHANGES = (
    "model.noise={kind: meanflow}",
    "model.sampling.scheduler=null",
    "model.denoiser.settings.attention_head_dim=12",
    "model.denoiser.settings.dropout=0.2",
    "objective={weighting: adaptive, perceptual: 0.1, perceptual_below: 0.8, ema: 0.9}",
    "steps=4",
    "warmup=1",
    "log_every=1",
    "validate_every=4",
    "sample_every=4",
    "checkpoint_every=2",
)


def test_a_stop_changes_nothing(folder, tmp_path):
    write_shard(tmp_path / "data.tar", 8)
    shards = [f"data.{split}=[{tmp_path / 'data.tar'}]" for split in ("train", "validation")]
    place = [f"tokenizer={folder / 'tokenizer'}", f"data.cache={tmp_path / 'cache'}"]
    settings = parse(TrainConfig, load("tiny/decoder", [*place, *shards, *CHANGES]), "test")

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(ValueError, match="--fsdp: noise of kind meanflow needs unsharded weights"):
        train(settings, tmp_path / "sharded", "cpu", fsdp=True)
    train(settings, tmp_path / "whole", "cpu")
    with pytest.raises(Stopped):
        train(settings, tmp_path / "run", "cpu", stop)
    torch.rand(5)
    train(settings, tmp_path / "run", "cpu")
    for part in ("model", "samples", "checkpoints/step-00000004"):
        assert files(tmp_path / "run" / part) == files(tmp_path / "whole" / part), part


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
