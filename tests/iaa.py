"""A tiny checkpoint under the official names of IAA, with made-up weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import CLIPVisionConfig, LlamaConfig

from pictish.lm.iaa import ADAPTORS, Entry, adaptor_entries, base_entries, tower_entries
from pictish.pipelines.dialogue import HEADERS
from tests.lm.tiny import tiny_tokenizer

LAYERS = 3  # of the base; by default two of them have an insertion layer
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 512,
}
CLIP = CLIPVisionConfig(
    hidden_size=64,
    image_size=28,
    patch_size=14,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=1,
)


def entries(vocab_size: int) -> dict[str, Entry]:
    """All tensors of the checkpoint, by official name."""
    config = LlamaConfig(vocab_size=vocab_size, **SIZES)
    found = base_entries(config)
    for which in ADAPTORS:
        found |= adaptor_entries(which, 2, config, CLIP.hidden_size)
    return found | tower_entries(CLIP)


def write_checkpoint(folder: Path, *, without: str = "", extra: str = "", files: int = 1) -> Path:
    """Write it, in several `files` with an index if asked; `without` one tensor, with an `extra` one."""
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in HEADERS], special_tokens=True)
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.3 * torch.randn(entry.shape, generator=generator)
        for name, entry in entries(len(tokenizer)).items()
        if name != without
    }
    tensors |= {extra: torch.zeros(2)} if extra else {}
    settings = {**SIZES, "vocab_size": len(tokenizer), "model_type": "IAA", "mm_hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(settings))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{number % files}.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


class Silent:
    """No progress bar."""

    def begin(self, task: str, total: int) -> None: ...

    def advance(self, steps: int) -> None: ...
