"""AdamW with decay on matrices only, and Muon for hidden matrices with AdamW for the rest."""

from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


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


def muon(
    module_or_named_params: nn.Module | Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    *,
    matrices: Collection[str],
    no_decay: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """Muon (torch.optim.Muon) over the trained parameters named in `matrices`, `adamw` over all others.

    Its updates are scaled to the size of AdamW's (arXiv 2502.16982), so both take one learning rate and one
    weight decay. Only `adamw` where none of `matrices` is trained. ValueError for sharded parameters.
    """
    if isinstance(module_or_named_params, nn.Module):
        module_or_named_params = module_or_named_params.named_parameters()
    named = [(name, parameter) for name, parameter in module_or_named_params if parameter.requires_grad]
    hidden = [(name, parameter) for name, parameter in named if name in matrices]
    rest = [(name, parameter) for name, parameter in named if name not in matrices]
    if any(isinstance(parameter, DTensor) for _, parameter in hidden):
        raise ValueError("optimizer muon: an update needs a whole matrix, and --fsdp shards it; use adamw")
    parts: list[torch.optim.Optimizer] = []
    if rest or not hidden:
        parts.append(adamw(rest, lr, weight_decay, no_decay=no_decay))
    if hidden:
        settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        parts.append(torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **settings))
    return parts[0] if len(parts) == 1 else Combined(parts)


class Combined(torch.optim.Optimizer):
    """Several optimizers as one, each with its own parameter groups; the state is common."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups = [
            {**group, "params": list(zip(group["param_names"], group["params"], strict=True)), "part": part}
            for part, optimizer in enumerate(parts)
            for group in optimizer.param_groups
        ]
        for group in groups:
            del group["param_names"]
        super().__init__(groups, {})
        self._parts = tuple(parts)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Each part takes its step."""
        loss = None if closure is None else closure()
        for number, part in enumerate(self._parts):
            # anew each time: loading a state replaces groups and state
            part.param_groups = [group for group in self.param_groups if group["part"] == number]
            part.state = self.state
            part.step()
        return loss


def parameter_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters of an optimizer made by `adamw`, in the order of its groups."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]
