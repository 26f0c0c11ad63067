"""Weight-only quantization: smaller, nearly the same logits, and refusals in a line."""

import pytest
import torch

from pictish.lm.quantize import quantize, size_of
from tests.lm.tiny import tiny_model


@pytest.mark.parametrize(("bits", "off"), [("int8", 0.05), ("int4", 0.4)])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_smaller_and_says_nearly_the_same(architecture, tied, bits, off):
    model = tiny_model(architecture, 304, tied=tied, dtype=torch.float32)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
        found = quantize(model, bits)
        after = model(ids).logits
    fits = 14 if bits == "int8" else 12  # 48 numbers of a row are no multiple of 32
    assert found.layers == fits + (not tied), "a head that shares the table's weights stays"
    assert found.after == size_of(model) < found.before
    assert not torch.equal(before, after)
    assert (before - after).abs().mean() < off * before.abs().mean()
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_int4_leaves_out_what_its_kernel_does_not_take():
    model = tiny_model("llama", 300, dtype=torch.float32)  # a head of 300 rows, no multiple of 16
    assert quantize(model, "int4").layers == 12
    assert model(torch.arange(9)[None]).logits.shape == (1, 9, 300)


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ValueError, match="no linear layer that fits"):
        quantize(torch.nn.Embedding(3, 4), "int8")
