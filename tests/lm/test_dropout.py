"""Dropout is there in training, gone in evaluation, and refused where it would do nothing."""

import pytest
import torch

from pictish.lm.dropout import add_hidden_dropout, set_attention_dropout
from tests.lm.tiny import tiny_model


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("llama", "eager"), ("llama", "sdpa"), ("qwen3", "eager"), ("gemma2", None)],
)
@pytest.mark.parametrize("install", [set_attention_dropout, add_hidden_dropout])
def test_it_changes_what_a_model_says_in_training_only(architecture, attention, install):
    ids = torch.arange(3, 20)[None]
    model = tiny_model(architecture, 40, dtype=torch.float32, attention=attention)
    with torch.no_grad():
        plain = model(ids).logits
        install(model, 0.3)
        assert torch.equal(model(ids).logits, plain)
        model.train()
        torch.manual_seed(0)
        first, second = model(ids).logits, model(ids).logits
        torch.manual_seed(0)
        assert torch.equal(model(ids).logits, first), "a function of the seed"
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, plain, atol=1e-3)


def test_hidden_dropout_keeps_the_mean():
    torch.manual_seed(0)
    model = tiny_model("llama", 40, dtype=torch.float32)
    block = model.model.layers[0].mlp
    add_hidden_dropout(model, 0.25)
    states = torch.randn(64, 32, 32)
    with torch.no_grad():
        whole, dropped = block.eval()(states), block.train()(states)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(dropped[dropped != 0], whole[dropped != 0] / 0.75, rtol=1e-5)


def test_an_architecture_that_has_it_by_other_names_is_refused():
    model = tiny_model("gpt2", 40)
    with pytest.raises(ValueError, match="attention_dropout: not known how gpt2 has it; give"):
        set_attention_dropout(model, 0.1)
