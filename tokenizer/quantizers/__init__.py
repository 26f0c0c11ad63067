"""Vectors to codebook entries: cosine VQ, a fixed codebook, FSQ, LFQ and SimVQ behind one interface."""

from pictish.tokenizer.quantizers.base import Quantized, Quantizer
from pictish.tokenizer.quantizers.config import (
    CosineConfig,
    EuclideanConfig,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    SimVQConfig,
)

__all__ = ["Quantized", "Quantizer", "build_quantizer"]


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config.kind` names."""
    match config:
        case CosineConfig():
            from pictish.tokenizer.quantizers.cosine import CosineQuantizer

            return CosineQuantizer(config)
        case EuclideanConfig():
            from pictish.tokenizer.quantizers.euclidean import EuclideanQuantizer

            return EuclideanQuantizer(config)
        case FSQConfig():
            from pictish.tokenizer.quantizers.fsq import FSQQuantizer

            return FSQQuantizer(config)
        case LFQConfig():
            from pictish.tokenizer.quantizers.lfq import LFQQuantizer

            return LFQQuantizer(config)
        case SimVQConfig():
            from pictish.tokenizer.quantizers.simvq import SimVQQuantizer

            return SimVQQuantizer(config)
