"""The tensors of a LLaDA or LLaDA-V folder: names in either layout, and what differs from what should be.

The strict report is that of data/importing.py, over all files of a folder together.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pictish.data.importing import NAMED, Meta, Piece, Shape, Source, weight_files
from pictish.io.files import one_line, read_regular_file

NEEDED_BY = "pictish describe"
LARGEST = 1 << 24  # bytes of a config.json
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
class Table:
    """All tensors of a folder under the names of a Llama's layout."""

    places: Mapping[str, tuple[str, str]]  # our name -> file, name there
    metas: Mapping[str, Meta]

    def under(self, start: str) -> "Table":
        """Those whose names begin with `start`, without it."""
        kept = [name for name in self.metas if name.startswith(start)]
        cut = {name: name.removeprefix(start) for name in kept}
        return Table({cut[n]: self.places[n] for n in kept}, {cut[n]: self.metas[n] for n in kept})

    def piece(self, source: Source, name: str, ours: str) -> Piece:
        """A tensor of `source` as it is, to be written as `ours`."""
        file, theirs = self.places[name]
        meta = self.metas[name]
        return Piece(ours, source.folder / file, (theirs,), meta.shape, meta.dtype)

    def compare(
        self, source: Source, shapes: Mapping[str, Shape], start: str = "", known: tuple[str, ...] = ()
    ) -> None:
        """Note in `source` every difference from `shapes`, of tensors called `start` and their name.

        Names that begin with one of `known` are somebody else's to account for.
        """
        metas = self.metas
        unexpected = [name for name in metas if name not in shapes and not (known and name.startswith(known))]
        misshapen = [
            f"{start}{name} {_by(metas[name].shape)} instead of {_by(shape)}"
            for name, shape in shapes.items()
            if name in metas and metas[name].shape != shape
        ]
        note(source, "missing", [start + name for name in shapes if name not in metas])
        note(source, "unexpected", [start + name for name in unexpected])
        note(source, "misshapen", misshapen)


def note(source: Source, kind: str, names: Sequence[str]) -> None:
    """Note a fault of these tensors, if there are any."""
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        source.wrong.append(f"{source.folder}: {len(names)} {kind}: {', '.join(names[:NAMED])}{more}")


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def settings_of(source: Source) -> dict[str, Any] | None:
    """A folder's config.json; None, and the fault is noted, when it cannot be read."""
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


def table_of(source: Source) -> Table | None:
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
    return Table(places, metas) if len(source.wrong) == 0 else None
