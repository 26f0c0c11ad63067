"""Cosine vector quantization, as LaVIT's authors advise (arXiv 2309.04669; ViT-VQGAN, 2110.04627)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import CosineConfig


class CosineQuantizer(Quantizer):
    """Nearest of `codes` unit vectors; codes follow by EMA, start by k-means, and are revived when dead."""

    def __init__(self, config: CosineConfig):
        super().__init__()
        self.codes, self.dim = config.codes, config.dim
        self.vq = VectorQuantize(
            dim=config.dim,
            codebook_size=config.codes,
            use_cosine_sim=True,
            kmeans_init=True,
            decay=config.decay,
            threshold_ema_dead_code=config.dead_below,
            commitment_weight=config.commitment,
        )

    def _quantize(self, vectors: Tensor) -> Quantized:
        # Without this the library would run k-means on whatever it is asked to quantize first.
        assert self.training or self.vq._codebook.initted, "the codebook has no codes yet: call start()"
        quantized, ids, loss = self.vq(vectors[None])
        return Quantized(quantized[0], ids[0], loss.sum())

    def decode(self, ids: Tensor) -> Tensor:
        return self.vq.codebook[ids]

    def normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        # With fewer vectors than codes the library only logs a warning and makes duplicate codes.
        assert len(vectors) >= self.codes, (
            f"k-means over {len(vectors)} vectors cannot place {self.codes} codes"
        )
        was_training = self.training
        self.train()
        self._quantize(vectors.float())
        self.train(was_training)
