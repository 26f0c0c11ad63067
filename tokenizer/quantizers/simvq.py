"""SimVQ: a frozen random codebook behind one linear map (arXiv 2411.02038)."""

from torch import Tensor
from vector_quantize_pytorch import SimVQ

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import SimVQConfig


class SimVQQuantizer(Quantizer):
    """Nearest code by distance; learning moves all codes at once, so none dies alone."""

    def __init__(self, config: SimVQConfig):
        super().__init__()
        self.codes, self.dim = config.codes, config.dim
        self.simvq = SimVQ(dim=config.dim, codebook_size=config.codes, commitment_weight=config.commitment)

    def _quantize(self, vectors: Tensor) -> Quantized:
        quantized, ids, loss = self.simvq(vectors[None])
        return Quantized(quantized[0], ids[0], loss if self.training else vectors.new_zeros(()))

    def decode(self, ids: Tensor) -> Tensor:
        return self.simvq.indices_to_codes(ids.reshape(1, -1)).reshape(*ids.shape, self.dim)

    def normalise(self, vectors: Tensor) -> Tensor:
        return vectors
