"""Finite scalar quantization (arXiv 2309.15505)."""

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import FSQConfig


class FSQQuantizer(Quantizer):
    """Rounds dimension i to `levels[i]` values; no codebook to learn or to lose, no loss of its own."""

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.codes, self.dim = config.codes, len(config.levels)
        self.fsq = FSQ(levels=list(config.levels))

    def _quantize(self, vectors: Tensor) -> Quantized:
        quantized, ids = self.fsq(vectors[None])
        return Quantized(quantized[0], ids[0].long(), vectors.new_zeros(()))

    def decode(self, ids: Tensor) -> Tensor:
        return self.fsq.indices_to_codes(ids.reshape(1, -1)).reshape(*ids.shape, self.dim)

    def normalise(self, vectors: Tensor) -> Tensor:
        return torch.tanh(vectors)
