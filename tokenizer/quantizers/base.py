"""The one interface of all quantizers; the library's differing shapes and returns end here.

Legend: M vectors, C code dimension.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pictish.training.process_group import ProcessGroup


class Quantized(NamedTuple):
    """What a quantizer gives: `vectors` (M, C), `ids` (M,) int64, `loss` a scalar (0 outside training)."""

    vectors: Tensor
    ids: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Maps vectors to the entries of a codebook of `codes` entries of `dim` numbers.

    Always in float32, whatever the autocast: under bf16 up to 3 % of the ids change.
    """

    codes: int
    dim: int

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize `vectors` (M, C)."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self._quantize(vectors.float())

    @abstractmethod
    def _quantize(self, vectors: Tensor) -> Quantized: ...

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """Codebook entries (..., C) of `ids` (...)."""

    @abstractmethod
    def normalise(self, vectors: Tensor) -> Tensor:
        """Bring unquantized `vectors` (M, C) to where codes lie: what unquantized training passes on."""

    def start(self, vectors: Tensor) -> None:
        """Place the codes among `vectors` (M, C), on all processes the same ones, before the first step."""

    def set_process_group(self, process_group: ProcessGroup) -> None:
        """From here on what is learned in the forward pass is learned from the vectors of all processes."""
