"""Dropout inside a transformers causal LM while it is trained; nothing of it is saved with the model.

Llama and its kin have dropout of attention weights alone. Dropout of states is added from outside, to what
each attention and MLP block adds to the residual stream; that of embeddings is in `UnifiedModel.embed`.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

BLOCKS = ("self_attn", "mlp")  # what transformers calls them in Llama, Qwen3, Gemma, ...


def set_attention_dropout(language: PreTrainedModel, share: float) -> None:
    """Drop this share of attention weights in training; ValueError where the architecture is not known."""
    found = [module for module in language.modules() if hasattr(module, "attention_dropout")]
    if not found:
        raise ValueError(_refusal("attention_dropout", language))
    for module in found:
        module.attention_dropout = share  # type: ignore[assignment]


def add_hidden_dropout(language: PreTrainedModel, share: float) -> None:
    """Drop this share of what each block adds to the residual stream in training; ValueError as above."""
    found = [module for name, module in language.named_modules() if name.rpartition(".")[2] in BLOCKS]
    if not found:
        raise ValueError(_refusal("hidden_dropout", language))

    def drop(module: nn.Module, given: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return F.dropout(output, share, module.training)
        first, *others = output  # attention also gives its weights
        return F.dropout(first, share, module.training), *others

    for module in found:
        module.register_forward_hook(drop)


def _refusal(name: str, language: PreTrainedModel) -> str:
    kind = language.config.model_type
    return f"{name}: not known how {kind} has it; give {kind}'s own settings in model.base.settings instead"
