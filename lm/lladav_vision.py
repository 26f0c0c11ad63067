"""What a LLaDA-V sees through: vision tower, projector and separator, from any of the places they lie in."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pictish.data.importing import Piece, Shape, Source
from pictish.io.files import one_line
from pictish.lm.lladav_table import NEEDED_BY, Table, note, settings_of, table_of
from pictish.lm.vision.config import MlpProjector, TilesConfig, TransformersTower, VisionConfig

PROJECTOR_FILE = "mm_projector.bin"
PROJECTOR, SEPARATOR = "model.mm_projector.", "model.image_newline"
TOWER = "model.vision_tower.vision_tower.vision_model."
SIGHT = ("model.mm_projector", SEPARATOR, "model.vision_tower.")  # how names of this begin
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # of SigLIP's towers by their width, where no file tells


@dataclass(frozen=True)
class LayoutSettings:
    """How LLaDA-V's settings lay images out."""

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


def plan_vision(
    source: Source,
    raw: Mapping[str, Any],
    table: Table,
    tower: Source | None,
    width: int,
    stage_1: bool,
) -> tuple[VisionConfig, list[Piece]] | None:
    """Settings and tensors of the tower, the projector and the separator; None source something is wrong."""
    own = table if not stage_1 else _projector_file(source)
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
    last = (f"encoder.layers.{layers}.",) if tower is not None else ()
    towers.under(TOWER).compare(seen, shapes, TOWER, ("head.", *last))
    wanted: dict[str, Shape] = {"0.weight": (width, features), "0.bias": (width,)}
    wanted |= {"2.weight": (width, width), "2.bias": (width,)}
    own.under(PROJECTOR).compare(source, wanted, PROJECTOR)
    others = [name for name in own.metas if name.startswith("model.vision_tower.")]
    note(source, "unexpected", [name for name in others if not name.startswith(TOWER)])
    ends = own.metas.get(SEPARATOR)
    if ends is not None and ends.shape != (width,):
        note(source, "misshapen", [f"{SEPARATOR} {list(ends.shape)} instead of [{width}]"])
    if ends is None and not stage_1:
        note(source, "missing", [SEPARATOR])
    if source.wrong or seen.wrong:
        return None
    pieces = [towers.piece(seen, TOWER + n, f"encoder.tower.{n}") for n in shapes]
    pieces += [own.piece(source, PROJECTOR + n, f"projector.{n}") for n in wanted]
    if ends is not None:
        pieces.append(own.piece(source, SEPARATOR, "separator"))
    else:  # stage 1 has none; the next stage trains it
        zeros = own.piece(source, f"{PROJECTOR}2.bias", "separator")
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


def _projector_file(source: Source) -> Table | None:
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
        note(source, "unexpected", strange)
        return None
    return Table(places, metas)


def _tower_table(tower: Source) -> Table | None:
    """The vision tower of a SigLIP folder, in the names that LLaDA-V gives it; text towers are left out."""
    table = table_of(tower)
    if table is None:
        return None
    start = "model.vision_tower.vision_tower."
    kept = {n: (n if n.startswith(start) else start + n) for n in table.metas if "vision_model." in n}
    places = {ours: table.places[n] for n, ours in kept.items()}
    return Table(places, {ours: table.metas[n] for n, ours in kept.items()})


def _tower_settings(tower: Source) -> dict[str, Any]:
    """What a SigLIP folder's config.json says of the vision tower; empty without one."""
    if not (tower.folder / "config.json").is_file():
        return {}
    raw = settings_of(tower) or {}
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
    """SigLIP's settings and the side of a view: from tensors, else from the files, else SigLIP's defaults."""
    width, size, cells = patch[0], patch[3], math.isqrt(positions[0])
    if len(positions) != 2 or cells**2 != positions[0] or patch[1] != 3 or patch[2] != size or not cells:
        raise ValueError(
            f"its tower has {list(patch)} patches at {list(positions)} places; squares are needed"
        )
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
            f"how many heads its tower of width {width} has is unknown; a config.json of the tower would, "
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


def _layers_of(table: Table, extra: bool) -> int:
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
