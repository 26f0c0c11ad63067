"""Tiny causal LMs of four architectures with random weights, and a tiny byte-level BPE tokenizer."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pictish.lm.model import ImageTokens, Projector, UnifiedModel
from pictish.lm.vocabulary import widen

ARCHITECTURES = ("llama", "qwen3", "gpt2")
CAPTIONS = [
    "a red apple on a table",
    "two green pears",
    "a blue car beside a red house",
    "the sun over the sea",
]


def tiny_model(
    architecture: str,
    rows: int,
    *,
    tied: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    attention: str | None = None,
) -> PreTrainedModel:
    """A model of `rows` ids, width 32, in eval mode; weights large enough for its logits to differ.

    `attention` is transformers' `attn_implementation`; None: the architecture's own choice.
    """
    shared = {
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": attention,
    }
    blocks = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match architecture:
            case "llama":
                model = LlamaForCausalLM(LlamaConfig(**shared, **blocks))
            case "qwen3":
                model = Qwen3ForCausalLM(Qwen3Config(**shared, **blocks))
            case "gpt2":
                model = GPT2LMHeadModel(GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=128))
            case "gemma2":
                model = Gemma2ForCausalLM(Gemma2Config(**shared, **blocks))
            case _:
                raise AssertionError(architecture)
    return model.to(dtype).eval()


def tiny_tokenizer(size: int = 280) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<pad>` 0, `<bos>` 1 and `<eos>` 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def tiny_unified(
    architecture: str, features: int = 0, attention: str | None = None, cells: int | None = None
) -> UnifiedModel:
    """A tiny model of 30 codes, with a projector where there are `features`, and skips where `cells`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, len(tokenizer), dtype=torch.float32, attention=attention)
    widen(model, tokenizer, 30, cells=cells, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        projector = Projector(features, model.get_input_embeddings().weight.shape[1]) if features else None
    return UnifiedModel(model, tokenizer, ImageTokens("0" * 12, 30, 16, features, cells), projector)
