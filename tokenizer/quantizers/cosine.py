"""Cosine vector quantization, as LaVIT's authors advise (arXiv 2309.04669; ViT-VQGAN, 2110.04627)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import CosineConfig
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup


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
            sync_codebook=False,  # its way draws other codes on several processes than on one
        )
        self._process_group = SINGLE_PROCESS
        self.vq._codebook.all_reduce_fn = self._add_up
        self.vq._codebook.expire_codes_ = self._revive

    def _quantize(self, vectors: Tensor) -> Quantized:
        # Without this the library would run k-means on whatever it is asked to quantize first.
        assert self.training or self.vq._codebook.initted, "the codebook has no codes yet: call start()"
        quantized, ids, loss = self.vq(vectors[None])
        return Quantized(quantized[0], ids[0], loss.sum())

    def decode(self, ids: Tensor) -> Tensor:
        return self.vq.codebook[ids]

    def normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)

    def set_process_group(self, process_group: ProcessGroup) -> None:
        self._process_group = process_group

    def _add_up(self, own: Tensor) -> None:
        own.copy_(self._process_group.total(own))

    def _revive(self, samples: Tensor, seq_mask: Tensor | None = None) -> None:
        """Dead codes are drawn everywhere alike from the vectors (1, M, C) of all processes."""
        codebook = self.vq._codebook
        type(codebook).expire_codes_(codebook, self._process_group.gathered(samples[0])[None], seq_mask)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        # With fewer vectors than codes the library only logs a warning and makes duplicate codes.
        assert len(vectors) >= self.codes, (
            f"k-means over {len(vectors)} vectors cannot place {self.codes} codes"
        )
        was_training, process_group = self.training, self._process_group
        self.train()
        self._process_group = SINGLE_PROCESS  # all processes have the same vectors
        self._quantize(vectors.float())
        self._process_group = process_group
        self.train(was_training)
