"""Noise processes against diffusers, and every prediction read back as the clean image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.configs import parse
from pictish.decoder.config import DiffusionNoise, FlowNoise, ObjectiveConfig
from pictish.decoder.noise import FLOOR, Noise

DIFFUSION = [
    DiffusionNoise(predicts=predicts, beta_schedule=schedule)
    for predicts in ("epsilon", "v", "x0")
    for schedule in ("squaredcos_cap_v2", "scaled_linear", "linear")
]
FLOW = [FlowNoise(predicts=predicts) for predicts in ("velocity", "x0")]


def pictures(count: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x and n in double precision: near the end of a process epsilon says little of x_0."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    return drawn[0], drawn[1]


@pytest.mark.parametrize("config", [*DIFFUSION, *FLOW], ids=lambda c: f"{c.kind}-{c.predicts}")
def test_a_target_read_back_is_the_picture(config):
    noise = Noise(config)
    last = 999 if config.kind == "diffusion" else 1000

    @given(st.floats(0, last, width=32))
    @settings(max_examples=25, deadline=None, database=None)
    def holds(time: float) -> None:
        x, n = pictures(2)
        times = torch.tensor([time, last - time])
        noisy = noise.mix(x, n, times)
        found = noise.clean(noise.target(x, n, times), noisy, times)
        assert (found - x).abs().max() < 1e-4

    holds()


@pytest.mark.parametrize("config", DIFFUSION[:3], ids=lambda c: c.beta_schedule)
def test_levels_are_those_of_ddpm(config):
    from diffusers import DDPMScheduler

    ddpm = DDPMScheduler(1000, config.beta_start, config.beta_end, config.beta_schedule)
    times = torch.arange(1000)
    a, b = Noise(config).levels(times)
    assert torch.allclose(a.flatten() ** 2, ddpm.alphas_cumprod, rtol=1e-4, atol=1e-9)
    assert torch.allclose(a**2 + b**2, torch.ones_like(a), atol=1e-6)
    x, n = pictures()
    some = torch.tensor([0, 1, 250, 500, 750, 998])
    assert torch.allclose(
        Noise(config).mix(x.float(), n.float(), some), ddpm.add_noise(x.float(), n.float(), some), atol=1e-4
    )
    between = Noise(config).levels(torch.arange(999) + 0.5)[0]
    assert (between < a[:-1]).all()
    assert (between > a[1:]).all()


def test_v_is_diffusers_velocity():
    from diffusers import DDPMScheduler

    x, n = pictures()
    times = torch.tensor([0, 3, 250, 500, 750, 998])
    ddpm = DDPMScheduler(1000, 0.0001, 0.02, "squaredcos_cap_v2")
    found = Noise(DiffusionNoise(predicts="v")).target(x.float(), n.float(), times)
    assert torch.allclose(found, ddpm.get_velocity(x.float(), n.float(), times), atol=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_diffusers(gamma):
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    times = torch.arange(0, 999, 37)
    ratio = compute_snr(DDPMScheduler(1000, 0.0001, 0.02, "squaredcos_cap_v2"), times)
    capped = ratio.clamp_max(gamma)
    objective = ObjectiveConfig(weighting="min_snr", gamma=gamma)
    # as in diffusers' train_text_to_image.py
    for predicts, expected in {"x0": capped, "epsilon": capped / ratio, "v": capped / (ratio + 1)}.items():
        found = Noise(DiffusionNoise(predicts=predicts)).weights(times, objective).flatten()
        assert torch.allclose(found, expected, rtol=3e-3), predicts  # single precision near 1


def test_the_velocity_weighting_makes_an_x0_error_one_of_the_velocity():
    x, n = pictures()
    wrong = x + 0.1
    times = torch.tensor([160.0, 200.0, 300.0, 500.0, 800.0, 1000.0])
    noise = Noise(FlowNoise(predicts="x0"))
    error = (wrong - x).square() * noise.weights(times, ObjectiveConfig(weighting="velocity"))
    noisy = noise.mix(x, n, times)
    velocity = noise.for_scheduler(wrong, noisy, times) - (n - x)
    assert torch.allclose(error, velocity.square(), rtol=1e-4)
    assert noise.weights(torch.zeros(1), ObjectiveConfig(weighting="velocity")) == pytest.approx(FLOOR**-2)


@pytest.mark.parametrize("config", [DIFFUSION[0], FLOW[0]], ids=lambda c: c.kind)
def test_a_scheduler_is_told_the_noise(config):
    x, n = pictures()
    times = torch.tensor([5.0, 100.0, 300.0, 500.0, 800.0, 990.0])
    noise = Noise(config)
    conditioning = noise.for_scheduler(x, noise.mix(x, n, times), times)
    assert torch.allclose(conditioning, n if config.kind == "diffusion" else n - x, atol=1e-4)


def test_times_are_drawn_as_asked():
    generator = torch.Generator().manual_seed(0)
    uniform = Noise(FLOW[0]).draw_times(20_000, ObjectiveConfig(), generator)
    assert 0 <= uniform.min() < uniform.max() <= 1000
    assert uniform.mean() == pytest.approx(500, abs=10)
    whole = Noise(DIFFUSION[0]).draw_times(20_000, ObjectiveConfig(), generator)
    assert torch.equal(whole, whole.floor())
    assert (whole.min(), whole.max()) == (0, 999)
    objective = ObjectiveConfig(times="logit_normal", mean=0.5, deviation=0.7)
    normal = torch.logit(Noise(FLOW[0]).draw_times(20_000, objective, generator) / 1000)
    assert normal.mean() == pytest.approx(0.5, abs=0.03)
    assert normal.std() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "objective", "refusal"),
    [
        ("diffusion", {"weighting": "velocity"}, "objective.weighting: velocity is for noise of kind"),
        ("flow", {"weighting": "min_snr"}, "objective.weighting: min_snr is for noise of kind"),
        ("diffusion", {"perceptual": 0.5}, r"objective\.perceptual: of noise\.predicts epsilon"),
    ],
)
def test_an_objective_that_does_not_fit_the_noise_is_refused(kind, objective, refusal):
    from pictish.decoder.config import TrainConfig
    from tests.decoder.tiny import TEACHER, config

    raw = {
        "model": config(noise={"kind": kind}).model_dump(mode="json"),
        "objective": objective,
        "teacher": TEACHER,
        "data": {"train": ["a.tar"], "validation": ["b.tar"]},
        "steps": 1,
        "warmup": 0,
    }
    with pytest.raises(ValueError, match=refusal):
        parse(TrainConfig, raw, "test")
    assert math.isfinite(parse(TrainConfig, raw | {"objective": {}}, "test").objective.gamma)
