"""An exponential moving average of weights, by diffusers' EMAModel."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

PREFIX = "average."


class Average:
    """The average of a module's trained parameters; with `decay` 0 there is none, and nothing happens."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._ema = None
        if decay:
            from diffusers.training_utils import EMAModel

            # its warm-up: the average of the first steps would else be made of random weights
            self._ema = EMAModel([p for _, p in self._named], decay=decay, foreach=True)

    def update(self) -> None:
        """Take in the weights after a step."""
        if self._ema is not None:
            self._ema.step([p for _, p in self._named])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        if self._ema is None:
            yield
            return
        parameters = [p for _, p in self._named]
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
        shadows = zip(self._named, self._ema.shadow_params, strict=True)
        steps = torch.tensor(self._ema.optimization_step)
        return {f"{PREFIX}{name}": shadow for (name, _), shadow in shadows} | {f"{PREFIX}steps": steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; other names are left alone."""
        if self._ema is None:
            return
        for (name, _), shadow in zip(self._named, self._ema.shadow_params, strict=True):
            shadow.copy_(tensors[f"{PREFIX}{name}"])
        self._ema.optimization_step = int(tensors[f"{PREFIX}steps"])
