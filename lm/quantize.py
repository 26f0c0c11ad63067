"""Weight-only quantization of a language model's linear layers, by torchao.

int8 has a scale for each row of a matrix, int4 one for each 32 numbers of a row. Embeddings, norms and a head
that shares the embedding's weights stay as they are, and so does the image tokenizer, whose codes must not
change.
"""

import logging
from typing import Literal, NamedTuple

from torch import nn

Bits = Literal["int8", "int4"]
GROUP = 32  # numbers of a row that share a scale of int4
ROWS = 16  # of a matrix that the int4 kernel for CPUs takes at a time
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

    On a GPU int4 turns the model to bfloat16, which its kernel asks for. ValueError without torchao, and for
    a model without a linear layer that fits.
    """
    try:
        from torchao.quantization import quantize_
    except ImportError:
        raise ValueError("--quantize needs torchao: pip install 'pictish[quantize]'") from None
    on_cpu = next(model.parameters()).device.type == "cpu"
    before = size_of(model)
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    inwards, outwards = (GROUP, ROWS if on_cpu else 1) if bits == "int4" else (1, 1)
    chosen = {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) not in shared
        and module.in_features % inwards == 0
        and module.out_features % outwards == 0
    }
    if not chosen:
        raise ValueError(f"--quantize {bits}: the model has no linear layer that fits")
    if bits == "int4" and not on_cpu:
        model.bfloat16()
    config = _config(bits, on_cpu)
    quantize_(model, config, filter_fn=lambda module, name: id(module) in chosen)
    found = Quantized(len(chosen), before, size_of(model))
    _LOG.info("%s: %d layers, %d bytes instead of %d", bits, found.layers, found.after, found.before)
    return found


def _config(bits: Bits, on_cpu: bool) -> object:
    """torchao's settings; its int4 for CPUs is among its prototypes."""
    if bits == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)
    if on_cpu:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    return Int4WeightOnlyConfig(
        group_size=GROUP,
        int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
        set_inductor_config=False,
    )
