"""The names of a released IAA checkpoint (Inner-Adaptor Architecture, arXiv 2408.12902), and ours for them.

One set of files holds a Llama, two adaptors beside it and a CLIP tower. Written from a description of the
files, not from IAA's code; misspelt names are the released ones.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from transformers import CLIPVisionConfig, LlamaConfig

from pictish.data.importing import Meta, Shape
from pictish.lm.adaptors import check_points, default_points
from pictish.lm.lavit import llama_shapes

Which = Literal["general", "grounding"]
TOWER = "model.vision_tower.vision_tower.vision_model."
RECOMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")  # in old files; transformers makes them anew


class AdaptorNames(NamedTuple):
    """What an adaptor's parts are called in the checkpoint."""

    table: str
    layers: str
    norm: str
    head: str
    projector: str


ADAPTORS: dict[Which, AdaptorNames] = {
    "general": AdaptorNames(
        "model.embed_tokens_condition",
        "model.condition_layers",
        "model.norm_condition",
        "lm_head_condtion",
        "model.mm_projector",
    ),
    "grounding": AdaptorNames(
        "model.embed_tokens_condition_grounding",
        "model.condition_layers_grounding",
        "model.norm_condition_grounding",
        "lm_head_condtion_grounding",
        "model.mm_projector_G",
    ),
}


class Entry(NamedTuple):
    """Our name of a tensor, and its shape."""

    name: str
    shape: Shape


def base_entries(config: LlamaConfig) -> dict[str, Entry]:
    """Of the language model, by official name; its own names are transformers'."""
    return {name: Entry(name, shape) for name, shape in llama_shapes(config).items()}


def adaptor_entries(which: Which, layers: int, config: LlamaConfig, features: int) -> dict[str, Entry]:
    """Weights of an adaptor with `layers` insertion layers, whose projector reads `features` channels."""
    names, width = ADAPTORS[which], config.hidden_size
    shapes = llama_shapes(config)
    one = {n.removeprefix("model.layers.0."): s for n, s in shapes.items() if n.startswith("model.layers.0.")}
    found = {
        f"{names.table}.weight": Entry("table.weight", (config.vocab_size, width)),
        f"{names.norm}.weight": Entry("norm.weight", (width,)),
        f"{names.head}.weight": Entry("head.weight", (config.vocab_size, width)),
    }
    for place, channels in ((0, features), (2, width)):
        shapes_of: dict[str, Shape] = {"weight": (width, channels), "bias": (width,)}
        for kind, shape in shapes_of.items():
            found[f"{names.projector}.{place}.{kind}"] = Entry(f"projector.body.{place}.{kind}", shape)
    for layer in range(layers):
        for name, shape in one.items():
            found[f"{names.layers}.{layer}.{name}"] = Entry(f"layers.{layer}.{name}", shape)
    return found


def tower_entries(config: CLIPVisionConfig) -> dict[str, Entry]:
    """Of the CLIP tower; ours are the names of a transformers folder."""
    width, hidden = config.hidden_size, config.intermediate_size
    sides: tuple[Any, Any] = config.image_size, config.patch_size  # numbers, as `tower_config` makes them
    patch: int = sides[1]
    cells = (sides[0] // patch) ** 2
    shapes: dict[str, Shape] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (cells + 1, width),
    }
    shapes |= _with_biases({f"{norm}.weight": (width,) for norm in ("pre_layrnorm", "post_layernorm")})
    for n in range(config.num_hidden_layers):
        layer = f"encoder.layers.{n}"
        matrices: dict[str, Shape] = {
            f"{layer}.self_attn.{name}.weight": (width, width)
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        }
        matrices |= {f"{layer}.layer_norm{number}.weight": (width,) for number in (1, 2)}
        matrices |= {f"{layer}.mlp.fc1.weight": (hidden, width), f"{layer}.mlp.fc2.weight": (width, hidden)}
        shapes |= _with_biases(matrices)
    return {TOWER + name: Entry(name, shape) for name, shape in shapes.items()}


def _with_biases(shapes: dict[str, Shape]) -> dict[str, Shape]:
    biases = {f"{name.removesuffix('weight')}bias": shape[:1] for name, shape in shapes.items()}
    return {**shapes, **biases}


def insertion_layers(names: Iterable[str], which: Which) -> int:
    """How many insertion layers of an adaptor there are among the tensors' names."""
    start = f"{ADAPTORS[which].layers}."
    return len({name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start)})


def points_of(count: int, layers: int, points: tuple[int, ...] | None) -> tuple[int, ...]:
    """Where `count` insertion layers stand, which no file says; ValueError unless it is known or given.

    Known is the released form, two of every five base layers: 14 in a base of 32.
    """
    found = default_points(layers) if points is None else points
    check_points(found, layers)
    if len(found) != count:
        raise ValueError(
            f"{count} insertion layers, and {len(found)} points of a base of {layers} layers "
            f"{'by default' if points is None else 'given'}; no file says where they are: give {count}"
        )
    return found


def tower_config(tensors: dict[str, Meta], heads: int | None) -> CLIPVisionConfig:
    """CLIP's sizes, which the checkpoint tells by its shapes alone; `heads`: by default of 64 channels each.

    ValueError where the tensors that tell them are missing.
    """
    told = [
        f"{TOWER}embeddings.patch_embedding.weight",
        f"{TOWER}embeddings.position_embedding.weight",
        f"{TOWER}encoder.layers.0.mlp.fc1.weight",
    ]
    if missing := [name for name in told if name not in tensors]:
        raise ValueError(f"no CLIP tower, {missing[0]} is missing")
    patches, positions, mlp = (tensors[name].shape for name in told)
    side = round((positions[0] - 1) ** 0.5)
    if len(patches) != 4 or side * side + 1 != positions[0]:
        raise ValueError(f"no CLIP tower: patches {patches}, positions {positions}")
    layers = {
        n.removeprefix(f"{TOWER}encoder.layers.").partition(".")[0] for n in tensors if n.startswith(TOWER)
    }
    width, heads = patches[0], heads or max(1, patches[0] // 64)
    if width % heads:
        raise ValueError(f"{heads} heads do not divide CLIP's width {width}; give others with --heads")
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp[0],
        patch_size=patches[-1],
        image_size=side * patches[-1],
        num_hidden_layers=sum(name.isdecimal() for name in layers),
        num_attention_heads=heads,
    )


def llama_config(raw: Any) -> LlamaConfig:
    """The base's settings from the checkpoint's, which call the whole `IAA`; ValueError for anything else."""
    if not isinstance(raw, dict) or str(raw.get("model_type", "")).lower() not in ("iaa", "llama"):
        raise ValueError("the settings of an IAA were expected, model_type is another")
    foreign = ("model_type", "architectures", "auto_map", "_name_or_path", "transformers_version")
    kept = {
        name: value
        for name, value in raw.items()
        if name not in foreign and not name.startswith(("mm_", "tune_", "image_", "tokenizer_", "use_mm"))
    }
    config = LlamaConfig(**kept)
    if config.attention_bias or config.mlp_bias or config.tie_word_embeddings:
        raise ValueError("biases or a tied head, which no IAA has")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(f"{config.num_attention_heads} heads do not divide {config.hidden_size}")
    config.architectures = ["LlamaForCausalLM"]
    return config
