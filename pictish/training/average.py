"""An exponential moving average of weights, by diffusers' EMAModel."""

import contextlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pictish.training.sharding import local, sharded_like
from pictish.training.stored import read_like

PREFIX = "average."


class Average:
    """The average of a module's trained parameters; with `decay` 0 there is none, and nothing happens.

    `names`: of which parameters, where others are trained at other times. Of a sharded module each process
    averages its own rows.
    """

    def __init__(self, module: nn.Module, decay: float, names: Collection[str] | None = None) -> None:
        self._named = [
            (name, p)
            for name, p in module.named_parameters()
            if (p.requires_grad if names is None else name in names)
        ]
        self._ema = None
        if decay:
            from diffusers.training_utils import EMAModel

            # its warm-up: the average of the first steps would else be made of random weights
            self._ema = EMAModel(self._own(), decay=decay, foreach=True)

    def update(self) -> None:
        """Take in the weights after a step."""
        if self._ema is not None:
            self._ema.step(self._own())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        if self._ema is None:
            yield
            return
        parameters = self._own()
        self._ema.store(parameters)
        self._ema.copy_to(parameters)
        try:
            yield
        finally:
            self._ema.restore(parameters)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: each average as `average.NAME`, and how many steps it has seen."""
        if self._ema is None:
            return {}
        found = {f"{PREFIX}steps": torch.tensor(self._ema.optimization_step)}
        for (name, p), shadow in zip(self._named, self._ema.shadow_params, strict=True):
            found[PREFIX + name] = sharded_like(shadow, p) if isinstance(p, DTensor) else shadow
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; other names are left alone."""
        if self._ema is None:
            return
        for (name, p), shadow in zip(self._named, self._ema.shadow_params, strict=True):
            shadow.copy_(local(read_like(tensors, f"{PREFIX}{name}", p)))
        self._ema.optimization_step = int(tensors[f"{PREFIX}steps"])

    def _own(self) -> list[nn.Parameter]:
        """The parameters, or the rows of them that this process holds, in the same memory.

        As parameters that require a gradient: EMAModel copies frozen ones instead of averaging them.
        """
        return [nn.Parameter(local(p)) for _, p in self._named]
