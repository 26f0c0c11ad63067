"""accelerate's settings: those of a run come from its config and options, not from what else is set.

accelerate reads the environment, which its launcher fills, and keeps one state a process, which a host or an
earlier training may have made.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pictish.training.precision import resolve_precision

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_PREFIXES = ("ACCELERATE_", "FSDP_")
_HARMLESS = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL")  # they stay set
_OFF = ("", "0", "false", "no", "off")
# What a run does not follow: values that change nothing, and what to do instead.
_REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        ("", "1"),
        "set data.gradient_accumulation_steps of a language model",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": (("", "none"), "set clip_norm in the config"),
    "ACCELERATE_DYNAMO_BACKEND": (_OFF, "models are not compiled"),
    "ACCELERATE_USE_DEEPSPEED": (_OFF, "give --fsdp to shard weights"),
    "ACCELERATE_USE_MEGATRON_LM": (_OFF, "give --fsdp to shard weights"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_OFF, "give --fsdp to shard weights"),
}
_REFUSED_FSDP: dict[str, tuple[tuple[str, ...], str]] = {
    "FSDP_OFFLOAD_PARAMS": (_OFF, "weights stay on their device"),
    "FSDP_ACTIVATION_CHECKPOINTING": (_OFF, "set checkpointing of a language model"),
    "FSDP_RESHARD_AFTER_FORWARD": (("", "true", "1", "full_shard"), "weights are always resharded"),
    "FSDP_SHARDING_STRATEGY": (("", "1", "full_shard"), "weights, gradients and optimizer state are sharded"),
}


@contextlib.contextmanager
def own_accelerate(device: "torch.device", mixed_precision: str, fsdp: bool) -> Iterator[None]:
    """Inside, accelerate starts afresh; then its states and its environment are again what they were.

    ValueError, naming the variable, where the environment asks for what a run on `device` with this config
    and `fsdp` does not do.
    """
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    check_environment(os.environ, device, mixed_precision, fsdp)
    shared = [kind._shared_state for kind in (AcceleratorState, PartialState, GradientState)]
    states, variables = [dict(state) for state in shared], _variables()
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_device() if begun else None
    for name in variables:
        del os.environ[name]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, before in zip(shared, states, strict=True):
            state.clear()
            state.update(before)
        for name in _variables():
            del os.environ[name]
        os.environ.update(variables)
        if current is not None:
            torch.cuda.set_device(current)


def check_environment(
    environment: Mapping[str, str], device: "torch.device", mixed_precision: str, fsdp: bool
) -> None:
    """ValueError as from `own_accelerate`."""

    def value(name: str) -> str:
        return environment.get(name, "").strip().lower()

    for name, (fitting, instead) in {**_REFUSED, **(_REFUSED_FSDP if fsdp else {})}.items():
        if value(name) not in fitting:
            raise ValueError(f"{name}={environment[name]} is not supported: {instead}, and unset it")
    if value("ACCELERATE_USE_FSDP") not in _OFF and not fsdp:
        raise ValueError("ACCELERATE_USE_FSDP is set, and fsdp is off; give --fsdp (fsdp=True) or unset it")
    if value("ACCELERATE_USE_CPU") not in _OFF and device.type != "cpu":
        raise ValueError(
            f"ACCELERATE_USE_CPU is set, and the device is {device}; give device cpu or unset it"
        )
    named = value("ACCELERATE_TORCH_DEVICE")
    if named and named != str(device) and int(environment.get("WORLD_SIZE", "1")) == 1:
        raise ValueError(
            f"ACCELERATE_TORCH_DEVICE={named}, and the device is {device}; give device {named} or unset it"
        )
    asked, resolved = value("ACCELERATE_MIXED_PRECISION"), resolve_precision(mixed_precision, device)
    if asked not in ("", "no", resolved):
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION={asked}, and mixed_precision of the config is {mixed_precision}; "
            f"set mixed_precision={asked} there or unset it"
        )
    if asked == "no" and resolved != "no":  # the launcher's default
        logger.info("ACCELERATE_MIXED_PRECISION=no gives way to %s, as the config has it", resolved)


def _variables() -> dict[str, str]:
    """accelerate's of the environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PREFIXES) and name not in _HARMLESS
    }
