"""Schedulers are accepted by what they draw: with x_0 known they end at it, whatever the number of steps."""

import diffusers.schedulers
import pytest
import torch

from pictish.decoder.config import AnyNoise, DiffusionNoise, FlowNoise
from pictish.decoder.noise import Noise
from pictish.decoder.schedulers import as_model_sees, begin, build_scheduler, check_scheduler, take_step

EVERY = sorted(name for name in dir(diffusers.schedulers) if name.endswith("Scheduler"))
COSINE, SCALED = DiffusionNoise(), DiffusionNoise(beta_schedule="scaled_linear")
STABLE_DIFFUSION = DiffusionNoise(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, spacing="leading"
)
NOISES = {
    "cosine": COSINE,
    "leading": STABLE_DIFFUSION,
    "flow": FlowNoise(),
    "shifted flow": FlowNoise(shift=3.0),
}
ALWAYS = {  # must not be refused
    "diffusion": {
        "DDIMScheduler",
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    },
    "flow": {"FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"},
}


def accepted(name: str, noise: AnyNoise) -> bool:
    try:
        build_scheduler(name, noise)
    except ValueError as error:
        line = str(error)
    else:
        return True
    assert line.startswith(f"scheduler {name}: ")
    assert "\n" not in line
    return False


def drawn(name: str, noise: AnyNoise, steps: int, clean: torch.Tensor) -> torch.Tensor:
    """What comes of noise when each prediction is the true x_0."""
    generator = torch.Generator().manual_seed(7)
    scheduler, process = build_scheduler(name, noise), Noise(noise)
    times, x = begin(scheduler, steps, 1.0, None, torch.randn(clean.shape, generator=generator))
    for time in times:
        shown = as_model_sees(scheduler, x, time)
        output = process.for_scheduler(clean, shown, time.expand(len(x)))
        x = take_step(scheduler, output, time, x, [generator] * len(x))
    return x


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_every_scheduler_that_is_let_in_ends_at_x_0(noise):
    clean = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    names = [name for name in EVERY if accepted(name, noise)]
    assert set(names) >= ALWAYS[noise.kind]
    leading = noise is STABLE_DIFFUSION  # whose single step is refused below
    for name in names:
        for steps in (2, 4, 20) if leading else (1, 2, 4, 20):
            miss = (drawn(name, noise, steps, clean) - clean).square().mean().sqrt()
            assert miss < 0.05, (name, steps, miss)


@pytest.mark.parametrize(
    ("name", "noise", "reason"),
    [
        ("DEISMultistepScheduler", FlowNoise(), "with the true x_0 known it ends .* away from it in 1 step"),
        ("SASolverScheduler", FlowNoise(shift=3.0), "with the true x_0 known it ends .* away from it"),
        ("FlowMatchHeunDiscreteScheduler", FlowNoise(), "times as noisy as their time says"),
        ("CogVideoXDDIMScheduler", COSINE, "with the true x_0 known it ends .* away from it in 1 step"),
        ("PNDMScheduler", COSINE, "PNDMScheduler cannot take 1 steps"),
        ("PNDMScheduler", STABLE_DIFFUSION, "PNDMScheduler cannot take 2 steps"),
        ("KDPM2AncestralDiscreteScheduler", COSINE, "it raises IndexError"),
        ("HeunDiscreteScheduler", COSINE, "times as noisy as their time says"),
    ],
)
def test_one_that_misses_is_refused(name, noise, reason):
    with pytest.raises(
        ValueError, match=rf"scheduler {name}: not for noise of kind {noise.kind} \(.*{reason}"
    ):
        build_scheduler(name, noise)


def test_where_second_order_is_sound_it_is_let_in():
    check_scheduler("HeunDiscreteScheduler", SCALED, 20)
    check_scheduler("KDPM2DiscreteScheduler", SCALED, 20)


@pytest.mark.parametrize(
    ("name", "noise", "steps", "strength", "reason"),
    [
        ("EulerAncestralDiscreteScheduler", COSINE, 3, 1.0, "not for 3 steps .*ends nan away"),
        ("KDPM2DiscreteScheduler", COSINE, 2, 1.0, "not for 2 steps .*times as noisy"),
        ("DDIMScheduler", STABLE_DIFFUSION, 1, 1.0, r"not for 1 step \(with the true x_0 known it ends"),
        ("LMSDiscreteScheduler", COSINE, 8, 0.5, "not for 8 steps at strength 0.5"),
    ],
)
def test_steps_that_a_scheduler_cannot_take_are_refused(name, noise, steps, strength, reason):
    check_scheduler(name, noise, 20)
    with pytest.raises(ValueError, match=f"scheduler {name}: {reason}"):
        check_scheduler(name, noise, steps, strength)


def test_ddim_ends_at_x_0_itself_but_for_stable_diffusion():
    """Whose last step ends at the noise of time 0, as its weights and LaVIT's were used."""
    clean = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert (drawn("DDIMScheduler", COSINE, 4, clean) - clean).abs().max() < 1e-3
    left = (drawn("DDIMScheduler", STABLE_DIFFUSION, 4, clean) - clean).std()
    assert left == pytest.approx(0.03, abs=0.01)
