"""LLaDA and LLaDA-V as one of ours: a plain transformers folder, with what it sees through.

Written from a description of the files, not from their code. Names come in two layouts, LLaDA's own and that
of a Llama; a stage-1 file of LLaDA-V holds the projector alone. Sizes are those of the tensors.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pictish.data.importing import Meta, Part, Piece, Shape, Source, weight_files
from pictish.io.files import one_line, read_regular_file, write_atomic
from pictish.io.model_folder import CONFIG, WEIGHTS
from pictish.io.plain_yaml import to_yaml
from pictish.lm.config import DefaultsConfig, MaskedDefaults, MaskedForm, TextFillingConfig
from pictish.lm.dialogue import TEMPLATE
from pictish.lm.lavit import llama_shapes, write_index
from pictish.lm.model import VISION, FolderConfig
from pictish.lm.vision.config import MlpProjector, TilesConfig, TransformersTower, VisionConfig

NEEDED_BY = "pictish describe"
PROJECTOR_FILE = "mm_projector.bin"
PROJECTOR, SEPARATOR = "model.mm_projector.", "model.image_newline"
TOWER = "model.vision_tower.vision_tower.vision_model."
MASKS = ("<|mdm_mask|>", "<|mask|>", "[MASK]")  # what text tokenizers of this family call the mask
LARGEST = 1 << 24  # bytes of a config.json
# One id a step, as published; blocks are added until the turn ends, where the official sampler fills 128.
DEFAULTS = DefaultsConfig(masked=MaskedDefaults(texts=TextFillingConfig(steps=32, block_length=32)))
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # of SigLIP's towers by their width, where no file tells
_PARTS = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "attn_out": "self_attn.o_proj",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_OUTSIDE = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)")
_REST = re.compile(r"model\.transformer\.(\w+)\.(weight|bias)")


def renamed(name: str) -> str:
    """A tensor's name in a Llama's layout; names of LLaDA's own layout are translated, others stay."""
    if (inside := _BLOCK.fullmatch(name)) and inside[2] in _PARTS:
        return f"model.layers.{int(inside[1])}.{_PARTS[inside[2]]}.{inside[3]}"
    if (outside := _REST.fullmatch(name)) and outside[1] in _OUTSIDE:
        return f"{_OUTSIDE[outside[1]]}.{outside[2]}"
    return name


@dataclass(frozen=True)
class LayoutSettings:
    """How LLaDA-V's settings lay pictures out."""

    tiled: bool
    largest: int | None  # views whose cells the tiles may have together
    grids: tuple[tuple[int, int], ...] | None  # (wide, high) in pixels; None: 1 to 6 tiles each way
    pool: int


def layout_settings(raw: Mapping[str, Any]) -> LayoutSettings:
    """The layout that a config.json of LLaDA-V asks for; ValueError for one that is not known here."""
    known = {
        "mm_newline_position": ("grid",),
        "mm_spatial_pool_mode": ("bilinear",),
        "mm_patch_merge_type": ("spatial_unpad", "flat"),
        "mm_use_im_start_end": (False,),
    }
    for key, values in known.items():
        if key in raw and raw[key] not in values:
            raise ValueError(f"{key} is {raw[key]!r}; known here is {' or '.join(map(repr, values))}")
    aspect = raw.get("image_aspect_ratio") or "square"
    anyres = re.fullmatch(r"anyres(?:_max_(\d+))?", str(aspect))
    if anyres is None and aspect not in ("square", "pad"):
        raise ValueError(f"image_aspect_ratio is {aspect!r}; known here are 'square' and 'anyres_max_4'")
    tiled = anyres is not None and raw.get("mm_patch_merge_type", "spatial_unpad") == "spatial_unpad"
    largest = int(anyres[1]) if anyres is not None and anyres[1] else None
    pool = raw.get("mm_spatial_pool_stride", 2)
    if not isinstance(pool, int) or not 0 < pool < 100:
        raise ValueError(f"mm_spatial_pool_stride is {pool!r}; a small whole number would fit")
    return LayoutSettings(tiled, largest, _grids(raw.get("image_grid_pinpoints")), pool)


def _grids(listed: Any) -> tuple[tuple[int, int], ...] | None:
    if listed is None or isinstance(listed, str):
        return None
    try:
        found = tuple((int(wide), int(high)) for wide, high in listed)
    except (TypeError, ValueError):
        raise ValueError("image_grid_pinpoints are no pairs of whole numbers") from None
    if not 0 < len(found) <= 400 or not all(0 < side <= 1 << 14 for pair in found for side in pair):
        raise ValueError("image_grid_pinpoints: 1 to 400 pairs of up to 16384 pixels would fit")
    return found


@dataclass(frozen=True)
class _Table:
    """All tensors of a checkpoint in a Llama's names: where they lie and what they are."""

    places: Mapping[str, tuple[str, str]]  # our name -> file, name there
    metas: Mapping[str, Meta]

    def under(self, start: str) -> list[str]:
        return [name for name in self.metas if name.startswith(start)]

    def piece(self, source: Source, name: str, ours: str) -> Piece:
        file, theirs = self.places[name]
        meta = self.metas[name]
        return Piece(ours, source.folder / file, (theirs,), meta.shape, meta.dtype)


def plan_llada(
    source: Source, *, seeing: bool, base: Source | None = None, tower: Source | None = None
) -> Part | None:
    """The folder `lm` of a LLaDA, or with `seeing` of a LLaDA-V; None where something is wrong.

    Faults are noted in `source`, `base` and `tower`. `base` is the LLaDA that a stage-1 projector belongs to,
    `tower` a SigLIP folder where the vision tower is not among the weights.
    """
    words = base or source
    raw, table = _settings(source), _table(words)
    base_raw = raw if base is None else _settings(base)
    if table is None or raw is None or base_raw is None:
        return None
    config = _language_config(words, base_raw, table)
    mask = _mask(words, base_raw)
    if config is None or mask is None:
        return None
    weights = _language_pieces(words, table, config, beside=not seeing)
    vision = None
    if seeing:
        found = _vision(source, raw, table, tower, config["hidden_size"], stage_1=base is not None)
        if found is None:
            return None
        vision, weights[VISION] = found
    if source.wrong or words.wrong or (tower is not None and tower.wrong):
        return None
    return Part("lm", weights, partial(_finish, words.folder, config, vision, mask))


def _settings(source: Source) -> dict[str, Any] | None:
    path = source.folder / "config.json"
    try:
        raw = json.loads(read_regular_file(path, LARGEST))
        if not isinstance(raw, dict):
            raise ValueError("settings by name were expected")
        return raw
    except FileNotFoundError:
        source.lacks("config.json", NEEDED_BY)
    except (ValueError, RecursionError) as error:
        source.wrong.append(f"{path}: not the settings of a model ({one_line(error)}); copy it again")
    return None


def _table(source: Source) -> _Table | None:
    """All tensors of the folder; None, and the fault is noted, when some file cannot be read."""
    files = weight_files(source, "", NEEDED_BY)
    if files is None:
        return None
    places: dict[str, tuple[str, str]] = {}
    metas: dict[str, Meta] = {}
    for file, names in files.items():
        found = source.table(file, NEEDED_BY)
        if found is None:
            continue
        if names is not None and (lost := sorted(set(names) - set(found))):
            source.wrong.append(f"{source.folder / file}: {len(lost)} missing: {', '.join(lost[:6])}")
        for name, meta in found.items():
            ours = renamed(name)
            if ours in places:
                source.wrong.append(f"{source.folder / file}: {name} is also in {places[ours][0]}")
            places[ours], metas[ours] = (file, name), meta
    return _Table(places, metas) if len(source.wrong) == 0 else None


def _language_config(source: Source, raw: Mapping[str, Any], table: _Table) -> dict[str, Any] | None:
    """Settings of transformers' Llama, sizes by the tensors; None where they make no sense."""
    path = source.folder / "config.json"

    def said(*names: str, default: Any = None) -> Any:
        return next((raw[name] for name in names if raw.get(name) is not None), default)

    try:
        embedding = table.metas.get("model.embed_tokens.weight")
        gate = table.metas.get("model.layers.0.mlp.gate_proj.weight")
        keys = table.metas.get("model.layers.0.self_attn.k_proj.weight")
        if embedding is None or gate is None or keys is None:
            named = "model.embed_tokens.weight, or model.transformer.wte.weight"
            raise ValueError(f"its weights are no LLaDA's, there is no {named}, or no layer 0")
        if {len(meta.shape) for meta in (embedding, gate, keys)} != {2}:
            raise ValueError("its embedding and projections are no matrices")
        rows, width = embedding.shape
        numbers = [re.match(r"model\.layers\.(\d{1,6})\.", name) for name in table.metas]
        layers = max(int(number[1]) for number in numbers if number) + 1
        heads = said("num_attention_heads", "n_heads")
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise ValueError(f"num_attention_heads is {heads!r}, which does not divide the width {width}")
        of_keys, rest = divmod(keys.shape[0], width // heads)
        if rest or not of_keys or heads % of_keys:
            raise ValueError(
                f"k_proj has {keys.shape[0]} rows, which heads of {width // heads} do not divide"
            )
        for ours, names in {"tied": ("tie_word_embeddings", "weight_tying")}.items():
            if said(*names, default=False) is not False and "lm_head.weight" not in table.metas:
                raise ValueError(f"{ours} embeddings are not supported")
        context = said("max_position_embeddings", "max_sequence_length", default=4096)
        eps, theta = said("rms_norm_eps", default=1e-5), said("rope_theta", default=500000.0)
        parameters = raw.get("rope_parameters")
        if isinstance(parameters, dict):
            theta = parameters.get("rope_theta", theta)
        scaling = raw.get("rope_scaling") or (parameters if isinstance(parameters, dict) else {})
        if scaling and scaling.get("rope_type", scaling.get("type", "default")) != "default":
            raise ValueError("rope_scaling is not supported")
        if not isinstance(context, int) or not 0 < context <= 1 << 24:
            raise ValueError(f"max_position_embeddings is {context!r}; a whole number of tokens would fit")
        for name, value in {"rms_norm_eps": eps, "rope_theta": theta}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
                raise ValueError(f"{name} is {value!r}; a number above 0 would fit")
    except ValueError as error:
        source.wrong.append(f"{path}: {one_line(error)}")
        return None
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": gate.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": of_keys,
        "max_position_embeddings": context,
        "rms_norm_eps": float(eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(theta)},
        "tie_word_embeddings": False,
        "is_causal": False,  # transformers too reads it in both directions then
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _mask(source: Source, raw: Mapping[str, Any]) -> int | None:
    """The id of the mask: as the settings say, else as the text tokenizer calls it."""
    mask = raw.get("mask_token_id")
    path = source.folder / "tokenizer.json"
    try:
        words = json.loads(read_regular_file(path, 1 << 28))
        added = {entry["content"]: entry["id"] for entry in words.get("added_tokens", [])}
        if mask is None:
            mask = next((added[name] for name in MASKS if name in added), None)
        if isinstance(mask, bool) or not isinstance(mask, int) or mask < 0:
            raise ValueError(
                f"no mask is known: config.json has no mask_token_id, and no token is called {MASKS[0]}"
            )
        return mask
    except FileNotFoundError:
        source.lacks("tokenizer.json", NEEDED_BY)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        source.wrong.append(f"{path}: {one_line(error)}")
    return None


def _language_pieces(
    source: Source, table: _Table, config: Mapping[str, Any], beside: bool
) -> dict[str, list[Piece]]:
    """A file of ours for each of theirs that holds weights of the language model; differences are noted.

    With `beside`, tensors of sight are unexpected too.
    """
    from transformers import LlamaConfig

    layers = config["num_hidden_layers"]
    if layers > len(table.metas):  # a stranger's number; else a million names are made to be missed
        source.wrong.append(f"{source.folder}: layers are numbered up to {layers - 1}, and most are missing")
        return {}
    shapes = llama_shapes(LlamaConfig(**config))
    sight = ("model.mm_projector", SEPARATOR, "model.vision_tower.")
    files = sorted({file for file, _ in table.places.values()})
    pieces: dict[str, list[Piece]] = {}
    missing = [name for name in shapes if name not in table.metas]
    unexpected = [n for n in table.metas if n not in shapes and (beside or not n.startswith(sight))]
    misshapen = [
        f"{name} {_by(table.metas[name].shape)} instead of {_by(shape)}"
        for name, shape in shapes.items()
        if name in table.metas and table.metas[name].shape != shape
    ]
    _note(source, missing=missing, unexpected=unexpected, misshapen=misshapen)
    for file in files:
        own = [name for name in shapes if name in table.metas and table.places[name][0] == file]
        if own:
            pieces[file] = [table.piece(source, name, name) for name in own]
    count = len(pieces)
    names = (
        [WEIGHTS]
        if count == 1
        else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    )
    return dict(zip(names, pieces.values(), strict=True))


def _note(source: Source, **kinds: Sequence[str]) -> None:
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            source.wrong.append(f"{source.folder}: {len(names)} {kind}: {', '.join(names[:6])}{more}")


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _vision(
    source: Source,
    raw: Mapping[str, Any],
    table: _Table,
    tower: Source | None,
    width: int,
    stage_1: bool,
) -> tuple[VisionConfig, list[Piece]] | None:
    """Settings and tensors of the tower, the projector and the separator; None where something is wrong."""
    where, own = (source, table) if not stage_1 else (source, _projector_file(source))
    seen, towers = (source, table) if tower is None else (tower, _tower_table(tower))
    if own is None or towers is None:
        return None
    try:
        layout = layout_settings(raw)
    except ValueError as error:
        source.wrong.append(f"{source.folder / 'config.json'}: {one_line(error)}")
        return None
    embedding = towers.metas.get(f"{TOWER}embeddings.patch_embedding.weight")
    positions = towers.metas.get(f"{TOWER}embeddings.position_embedding.weight")
    first = towers.metas.get(f"{TOWER}encoder.layers.0.mlp.fc1.weight")
    if embedding is None or positions is None or first is None or len(embedding.shape) != 4:
        source.wrong.append(
            f"{seen.folder}: has no SigLIP tower ({TOWER}*); give the folder of a download of the tower that "
            f"config.json names, {str(raw.get('mm_vision_tower'))[:80]!r}, as --vision-tower"
        )
        return None
    told = {} if tower is None else _tower_settings(tower)
    try:
        settings, side = _tower_config(raw, told, embedding.shape, positions.shape, first.shape, layout)
        layers = _layers_of(towers, extra=tower is not None)
    except ValueError as error:
        seen.wrong.append(f"{seen.folder}: {one_line(error)}")
        return None
    settings["num_hidden_layers"] = layers
    features, hidden = settings["hidden_size"], settings["intermediate_size"]
    shapes = _siglip_shapes(features, hidden, layers, embedding.shape, positions.shape)
    names = [n.removeprefix(TOWER) for n in towers.under(TOWER)]
    post = [n for n in names if n.startswith(f"encoder.layers.{layers}.")] if tower is not None else []
    _note(
        seen,
        missing=[n for n in shapes if TOWER + n not in towers.metas],
        unexpected=[n for n in names if n not in shapes and n not in post and not n.startswith("head.")],
        misshapen=[
            f"{n} {_by(towers.metas[TOWER + n].shape)} instead of {_by(shape)}"
            for n, shape in shapes.items()
            if TOWER + n in towers.metas and towers.metas[TOWER + n].shape != shape
        ],
    )
    wanted = {
        "0.weight": (width, features),
        "0.bias": (width,),
        "2.weight": (width, width),
        "2.bias": (width,),
    }
    projector = {n.removeprefix(PROJECTOR): own.metas[n] for n in own.under(PROJECTOR)}
    strange = [n for n in own.metas if n.startswith(("model.vision_resampler", "model.vision_tower")) and
               not n.startswith(TOWER)]  # fmt: skip
    _note(
        where,
        missing=[PROJECTOR + n for n in wanted if n not in projector],
        unexpected=[PROJECTOR + n for n in projector if n not in wanted] + strange,
        misshapen=[
            f"{PROJECTOR}{n} {_by(projector[n].shape)} instead of {_by(shape)}"
            for n, shape in wanted.items()
            if n in projector and projector[n].shape != shape
        ],
    )
    ends = own.metas.get(SEPARATOR)
    if ends is not None and ends.shape != (width,):
        _note(where, misshapen=[f"{SEPARATOR} {_by(ends.shape)} instead of {width}"])
    if ends is None and not stage_1:
        _note(where, missing=[SEPARATOR])
    if source.wrong or seen.wrong or where.wrong:
        return None
    pieces = [towers.piece(seen, TOWER + n, f"encoder.tower.{n}") for n in shapes]
    pieces += [own.piece(where, PROJECTOR + n, f"projector.{n}") for n in wanted]
    if ends is not None:
        pieces.append(own.piece(where, SEPARATOR, "separator"))
    else:  # stage 1 has none; the next stage trains it
        zeros = own.piece(where, f"{PROJECTOR}2.bias", "separator")
        pieces.append(zeros._replace(make=torch.zeros_like))
    tiles = None
    if layout.tiled and not stage_1:
        inside = None if layout.grids is None else tuple((w // side, h // side) for w, h in layout.grids)
        tiles = TilesConfig(grids=inside, largest=layout.largest)
    config = VisionConfig(
        tower=TransformersTower(architecture="siglip_vision_model", settings=settings),
        projector=MlpProjector(layers=2),
        tiles=tiles,
        pool=layout.pool,
    )
    return config, pieces


def _projector_file(source: Source) -> _Table | None:
    """The tensors of a stage-1 file, whose names begin in more than one way."""
    found = source.table(PROJECTOR_FILE, NEEDED_BY)
    if found is None:
        return None
    places, metas = {}, {}
    for name, meta in found.items():
        kept = re.sub(
            r"^(?:base_model\.)?(?:model\.)*(?=mm_projector\.|image_newline$|vision_resampler)",
            "model.",
            name,
        )
        places[kept], metas[kept] = (PROJECTOR_FILE, name), meta
    if strange := [n for n in metas if not n.startswith((PROJECTOR, SEPARATOR))]:
        _note(source, unexpected=strange)
        return None
    return _Table(places, metas)


def _tower_table(tower: Source) -> _Table | None:
    """The vision tower of a SigLIP folder, in the names that LLaDA-V gives it; text towers are left out."""
    table = _table(tower)
    if table is None:
        return None
    start = "model.vision_tower.vision_tower."
    kept = {n: (n if n.startswith(start) else start + n) for n in table.metas if "vision_model." in n}
    places = {ours: table.places[n] for n, ours in kept.items()}
    return _Table(places, {ours: table.metas[n] for n, ours in kept.items()})


def _tower_settings(tower: Source) -> dict[str, Any]:
    """What a SigLIP folder's config.json says of the vision tower; empty without one."""
    if not (tower.folder / "config.json").is_file():
        return {}
    raw = _settings(tower) or {}
    inner = raw.get("vision_config", raw)
    return inner if isinstance(inner, dict) else {}


def _tower_config(
    raw: Mapping[str, Any],
    told: Mapping[str, Any],
    patch: Shape,
    positions: Shape,
    hidden: Shape,
    layout: LayoutSettings,
) -> tuple[dict[str, Any], int]:
    """SigLIP's settings and the side of a view; what tensors do not tell is told by files, or usual."""
    width, size, cells = patch[0], patch[3], math.isqrt(positions[0])
    if len(positions) != 2 or cells**2 != positions[0] or patch[1] != 3 or patch[2] != size or not cells:
        raise ValueError(f"its tower has {_by(patch)} patches at {_by(positions)} places; squares are needed")
    told_side = told.get("image_size")
    smallest = min((min(pair) for pair in layout.grids), default=None) if layout.grids else None
    named = re.search(r"-(\d{2,4})$", str(raw.get("mm_vision_tower", "")))
    for side in (told_side, smallest, int(named[1]) if named else None, cells * size):
        if isinstance(side, int) and side // size == cells:
            break
    else:
        raise AssertionError("the last of them fits")
    heads = told.get("num_attention_heads") or raw.get("mm_vision_heads") or HEADS.get(width)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(
            f"how many heads its tower of width {width} has is not told; a config.json of the tower would, "
            "in the folder given as --vision-tower"
        )
    settings = {
        "hidden_size": width,
        "intermediate_size": hidden[0],
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": size,
        "vision_use_head": False,
    }
    return settings, int(side)


def _layers_of(table: _Table, extra: bool) -> int:
    """How many layers of the tower are read; a tower of its own has one more, which LLaDA-V leaves out."""
    found = [re.match(re.escape(TOWER) + r"encoder\.layers\.(\d{1,4})\.", name) for name in table.metas]
    count = max(int(number[1]) for number in found if number) + 1 - extra
    if count < 1:
        raise ValueError("its tower has one layer, and the last one is not read")
    return count


def _siglip_shapes(width: int, hidden: int, layers: int, patch: Shape, positions: Shape) -> dict[str, Shape]:
    def both(name: str, *shape: int) -> dict[str, Shape]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = both("embeddings.patch_embedding", *patch)
    shapes["embeddings.position_embedding.weight"] = (positions[0], width)
    for n in range(min(layers, 1000)):
        layer = f"encoder.layers.{n}"
        shapes |= both(f"{layer}.layer_norm1", width) | both(f"{layer}.layer_norm2", width)
        for part in ("q", "k", "v", "out"):
            shapes |= both(f"{layer}.self_attn.{part}_proj", width, width)
        shapes |= both(f"{layer}.mlp.fc1", hidden, width) | both(f"{layer}.mlp.fc2", width, hidden)
    return shapes | both("post_layernorm", width)


def _finish(
    source: Path, config: Mapping[str, Any], vision: VisionConfig | None, mask: int, folder: Path, _: str
) -> None:
    """All files but the weights."""
    from transformers import AutoTokenizer, LlamaConfig

    files = sorted(path for path in folder.glob("model*.safetensors"))
    types = write_index(folder, files)
    settings = LlamaConfig(**config)
    settings.architectures = ["LlamaForCausalLM"]
    settings.dtype = types
    settings.save_pretrained(folder)
    words: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    stored = FolderConfig(
        image_tokens=None,
        projector=False,
        vision=vision,
        mask=mask,
        masked=MaskedForm(),
        defaults=DEFAULTS,
    )
    write_atomic(folder / CONFIG, to_yaml(stored).encode())
