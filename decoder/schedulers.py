"""Any diffusers scheduler by name, set up for a decoder's noise; their differences end here."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pictish.decoder.config import AnyNoise, FlowNoise, MeanFlowNoise
from pictish.decoder.noise import TIMES


def check_scheduler(name: str | None, noise: AnyNoise) -> None:
    """ValueError as of `build_scheduler`; MeanFlow needs none."""
    if name is not None or not isinstance(noise, MeanFlowNoise):
        build_scheduler(name, noise)


def build_scheduler(name: str | None, noise: AnyNoise) -> Any:
    """diffusers' scheduler class `name` for this noise.

    Raises ValueError when there is none of that name, or when it is for another kind of noise.
    """
    if isinstance(noise, MeanFlowNoise):
        raise ValueError(f"scheduler {name}: noise of kind meanflow is sampled without one; leave it away")
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
    return cls(**settings)


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
    """The maps after one step; a scheduler that draws noise draws it from each picture's generator."""
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": list(generators)} if "generator" in accepted else {}
    stepped: Tensor = scheduler.step(output, time, x, return_dict=False, **extra)[0]
    return stepped


def _settings(cls: type, noise: AnyNoise) -> dict[str, Any] | None:
    """What makes the class fit the noise; None when it cannot."""
    if "Inverse" in cls.__name__ or not hasattr(cls, "step"):  # from pictures to noise
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
        "set_alpha_to_one": False,
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
