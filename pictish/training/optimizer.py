"""AdamW with decay on matrices only."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn


def adamw(
    module_or_named_params: nn.Module | Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    no_decay: Sequence[str] = (),
) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient, fused where torch can.

    Parameters of two axes or more are decayed; biases and norms are not, nor names that match a pattern of
    `no_decay` such as `"*.position"`. ValueError if a pattern matches nothing or nothing is trainable.
    """
    if isinstance(module_or_named_params, nn.Module):
        module_or_named_params = module_or_named_params.named_parameters()
    named = [(name, parameter) for name, parameter in module_or_named_params if parameter.requires_grad]
    if not named:
        raise ValueError("adamw: no parameter requires a gradient")
    for pattern in no_decay:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise ValueError(f"adamw: no_decay pattern {pattern!r} matches none of {len(named)} parameters")
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named:
        excluded = parameter.ndim < 2 or any(fnmatchcase(name, pattern) for pattern in no_decay)
        (plain if excluded else decayed).append((name, parameter))
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, weight_decay), (plain, 0.0))
        if group
    ]
    fused = all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for _, parameter in named
    )
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def parameter_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters of an optimizer made by `adamw`, in the order of its groups."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]
