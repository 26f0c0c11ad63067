"""Any diffusers scheduler by name, set up for a decoder's noise; their differences end here.

A scheduler is accepted by what it draws: it must take noise to a known x_0, and show the network maps that
are as noisy as their time says.
"""

import inspect
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pictish.decoder.config import AnyNoise, DiffusionNoise, FlowNoise, MeanFlowNoise
from pictish.decoder.noise import TIMES, Noise
from pictish.io.files import one_line

TRIAL_STEPS = (1, 2, 4, 20)  # in each of which a scheduler must reach x_0
LARGEST_MISS = 0.05  # root mean square of what is left between x_0, which lies in [-1, 1], and what was drawn
TRIAL_ERROR = 0.05  # standard deviation of the error of x_0 as a network predicts it, in a trial
LARGEST_EXCESS = 3.0  # factor by which maps may be noisier than the network is trained on at their time


def check_scheduler(name: str | None, noise: AnyNoise, steps: int | None = None, strength: float = 1) -> None:
    """ValueError as for `build_scheduler`, and for `steps` that it cannot take; MeanFlow needs none."""
    if isinstance(noise, MeanFlowNoise) and name is None:
        return
    build_scheduler(name, noise)
    assert name is not None
    if steps is not None and (reason := _shortcoming(name, noise, steps, strength)) is not None:
        source = "" if strength == 1 else f" at strength {strength}"
        raise ValueError(
            f"scheduler {name}: not for {_steps(steps)}{source} ({reason}); take more, or {_some(noise)}"
        )


def build_scheduler(name: str | None, noise: AnyNoise) -> Any:
    """diffusers' scheduler class `name` for this noise.

    Raises ValueError when there is none of that name, when it is for another kind of noise, and when it
    misses a known x_0 in any of `TRIAL_STEPS`.
    """
    cls, settings = _class_for(name, noise)
    assert name is not None
    reason = _unfit(name, noise)
    if reason is not None:
        raise ValueError(
            f"scheduler {name}: not for noise of kind {noise.kind} ({reason}); try {_some(noise)}"
        )
    return cls(**settings)


def _class_for(name: str | None, noise: AnyNoise) -> tuple[Any, dict[str, Any]]:
    """The class and its arguments, by its signature alone; ValueError as of `build_scheduler`."""
    if isinstance(noise, MeanFlowNoise):
        raise ValueError(f"scheduler {name}: noise of kind meanflow is sampled without one; omit it")
    if name is None:
        raise ValueError(f"scheduler: none is given; try {_some(noise)}")
    import diffusers.schedulers

    try:
        cls = getattr(diffusers.schedulers, name, None) if name.endswith("Scheduler") else None
        usable = hasattr(cls, "set_timesteps")
    except ImportError as error:  # diffusers has placeholders for what is not installed
        raise ValueError(f"scheduler {name}: {str(error).strip().splitlines()[0]}") from None
    if cls is None or not usable:
        raise ValueError(f"scheduler {name}: diffusers has none of that name; try {_some(noise)}")
    settings = _settings(cls, noise)
    if settings is None:
        raise ValueError(f"scheduler {name}: not for noise of kind {noise.kind}; try {_some(noise)}")
    return cls, settings


@lru_cache(maxsize=256)
def _unfit(name: str, noise: AnyNoise) -> str | None:
    """Why a scheduler is refused whatever the number of steps; None when it is not."""
    # spaced as in Stable Diffusion, one step is taken at time 1, where no noise is: no scheduler's fault
    leading = isinstance(noise, DiffusionNoise) and noise.spacing == "leading"
    for steps in TRIAL_STEPS[1:] if leading else TRIAL_STEPS:
        miss = _trial(name, noise, steps, 1.0, error=0.0)
        if isinstance(miss, str):
            return miss
        if not miss[0] <= LARGEST_MISS:
            return f"with the true x_0 known it ends {miss[0]:.2g} away from it in {_steps(steps)}"
    return _shortcoming(name, noise, TRIAL_STEPS[-1], 1.0)


@lru_cache(maxsize=256)
def _shortcoming(name: str, noise: AnyNoise, steps: int, strength: float) -> str | None:
    """Why a scheduler is refused for this number of steps; None when it is not."""
    exact = _trial(name, noise, steps, strength, error=0.0)
    if isinstance(exact, str):
        return exact
    if not exact[0] <= LARGEST_MISS:
        return f"with the true x_0 known it ends {exact[0]:.2g} away from it"
    blurred = _trial(name, noise, steps, strength, error=TRIAL_ERROR)
    if isinstance(blurred, str):
        return blurred
    if not blurred[1] <= LARGEST_EXCESS:
        return f"it shows the network maps {blurred[1]:.1f} times as noisy as their time says"
    return None


def _trial(
    name: str, noise: AnyNoise, steps: int, strength: float, *, error: float
) -> tuple[float, float] | str:
    """What a scheduler makes of a known x_0, predicted with independent errors of this standard deviation.

    (root mean square of what it ends away from x_0, the largest ratio of the noise in what the network is
    shown to the noise of its time); a text when diffusers raises.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, 32, 32)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    clean = torch.rand(shape, generator=generator, dtype=torch.float32) * 2 - 1
    cls, settings = _class_for(name, noise)
    scheduler, process = cls(**settings), Noise(noise)
    excess = 1.0
    try:
        times, x = begin(scheduler, steps, strength, clean if strength < 1 else None, normal())
        signal, level = process.levels(times)  # each (T, 1, 1, 1)
        usual = (level**2 + (signal * error) ** 2).sqrt()
        for place, time in enumerate(times):
            shown = as_model_sees(scheduler, x, time)
            excess = max(excess, float((shown - signal[place] * clean).std() / usual[place]))
            predicted = clean + error * normal()
            output = process.for_scheduler(predicted, shown, time.expand(1))
            x = take_step(scheduler, output, time, x, [generator])
    except Exception as raised:  # diffusers' schedulers index beyond their tables, divide by zero, ...
        return f"it raises {type(raised).__name__}: {one_line(raised)[:100]}"
    miss = float((x - clean).square().mean().sqrt())
    return miss, excess if math.isfinite(miss) else math.inf


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def begin(
    scheduler: Any, steps: int, strength: float, source: Tensor | None, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Timesteps to visit (T,), and the noisy maps (B, C, H, W) to start from.

    With a clean `source` (B, C, H, W) the last `strength` of the steps are taken from it with noise on top
    (SDEdit, arXiv 2108.01073); without, all of them from `noise`.
    """
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{type(scheduler).__name__} cannot take {steps} steps: {error}") from None
    times: Tensor = scheduler.timesteps
    if source is None:
        return times, noise * getattr(scheduler, "init_noise_sigma", 1.0)
    order = getattr(scheduler, "order", 1)
    first = max(0, steps - max(1, round(steps * strength))) * order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    at = times[first : first + 1].repeat(len(source))
    mixed: Tensor
    if hasattr(scheduler, "scale_noise"):
        mixed = scheduler.scale_noise(source, at, noise)
    else:
        mixed = scheduler.add_noise(source, noise, at)
    return times[first:], mixed


def as_model_sees(scheduler: Any, x: Tensor, time: Tensor) -> Tensor:
    """Maps in the scheduler's own scale to the scale the network was trained on."""
    if not hasattr(scheduler, "scale_model_input"):
        return x
    scaled: Tensor = scheduler.scale_model_input(x, time)
    return scaled


def take_step(
    scheduler: Any, output: Tensor, time: Tensor, x: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """The maps after one step; a scheduler that draws noise draws it from each image's generator."""
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": list(generators)} if "generator" in accepted else {}
    stepped: Tensor = scheduler.step(output, time, x, return_dict=False, **extra)[0]
    return stepped


def _settings(cls: type, noise: AnyNoise) -> dict[str, Any] | None:
    """What makes the class fit the noise; None when it cannot."""
    if "Inverse" in cls.__name__ or not hasattr(cls, "step"):  # from images to noise
        return None
    accepted = inspect.signature(cls).parameters
    step = inspect.signature(cls.step).parameters
    asked = [name for name, one in step.items() if one.default is one.empty and one.kind != one.VAR_KEYWORD]
    if asked != ["self", "model_output", "timestep", "sample"]:  # it steps through something else
        return None
    if isinstance(noise, FlowNoise):
        if cls.__name__.startswith("FlowMatch"):
            return {"num_train_timesteps": TIMES, "shift": noise.shift}
        if {"use_flow_sigmas", "flow_shift", "prediction_type"} <= set(accepted):
            return {
                "num_train_timesteps": TIMES,
                "use_flow_sigmas": True,
                "flow_shift": noise.shift,
                "prediction_type": "flow_prediction",
            }
        return None
    if isinstance(noise, MeanFlowNoise) or not {"beta_schedule", "beta_start", "prediction_type"} <= set(
        accepted
    ):
        return None
    wanted = {
        "num_train_timesteps": TIMES,
        "beta_schedule": noise.beta_schedule,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "prediction_type": "epsilon",
        "clip_sample": False,
        # Stable Diffusion ends at the noise of time 0, 1 to 3 % of x_0's range; here the last step is x_0
        "set_alpha_to_one": noise.spacing == "trailing",
        "timestep_spacing": noise.spacing,
        "steps_offset": 1 if noise.spacing == "leading" else 0,
    }
    return {name: value for name, value in wanted.items() if name in accepted}


def fitting(noise: AnyNoise) -> tuple[str, ...]:
    """Names of some schedulers for this noise; none for MeanFlow."""
    if isinstance(noise, MeanFlowNoise):
        return ()
    if isinstance(noise, FlowNoise):
        return ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler")
    return ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


def _some(noise: AnyNoise) -> str:
    *first, last = fitting(noise)
    return f"{', '.join(first)} or {last}"
