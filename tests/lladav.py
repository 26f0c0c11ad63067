"""Checkpoints in LLaDA's and LLaDA-V's layout with random weights, tiny: what their files hold, spelt out."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.lm.tiny import tiny_tokenizer

WIDTH, HIDDEN, HEADS, LAYERS, ROWS = 32, 48, 4, 2, 320
SIGHT, SIGHT_HIDDEN, SIGHT_HEADS, SIGHT_LAYERS, SIDE, PATCH = (
    16,
    24,
    2,
    3,
    18,
    4,
)
TOWER = "model.vision_tower.vision_tower.vision_model."
MARKS = ("<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|startoftext|>")

Tensors = dict[str, torch.Tensor]


def words() -> PreTrainedTokenizerFast:
    """A text tokenizer with LLaDA's marks behind its pieces."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True
    )
    tokenizer.bos_token = MARKS[-1]
    return tokenizer


def language_tensors(seed: int = 0) -> Tensors:
    """Those of a LLaDA in a Llama's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (ROWS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (ROWS, WIDTH),
    }
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"}
        shapes |= {f"{layer}.mlp.{p}_proj.weight": (HIDDEN, WIDTH) for p in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        shapes |= {f"{layer}.{p}_layernorm.weight": (WIDTH,) for p in ("input", "post_attention")}
    return drawn(shapes, seed)


def original(tensors: Tensors) -> Tensors:
    """The same in LLaDA's own names."""
    parts = {
        "embed_tokens.": "transformer.wte.",
        "model.norm.": "model.transformer.ln_f.",
        "lm_head.": "model.transformer.ff_out.",
        "layers.": "transformer.blocks.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm",
        "self_attn.o_proj": "attn_out",
        "self_attn.": "",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def projector_tensors(seed: int = 1) -> Tensors:
    """The projector alone."""
    start = "model.mm_projector"
    shapes = {f"{start}.0.weight": (WIDTH, SIGHT), f"{start}.0.bias": (WIDTH,)}
    return drawn({**shapes, f"{start}.2.weight": (WIDTH, WIDTH), f"{start}.2.bias": (WIDTH,)}, seed)


def tower_tensors(start: str = TOWER, layers: int = SIGHT_LAYERS - 1, seed: int = 2) -> Tensors:
    """A SigLIP tower."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (SIGHT, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (SIGHT,),
        "embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2, SIGHT),
        "post_layernorm.weight": (SIGHT,),
        "post_layernorm.bias": (SIGHT,),
    }
    for n in range(layers):
        layer = f"encoder.layers.{n}"
        both = {f"self_attn.{p}_proj": (SIGHT, SIGHT) for p in ("q", "k", "v", "out")}
        both |= {"mlp.fc1": (SIGHT_HIDDEN, SIGHT), "mlp.fc2": (SIGHT, SIGHT_HIDDEN)}
        both |= {"layer_norm1": (SIGHT,), "layer_norm2": (SIGHT,)}
        for part, shape in both.items():
            shapes |= {f"{layer}.{part}.weight": shape, f"{layer}.{part}.bias": shape[:1]}
    return {start + name: tensor for name, tensor in drawn(shapes, seed).items()}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.randn(shape, generator=generator) / shape[-1] ** 0.5 + ("norm" in name)
        return tensor.to(torch.bfloat16)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def write_llada(folder: Path, *, theirs: bool = True) -> None:
    """A LLaDA in two shards with an index, in its own names or a Llama's."""
    tensors = language_tensors()
    config = {
        "model_type": "llada",
        "d_model": WIDTH,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "n_layers": LAYERS,
        "mlp_hidden_size": HIDDEN,
        "vocab_size": ROWS,
        "embedding_size": ROWS,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_sequence_length": 256,
        "weight_tying": False,
        "mask_token_id": mask_id(),
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    }
    if not theirs:
        config = {"num_attention_heads": HEADS, "max_position_embeddings": 256}
    _write(folder, original(tensors) if theirs else tensors, config)


def write_lladav(folder: Path, *, tower: bool = True) -> None:
    """A LLaDA-V with all parts, or without its tower."""
    tensors = {**language_tensors(), **projector_tensors()}
    tensors |= drawn({"model.image_newline": (WIDTH,)}, 3)
    _write(folder, tensors | (tower_tensors() if tower else {}), lladav_config())


def lladav_config() -> dict:
    return {
        "model_type": "llava_llada",
        "num_attention_heads": HEADS,
        "max_position_embeddings": 256,
        "rope_theta": 500000,
        "rms_norm_eps": 1e-5,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "google/siglip2-so400m-patch14-384",
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres_max_4",
        "mm_newline_position": "grid",
        "mm_vision_heads": SIGHT_HEADS,
        "image_grid_pinpoints": [[SIDE * x, SIDE * y] for x in (1, 2, 3) for y in (1, 2, 3)],
    }


def write_tower(folder: Path) -> None:
    """A download of SigLIP, text tower and head included; it has one layer more than is read."""
    folder.mkdir(parents=True)
    more = {"text_model.final_layer_norm.weight": (SIGHT,), "logit_scale": (1,)}
    more["vision_model.head.probe"] = (1, 1, SIGHT)
    tensors = tower_tensors("vision_model.", SIGHT_LAYERS) | drawn(more, 4)
    save_file(tensors, folder / "model.safetensors")
    vision = {"num_attention_heads": SIGHT_HEADS, "image_size": SIDE}
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": vision}))


def write_stage_1(folder: Path) -> None:
    """What stage 1 leaves: the projector in a .bin, and settings."""
    folder.mkdir(parents=True)
    torch.save(projector_tensors(), folder / "mm_projector.bin")
    (folder / "config.json").write_text(json.dumps(lladav_config()))


def mask_id() -> int:
    return words().convert_tokens_to_ids(MARKS[0])


def _write(folder: Path, tensors: Tensors, config: dict) -> None:
    folder.mkdir(parents=True)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    places = {name: file for file, own in shards.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))
    words().save_pretrained(folder)
