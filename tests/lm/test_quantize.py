"""Weight-only quantization: smaller, nearly the same logits, and refusals in a line."""

import pytest
import torch

from pictish.lm.quantize import quantize, size_of
from tests.lm.tiny import tiny_model

pytest.importorskip("torchao")


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_int8_is_smaller_and_says_nearly_the_same(architecture, tied):
    model = tiny_model(architecture, 300, tied=tied, dtype=torch.float32)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
        found = quantize(model, "int8")
        after = model(ids).logits
    assert found.layers == 14 + (not tied), "a head that shares the table's weights stays"
    assert found.after == size_of(model) < found.before
    assert not torch.equal(before, after)
    assert (before - after).abs().mean() < 0.05 * before.abs().mean()
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ValueError, match="int4 needs a GPU; on a CPU int8 would fit"):
        quantize(tiny_model("llama", 50, dtype=torch.float32), "int4")
    with pytest.raises(ValueError, match="no linear layer that fits"):
        quantize(torch.nn.Embedding(3, 4), "int8")
