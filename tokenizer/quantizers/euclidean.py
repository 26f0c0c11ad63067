"""The codebook of LaVIT's released weights (arXiv 2309.04669): nearest raw row by squared distance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import EuclideanConfig


class EuclideanQuantizer(Quantizer):
    """Vectors are brought to unit length, rows are taken as they are stored; nothing is learned here."""

    codebook: Tensor

    def __init__(self, config: EuclideanConfig):
        super().__init__()
        self.codes, self.dim = config.codes, config.dim
        self.register_buffer("codebook", torch.zeros(config.codes, config.dim))

    def _quantize(self, vectors: Tensor) -> Quantized:
        unit = self.normalise(vectors)
        rows = self.codebook.float()
        ids = (rows.square().sum(1) - 2 * unit @ rows.T).argmin(dim=1)  # |unit| is the same for all rows
        return Quantized(rows[ids], ids, vectors.new_zeros(()))

    def decode(self, ids: Tensor) -> Tensor:
        return self.codebook[ids]

    def normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)
