import json
from pathlib import Path

import pytest
from PIL import Image

from pictish.cli import main
from tests.evaluation.emoji import HUES
from tests.evaluation.starter import save_tiny_language, write_held_out_data

FILES = ["understanding-sheet.png", "understanding.json", "understanding.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_models) -> Path:
    return save_tiny_language(tmp_path_factory.mktemp("model"), tiny_models)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_held_out_data(tmp_path_factory.mktemp("data"))


def evaluate(model: Path, *words: object) -> int:
    return main(["evaluate", "understanding", *map(str, words), "--model", str(model), "--device", "cpu"])


def test_evaluation_writes_numbers_and_pictures_twice_the_same(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--data", data, "--out", out, "--limit", 3)
    assert evaluate(model, *words) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(first) == FILES
    report = json.loads(first["understanding.json"])
    assert set(report["splits"]) == {"seen", "unseen"}
    for split in report["splits"].values():
        assert split["pictures"] == 3
        assert [split["parts"][name]["pictures"] for name in HUES] == [1, 1, 1]
        assert {"what", "style", "is it"} <= set(split["questions"])
    for name in ("understanding.png", "understanding-sheet.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    text = capsys.readouterr().out.split("wrote ")[0]
    assert "caption: exact name" in text
    assert "…" not in text, "the table does not fit into 80 columns"
    assert max(map(len, text.splitlines())) <= 80
    assert evaluate(model, *words) == 2
    assert "already contains understanding.json" in capsys.readouterr().err
    assert evaluate(model, *words, "--quiet", "--overwrite") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert str(tmp_path).encode() not in first["understanding.json"]


def test_data_of_another_kind_is_a_users_mistake(model, tmp_path, capsys):
    assert evaluate(model, "--data", tmp_path, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pictish data starter" in line
    assert not (tmp_path / "out").exists()
