"""Weight-only quantization of a language model's linear layers, by torchao.

int8 has a scale for each row of a matrix, int4 one for each 32 numbers of a row, and a GPU: torchao has no
int4 kernel for a CPU. Embeddings, norms and a head that shares the embedding's weights stay as they are, and
so does the image tokenizer, whose codes must not change.
"""

import logging
from typing import Literal, NamedTuple

from torch import nn

Bits = Literal["int8", "int4"]
GROUP = 32
_LOG = logging.getLogger(__name__)


class Quantized(NamedTuple):
    """What became of a model."""

    layers: int  # that were quantized
    before: int  # bytes of all parameters
    after: int


def size_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each counted once."""
    return sum(_bytes(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _bytes(tensor: object) -> int:
    names = getattr(tensor, "tensor_data_names", None)  # a quantized tensor is made of several
    if names is None:
        return tensor.numel() * tensor.element_size()  # type: ignore[attr-defined]
    return sum(_bytes(getattr(tensor, name)) for name in names)


def quantize(model: nn.Module, bits: Bits) -> Quantized:
    """Quantize a model's linear layers in place; it can then be computed, not trained nor saved.

    int4 turns the model to bfloat16, which its kernel asks for. ValueError without torchao, for int4 on a
    CPU, and for a model without a linear layer that fits.
    """
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ValueError("--quantize needs torchao: pip install 'pictish[quantize]'") from None
    parameter = next(model.parameters())
    if bits == "int4" and parameter.device.type != "cuda":
        raise ValueError("--quantize int4 needs a GPU; on a CPU int8 would fit")
    before = size_of(model)
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    step = GROUP if bits == "int4" else 1
    chosen = {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) not in shared
        and module.in_features % step == 0
    }
    if not chosen:
        raise ValueError(f"--quantize {bits}: the model has no linear layer that fits")
    if bits == "int8":
        config: object = Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        from torchao.quantization.quantize_.workflows import Int4PackingFormat

        model.bfloat16()
        config = Int4WeightOnlyConfig(
            group_size=GROUP,
            int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
            set_inductor_config=False,
        )
    quantize_(model, config, filter_fn=lambda module, name: id(module) in chosen)
    found = Quantized(len(chosen), before, size_of(model))
    _LOG.info("%s: %d layers, %d bytes instead of %d", bits, found.layers, found.after, found.before)
    return found
