"""Accounting for keys, and streaming tensors from file to file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pictish.data.importing import Part, Piece, Source, digest, write_pieces


def make(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {"a": torch.randn(4, 3).bfloat16(), "b": torch.randn(5), "c": torch.randn(2, 2).half()}
    torch.save(tensors, folder / "x.bin")
    return tensors


def test_all_differences_are_told_at_once(tmp_path):
    make(tmp_path)
    source = Source(tmp_path)
    assert source.table("x.bin", "pictish tokenize")["a"].shape == (4, 3)
    source.expect("x.bin", {"a": (4, 4), "d": (1,), "b": (5,)}, beside=("c",))
    assert source.table("gone.bin", "pictish tokenize") is None
    said = "\n".join(source.wrong)
    assert len(source.wrong) == 3
    assert "x.bin: 1 missing: d" in said
    assert "x.bin: 1 misshapen: a 4x3 instead of 4x4" in said
    assert "gone.bin: missing; pictish tokenize needs it" in said
    source.expect("x.bin", {"a": (4, 3), "b": (5,)})
    assert "x.bin: 1 unexpected: c 2x2" in source.wrong[-1]


def test_integers_are_no_weights(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "x.bin")
    source = Source(tmp_path)
    assert source.table("x.bin", "x") is None
    assert "a holds torch.int8" in source.wrong[0]


def pieces(path: Path) -> list[Piece]:
    return [
        Piece("whole", path, ("b",), (5,), torch.float32),
        Piece("row", path, ("a",), (3,), torch.bfloat16, lambda tensor: tensor[1]),
        Piece("both", path, ("c", "c"), (4, 2), torch.float16, lambda *tensors: torch.cat(tensors)),
        Piece("mine", path, (), (), torch.float32, lambda: torch.zeros(())),
    ]


def test_what_is_streamed_is_a_safetensors_file(tmp_path):
    tensors, steps = make(tmp_path), []
    write_pieces(tmp_path / "out" / "y.safetensors", pieces(tmp_path / "x.bin"), steps.append)
    found = load_file(tmp_path / "out" / "y.safetensors")
    assert torch.equal(found["whole"], tensors["b"])
    assert torch.equal(found["row"], tensors["a"][1])
    assert torch.equal(found["both"], torch.cat([tensors["c"]] * 2))
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "whole": torch.float32,
        "row": torch.bfloat16,
        "both": torch.float16,
        "mine": torch.float32,
    }
    assert sum(steps) == sum(piece.size for piece in pieces(tmp_path)) == 20 + 6 + 16 + 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["y.safetensors"]


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    make(tmp_path)
    path, steps = tmp_path / "y.safetensors", []
    write_pieces(path, pieces(tmp_path / "x.bin"), steps.append)
    before = path.stat()
    write_pieces(path, pieces(tmp_path / "x.bin"), steps.append)
    assert path.stat() == before
    assert sum(steps) == 2 * 46


def test_values_that_are_no_numbers_are_named_and_nothing_stays(tmp_path):
    torch.save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"x\.bin: a holds values that are no finite numbers"):
        write_pieces(
            tmp_path / "y.safetensors",
            [Piece("a", tmp_path / "x.bin", ("a",), (2,), torch.float32)],
            lambda n: None,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_the_digest_follows_files_and_settings(tmp_path):
    make(tmp_path)
    source = Source(tmp_path)
    part = Part("p", {"y.safetensors": pieces(tmp_path / "x.bin")}, lambda folder, name: None)
    first = digest(source, [part], {"mode": "exact"})
    assert digest(source, [part], {"mode": "exact"}) == first
    assert digest(source, [part], {"mode": "gather"}) != first
    torch.save({"z": torch.ones(9)}, tmp_path / "x.bin")
    assert digest(source, [part], {"mode": "exact"}) != first
