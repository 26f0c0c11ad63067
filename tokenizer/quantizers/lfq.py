"""Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737)."""

from math import log2

import torch
from torch import Tensor
from vector_quantize_pytorch import LFQ

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import LFQConfig


class LFQQuantizer(Quantizer):
    """The signs of log2(codes) numbers, with an entropy term that spreads the codes."""

    def __init__(self, config: LFQConfig):
        super().__init__()
        self.codes, self.dim = config.codes, int(log2(config.codes))
        if 2**self.dim != config.codes:
            raise ValueError(
                f"lfq needs a power of two as its number of codes, got {config.codes}; try {2**self.dim}"
            )
        self.lfq = LFQ(
            codebook_size=config.codes,
            dim=self.dim,
            entropy_loss_weight=config.entropy,
            commitment_loss_weight=config.commitment,
        )

    def _quantize(self, vectors: Tensor) -> Quantized:
        quantized, ids, loss = self.lfq(vectors[None])
        return Quantized(quantized[0], ids[0], loss)

    def decode(self, ids: Tensor) -> Tensor:
        return self.lfq.indices_to_codes(ids.reshape(1, -1)).reshape(*ids.shape, self.dim)

    def normalise(self, vectors: Tensor) -> Tensor:
        return torch.tanh(vectors)
