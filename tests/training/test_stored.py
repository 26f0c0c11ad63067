"""Checkpoints in several files: read by rows, and every file that is not the right one refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pictish.training.checkpoint import load_checkpoint
from pictish.training.stored import index_of, shard_metadata, shard_name

SHAPES = {"long": (5, 3), "short": (1, 2), "one": (), "none": (0, 4)}


def tensors(start: float = 0) -> dict[str, Tensor]:
    return {
        name: start + torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
        for name, shape in SHAPES.items()
    }


def written(run: Path, step: int = 1, start: float = 0) -> Path:
    """A checkpoint as three processes write it: 2, 2 and 1 rows of `long`, the rest by the first."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    whole = tensors(start)
    for number in range(3):
        own = {"long": whole["long"][2 * number : 2 * number + 2].clone()}
        own |= {name: whole[name] for name in ("short", "one", "none") if number == 0}
        save_file(own, folder / shard_name(number, 3), shard_metadata(step, number, 3))
    index = index_of(folder, 3, SHAPES)
    document = {"format_version": 2, "step": step, "state": {"seen": 3}, "index": index}
    (folder / "state.json").write_text(json.dumps(document))
    return folder


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(f"{folder}: damaged checkpoint (")
    assert "\n" not in str(caught.value)


def test_tensors_come_back_whole_or_by_rows(tmp_path):
    found, state = load_checkpoint(written(tmp_path))
    assert state == {"seen": 3, "step": 1}
    assert set(found) == set(SHAPES)
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == torch.float32
        assert found.shape(name) == SHAPES[name]
    for first in range(6):
        for count in range(6 - first):
            rows = found.rows("long", first, count)
            assert torch.equal(rows, tensors()["long"][first : first + count]), (first, count)


def test_the_index_says_where_rows_are(tmp_path):
    index = json.loads((written(tmp_path) / "state.json").read_text())["index"]
    assert index["tensors"]["long"] == {
        "dtype": "F32",
        "shape": [5, 3],
        "parts": [[0, 0, 2], [1, 2, 2], [2, 4, 1]],
    }
    assert index["tensors"]["one"] == {"dtype": "F32", "shape": [], "parts": [[0, 0, 1]]}
    assert len(index["bytes"]) == 3


def test_a_missing_cut_or_exchanged_file_is_named(tmp_path):
    names = [shard_name(number, 3) for number in range(3)]
    folder = written(tmp_path / "missing")
    (folder / names[1]).unlink()
    refused(folder, f"{names[1]} is missing")
    folder = written(tmp_path / "cut")
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-1])
    refused(folder, f"{names[2]} has [0-9]+ bytes, its index says")
    folder = written(tmp_path / "exchanged")  # both have two rows, so nothing but their headers tells
    own = {name: (folder / name).read_bytes() for name in names}
    first = written(tmp_path / "second", step=2)
    (folder / names[1]).write_bytes((first / names[1]).read_bytes())
    refused(folder, f"{names[1]} is a file of another place or checkpoint")
    (folder / names[1]).write_bytes(own[names[1]])
    load_checkpoint(folder)
    (folder / names[2]).write_bytes(own[names[1]])
    refused(folder, f"{names[2]} has [0-9]+ bytes")


def test_files_of_one_size_are_not_exchanged_either(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    for number in range(2):
        own = {"long": tensors()["long"][2 * number : 2 * number + 2].clone()}
        save_file(own, folder / shard_name(number, 2), shard_metadata(1, number, 2))
    document = {"format_version": 2, "step": 1, "state": {}, "index": index_of(folder, 2, {"long": (4, 3)})}
    (folder / "state.json").write_text(json.dumps(document))
    load_checkpoint(folder)
    one, other = (folder / shard_name(number, 2) for number in range(2))
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    refused(folder, f"{one.name} is a file of another place")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("long", {"shape": [6, 3]}, "5 rows of long, whose shape is"),
        ("long", {"shape": [5, 4]}, "does not hold the rows of long"),
        ("long", {"shape": [5, -3]}, "-3 for a count"),
        ("long", {"shape": [5, 3.0]}, "3.0 for a count"),
        ("long", {"shape": [10**18, 3], "parts": [[0, 0, 10**18]]}, "does not hold the rows of long"),
        ("long", {"dtype": "F16"}, "does not hold the rows of long"),
        ("long", {"parts": [[1, 0, 2], [0, 2, 2], [2, 4, 1]]}, "long in file 0 from row 2"),
        ("long", {"parts": [[0, 0, 2], [1, 2, 2], [3, 4, 1]]}, "long in file 3"),
        ("long", {"parts": [[0, 0, 2], [1, 1, 2], [2, 4, 1]]}, "from row 1 on, not from 2"),
        ("long", {"parts": [[0, 0, 2], [1, 2, 2]]}, "4 rows of long"),
        ("long", {"parts": [[0, 0]]}, "unpack"),
        ("long", {"parts": []}, "0 rows of long"),
        (
            "strange",
            {"dtype": "F32", "shape": [2], "parts": [[0, 0, 2]]},
            "does not hold the rows of strange",
        ),
        ("short", None, "does not hold the rows of short"),
    ],
)
def test_an_index_that_is_not_its_files_is_refused(tmp_path, name, change, match):
    folder = written(tmp_path)
    document = json.loads((folder / "state.json").read_text())
    entries = document["index"]["tensors"]
    if change is None:
        del entries[name]
    else:
        entries[name] = {**entries.get(name, {}), **change}
    (folder / "state.json").write_text(json.dumps(document))
    refused(folder, match)
