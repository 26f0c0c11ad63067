"""AdamW with decay on matrices only, and Muon for hidden matrices and convolutions, AdamW for the rest."""

from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pictish.training.precision import has_bf16

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic iteration that Muon uses


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
    betas: tuple[float, float] = (0.9, 0.95),
    *,
    matrices: Collection[str],
    no_decay: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """`Muon` over the trained parameters named in `matrices`, `adamw` over all others.

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
        parts.append(adamw(rest, lr, weight_decay, betas, no_decay))
    if hidden:
        parts.append(Muon(hidden, lr, weight_decay))
    return parts[0] if len(parts) == 1 else Combined(parts)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (kellerjordan.github.io/posts/muon), scaled as AdamW's updates are.

    torch.optim.Muon does the same for matrices alone, and in bf16, which takes four times as long on a
    processor without units for it. Here such a processor computes in float32, and the weights (out, in, h, w)
    of a convolution are a matrix (out, in h w), as in timm.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "iterations": iterations,
        }
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)  # Nesterov's
                dtype = torch.bfloat16 if has_bf16(parameter.device) else torch.float32
                update = orthogonal(update.to(dtype), group["iterations"])
                scale = 0.2 * max(update.shape) ** 0.5  # the root mean square of AdamW's (arXiv 2502.16982)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)
        return loss


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns, by Newton and Schulz's iteration."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / wide.norm().clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


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
