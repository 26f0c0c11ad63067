"""Tiny shards of images, dialogues and videos, and a tiny model that sees them."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pictish.data.shards import ShardFile
from pictish.lm.config import NewModel
from pictish.lm.dialogue import add_turns
from pictish.lm.model import UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.vision.config import TilesConfig, TransformersTower, VisionConfig
from tests.lm.tiny import tiny_tokenizer

TOWER = TransformersTower(
    architecture="siglip_vision_model",
    settings={
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "vision_use_head": False,
    },
)
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}


def noise(seed: int, width: int = 20, height: int = 12) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(seed: int, width: int = 20, height: int = 12) -> bytes:
    stream = io.BytesIO()
    noise(seed, width, height).save(stream, "png")
    return stream.getvalue()


def seeing_model() -> UnifiedModel:
    """A masked one with tiles, a chat template and no codes."""
    from pictish.lm.config import MaskedForm

    words = tiny_tokenizer()
    add_turns(words)
    base = NewModel(architecture="llama", settings=LLAMA)
    vision = VisionConfig(tower=TOWER, tiles=TilesConfig(wide=3, high=3))
    model = new_model(base, words, None, features=False, seed=0, masked=MaskedForm(), vision=vision)
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter.mul_(4)  # so that its logits differ
    return model.eval()


def write_stages(folder: Path) -> None:
    """`pairs`, `single`, `several` and `reasoning`, a shard each, as configs/tiny/lladav.yaml names them."""
    turns = [{"role": "user", "content": [{"image": "a.png"}, {"text": "\nWhat is it?"}]}]
    turns += [{"role": "assistant", "content": "Noise."}, {"role": "user", "content": "Of which kind?"}]
    turns += [{"role": "assistant", "content": "White noise."}]
    both = [{"image": "a.png"}, {"text": " or "}, {"image": "b.png"}, {"text": "?"}]
    two = [{"role": "user", "content": both}, {"role": "assistant", "content": "The first."}]
    video = [
        {"role": "system", "content": "You watch."},
        {"role": "user", "content": [{"video": ["a.png", "b.png"]}, {"text": "\nWhat moves?"}]},
        {"role": "assistant", "content": "Nothing."},
    ]
    kinds = {"single": [turns], "several": [two, video], "reasoning": [turns]}
    with _shard(folder, "pairs") as shard:
        for number in range(6):
            shard.write(f"{number}", {"png": png(number), "txt": f"noise number {number}".encode()})
    for kind, dialogues in kinds.items():
        with _shard(folder, kind) as shard:
            for number in range(6):
                facts = json.dumps({"messages": dialogues[number % len(dialogues)]}).encode()
                shard.write(f"{number}", {"a.png": png(number), "b.png": png(number + 9), "json": facts})


def _shard(folder: Path, kind: str) -> ShardFile:
    (folder / kind).mkdir()
    return ShardFile(folder / kind / "0.tar")
