"""Replay what was recorded of LLaDA-V's image layout, its turns and its key names.

    python -m tools.lladav_vision_cases FIXTURE

FIXTURE holds `recorded.json` and `recorded.safetensors`. Sizes, settings and numbers may be any: they are
read from the recording. `compare(cases, tensors, special)` gives a line for each number or tensor compared;
tools/compare_lladav.py calls it for the cases `CASES`. Exits 1 when one differs.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from pictish.lm.dialogue import turns_of
from pictish.lm.lladav_table import renamed
from pictish.lm.lladav_vision import layout_settings
from pictish.lm.vision.tiles import Layout, arrange, best_grid, frame_layout, grids, tiled_layout

CASES = ("lladav_layout", "lladav_rename")
TOLERANCE = 1e-5
SEPARATOR = -7.0  # what the recordings have as the learned row
IGNORED = -100  # the label of what is not learned: among it the roles of all but the assistant


class Row(NamedTuple):
    """One comparison."""

    name: str
    right: bool
    note: str = ""


def compare(
    cases: Mapping[str, Any], tensors: Mapping[str, Tensor], special: Mapping[str, int]
) -> Iterator[Row]:
    """All comparisons of the cases that this module knows."""
    for name in CASES:
        if name in cases:
            own = {
                key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")
            }
            match name:
                case "lladav_layout":
                    yield from layouts(name, cases[name], own)
                    yield from turns(name, own, special)
                case "lladav_rename":
                    yield from renames(name, cases[name])


def layouts(case: str, recorded: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    """Grids and lengths of the table, and the order of the rows in each recorded sequence."""
    table, settings = recorded["table"], layout_settings(recorded["config"])
    cells = (math.isqrt(table["flat_square"]["tokens"]),) * 2 if "flat_square" in table else (27, 27)
    found: dict[str, list[Layout]] = {"flat_square": [Layout(cells)]}
    for name, known in table.items():
        if sized := re.fullmatch(r"(\d+)x(\d+)", name):
            size, (across, down) = (int(sized[1]), int(sized[2])), known["best_resolution"]
            side = across // known["tiles_wide"]
            grid = best_grid(size, settings.grids or grids(6, 6), side)
            layout = tiled_layout(size, grid, cells, settings.largest)
            found[f"anyres_{name}"] = [layout]
            ours = (grid[0] * side, grid[1] * side), layout.views, layout.length
            theirs = (across, down), known["views"], known["tokens"]
            yield Row(f"{case}/table/{name}", ours == theirs, f"{ours} instead of {theirs}")
            continue
        if video := re.fullmatch(r"video_(\d+)_frames", name):
            found[name] = [frame_layout(cells, settings.pool)] * int(video[1])
        length = sum(layout.length for layout in found.get(name, []))
        yield Row(f"{case}/table/{name}", length == known["tokens"], f"{length} instead of {known['tokens']}")
    for name, tensor in tensors.items():
        if name.startswith("turns/"):
            continue
        if name not in found:
            yield Row(f"{case}/{name}", False, "not known here")
            continue
        separator = torch.full((tensor.shape[1],), SEPARATOR)
        first, parts = 0, []
        for layout in found[name]:
            parts.append(arrange(_synthetic(layout, first), layout, separator))
            first += layout.views
        yield _same(f"{case}/{name}", torch.cat(parts), tensor)


def turns(case: str, tensors: Mapping[str, Tensor], special: Mapping[str, int]) -> Iterator[Row]:
    """Turns of every token, from where messages begin and whose they are."""
    for name in tensors:
        if not name.endswith("/labels"):
            continue
        (labels,), wanted = tensors[name].tolist(), tensors[name.replace("labels", "conversation_ids")]
        starts = [place for place, label in enumerate(labels) if label == special["start_header"]]
        assistant = [labels[place + 1] != IGNORED for place in starts]
        ours = torch.from_numpy(turns_of(starts, assistant, len(labels)))[None]
        yield _same(f"{case}/{name.replace('labels', 'conversation_ids')}", ours, wanted)


def renames(case: str, recorded: Mapping[str, Any]) -> Iterator[Row]:
    """Names of the original layout in the other one."""
    for theirs, wanted in recorded["mapping"].items():
        ours = renamed(theirs)
        yield Row(f"{case}/{theirs}", ours == wanted, f"{ours} instead of {wanted}")


def _synthetic(layout: Layout, first: int) -> Tensor:
    """Rows (V, N, 4) that say which view, line and cell they are of, as in the recordings."""
    h, w = layout.cells
    view = torch.arange(first, first + layout.views)[:, None, None].expand(-1, h, w)
    line = torch.arange(h)[None, :, None].expand_as(view)
    cell = torch.arange(w)[None, None, :].expand_as(view)
    return torch.stack([view, line, cell, torch.ones_like(view)], dim=-1).flatten(1, 2).float()


def _same(name: str, ours: Tensor, theirs: Tensor) -> Row:
    if ours.shape != theirs.shape:
        return Row(name, False, f"{tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    difference = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
    return Row(name, difference <= TOLERANCE, f"largest difference {difference:.2g}")


def main() -> int:
    """Print what differs and how much was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fixture", type=Path)
    folder = parser.parse_args().fixture
    recorded = json.loads((folder / "recorded.json").read_text("utf-8"))
    rows = list(
        compare(recorded["cases"], load_file(folder / "recorded.safetensors"), recorded["special_ids"])
    )
    for row in rows:
        print(f"{'equal ' if row.right else 'DIFFERS'}  {row.name}  {row.note if not row.right else ''}")
    print(f"{sum(row.right for row in rows)} of {len(rows)} equal")
    return int(not rows or not all(row.right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
