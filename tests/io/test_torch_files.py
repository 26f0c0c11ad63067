"""Weight files of other people: tensors come out, and nothing is ever run."""

import builtins
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pictish.io.torch_files import SINGLE, open_tensors


class Payload:
    """Unpickled without care it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return builtins.open, (str(self.target), "w")


@pytest.mark.parametrize("new", [True, False])
def test_tensors_by_name_come_out_in_both_formats(tmp_path, new):
    tensors = {"a": torch.randn(3, 4).bfloat16(), "b.c": torch.randn(2)}
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=new)
    found = open_tensors(tmp_path / "x.bin")
    assert list(found) == ["a", "b.c"]
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    assert torch.equal(open_tensors(tmp_path / "x.safetensors")["a"], tensors["a"])


def test_a_single_tensor_has_the_empty_name(tmp_path):
    torch.save(torch.ones(2), tmp_path / "x.bin")
    assert open_tensors(tmp_path / "x.bin")[SINGLE].tolist() == [1, 1]


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, form):
    target, path = tmp_path / "made", tmp_path / "x.bin"
    content = {"a": torch.ones(2), "b": Payload(target)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content["b"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"x\.bin: refused, .*; nothing of it was run") as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_called_damaged(tmp_path, share, new):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.randn(5000)}, path, _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"x\.bin: (damaged|refused)"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 1}, "'a' is a int"),
        ([torch.ones(1)], "holds a list"),
        ({"m": {"a": torch.ones(1)}}, "'m' is a dict"),
    ],
)
def test_what_is_no_table_of_tensors_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=said):
        open_tensors(tmp_path / "x.bin")


def test_a_damaged_safetensors_file_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nothing!")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        open_tensors(tmp_path / "x.safetensors")
