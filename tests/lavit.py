"""A checkpoint in LaVIT's layout with random weights, tiny: what its files hold, spelt out by hand."""

import json
from pathlib import Path

import torch

WIDTH, HEADS, LAYERS, HIDDEN, SIDE, CODES, DIM, WORDS = 32, 2, 2, 70, 8, 40, 6, 24
EVA = "visual_tokenizer/eva_vitg_psz14.bin"
TOKENIZER = "visual_tokenizer/tokenizer_encoder.bin"
HIGHRES = "visual_tokenizer/highres_tokenizer_decoder.bin"
OVERRIDE = "language_model/visual_weight.bin"

Tensors = dict[str, torch.Tensor]


def write_tokenizer(folder: Path, seed: int = 0, *, decoder: bool = True, told: bool = True) -> None:
    """The files of the tokenizer; with `told` a config.json beside the folder tells the heads."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {EVA: eva_shapes(), TOKENIZER: tokenizer_shapes(), OVERRIDE: override_shapes()}
    if decoder:
        shapes[HIGHRES] = decoder_shapes()
    for file, table in shapes.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: draw(name, shape, generator) for name, shape in table.items()}, folder / file)
    if told:
        dims = {"enc_heads": HEADS, "merger_heads": HEADS, "decoder_heads": HEADS}
        (folder.parent / "config.json").write_text(json.dumps({"dims": dims}))


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Sharp attention, scattered scores: codes differ from cell to cell."""
    scale = 8.0 if "out_conv.4" in name else 2.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.2
    tensor = scale * torch.randn(shape, generator=generator) + float("norm" in name and "weight" in name)
    return tensor.to(torch.bfloat16)


def both(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def eva_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, SIDE**2 + 1, WIDTH),
        **both("patch_embed.proj", WIDTH, 3, 14, 14),
        **both("norm", WIDTH),
        **both("head", 5, WIDTH),
    }
    for n in range(LAYERS):
        block = f"blocks.{n}"
        shapes |= {**both(f"{block}.norm1", WIDTH), **both(f"{block}.norm2", WIDTH)}
        shapes |= {f"{block}.attn.q_bias": (WIDTH,), f"{block}.attn.v_bias": (WIDTH,)}
        shapes |= {f"{block}.attn.qkv.weight": (3 * WIDTH, WIDTH), **both(f"{block}.attn.proj", WIDTH, WIDTH)}
        shapes |= {**both(f"{block}.mlp.fc1", HIDDEN, WIDTH), **both(f"{block}.mlp.fc2", WIDTH, HIDDEN)}
    return shapes


def merger_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {**both("causal_encoder.ln_vision", WIDTH), **both("causal_encoder.norm", WIDTH)}
    for n in range(LAYERS):
        shapes |= block_shapes(f"causal_encoder.blocks.{n}", "token_causal_attn", "token_cross_attn")
    return shapes


def block_shapes(block: str, inward: str, outward: str) -> dict[str, tuple[int, ...]]:
    shapes = both(f"{block}.{inward}.qkv", 3 * WIDTH, WIDTH) | both(f"{block}.{inward}.proj", WIDTH, WIDTH)
    for part in ("query", "key", "value", "proj"):
        shapes |= both(f"{block}.{outward}.{part}", WIDTH, WIDTH)
    for n in range(3):
        shapes |= both(f"{block}.norm{n}", WIDTH)
    return shapes | both(f"{block}.mlp.fc1", HIDDEN, WIDTH) | both(f"{block}.mlp.fc2", WIDTH, HIDDEN)


def tokenizer_shapes() -> dict[str, tuple[int, ...]]:
    half, quarter = WIDTH // 2, WIDTH // 4
    return {
        **both("token_predictor.in_conv.0", WIDTH),
        **both("token_predictor.in_conv.1", WIDTH, WIDTH),
        **both("token_predictor.out_conv.0", half, WIDTH),
        **both("token_predictor.out_conv.2", quarter, half),
        **both("token_predictor.out_conv.4", 2, quarter),
        **merger_shapes(),
        "quantize.embedding.weight": (CODES, DIM),
        **both("encode_task_layer.0", WIDTH, WIDTH),
        **both("encode_task_layer.2", DIM, WIDTH),
    }


def override_shapes() -> dict[str, tuple[int, ...]]:
    return {**merger_shapes(), **both("vit_proj", WORDS, WIDTH)}


def decoder_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "pos_embed": (1, SIDE**2, WIDTH),
        "query_embed": (1, SIDE**2, WIDTH),
        **both("in_proj", WIDTH, DIM),
        **both("norm", WIDTH),
        **both("decode_task_layer.0", WIDTH, WIDTH),
        **both("decode_task_layer.2", WIDTH, WIDTH),
        **both("unet_proj_1", 12, WIDTH),
        **both("unet_proj_2", 20, WIDTH),
        "unet_attnpool.positional_embedding": (SIDE**2 + 1, WIDTH),
        **both("unet_attnpool.q_proj", WIDTH, WIDTH),
        **both("unet_attnpool.k_proj", WIDTH, WIDTH),
        **both("unet_attnpool.v_proj", WIDTH, WIDTH),
        **both("unet_attnpool.c_proj", 20, WIDTH),
    }
    for n in range(LAYERS):
        shapes |= block_shapes(f"blocks.{n}", "self_attn", "cross_attn")
    return shapes


def read(path: Path) -> Tensors:
    """The tensors of one of its files."""
    return torch.load(path, weights_only=True)


def change(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a file, or leave them out; `__` in a name stands for a dot."""
    tensors = read(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    torch.save(tensors, path)
