"""tools/lladav_vision_cases.py on a small recording made by hand: what is equal, and what differs."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from tools import lladav_vision_cases as tool

# Two cells each way, tiles of 10 pixels; an image of 20 x 10 has a thumbnail and two tiles.
TABLE = {
    "flat_square": {"tokens": 4},
    "20x10": {"best_resolution": [20, 10], "tiles_wide": 2, "tiles_high": 1, "views": 3, "tokens": 14},
    "video_2_frames": {"tokens": 4},
}
CELLS = [[0, 0], [0, 1], [1, 0], [1, 1]]
ROWS = [[0, *cell, 1] for cell in CELLS] + [
    *([1, 0, 0, 1], [1, 0, 1, 1], [2, 0, 0, 1], [2, 0, 1, 1], [-7] * 4),
    *([1, 1, 0, 1], [1, 1, 1, 1], [2, 1, 0, 1], [2, 1, 1, 1], [-7] * 4),
]
FRAMES = [[0, 0.5, 0.5, 1], [-7] * 4, [1, 0.5, 0.5, 1], [-7] * 4]
SPECIAL = {"start_header": 90}
LABELS = [80, 90, -100, 7, 90, 5, 1, 90, -100, 7, 90, 5, 2, 99]  # two rounds, and a tail
TURNS = [0] * 7 + [1] * 7


def write(folder, table=TABLE, rows=ROWS, turns=TURNS, name="model.layers.0.mlp.gate_proj.weight") -> None:
    cases = {
        "lladav_layout": {"config": {"image_aspect_ratio": "anyres_max_4"}, "table": table},
        "lladav_rename": {"mapping": {"model.transformer.blocks.0.ff_proj.weight": name}},
        "llada/cfg": {"kwargs": {}},  # another module's
    }
    tensors = {
        "lladav_layout/anyres_20x10": torch.tensor(rows, dtype=torch.float32),
        "lladav_layout/video_2_frames": torch.tensor(FRAMES),
        "lladav_layout/turns/two/labels": torch.tensor([LABELS]),
        "lladav_layout/turns/two/conversation_ids": torch.tensor([turns]),
    }
    (folder / "recorded.json").write_text(json.dumps({"cases": cases, "special_ids": SPECIAL}))
    save_file(tensors, folder / "recorded.safetensors")


def run(folder, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lladav_vision_cases", str(folder)])
    return tool.main()


def test_a_recording_that_is_right_is_equal(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    assert run(tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "7 of 7 equal"


@pytest.mark.parametrize(
    "changes",
    [
        {"table": {**TABLE, "20x10": {**TABLE["20x10"], "tokens": 15}}},
        {"table": {**TABLE, "flat_square": {"tokens": 9}}},
        {"rows": [*ROWS[:-1], [0, 0, 0, 1]]},
        {"rows": ROWS[:-1]},
        {"turns": [0] * 8 + [1] * 6},
        {"name": "model.layers.0.mlp.up_proj.weight"},
    ],
)
def test_any_difference_is_told(tmp_path, monkeypatch, capsys, changes):
    write(tmp_path, **changes)
    assert run(tmp_path, monkeypatch) == 1
    assert "DIFFERS" in capsys.readouterr().out
