import json
from pathlib import Path

import pytest
from PIL import Image

from pictish.cli import main
from tests.evaluation.emoji import cheap_features
from tests.evaluation.starter import save_tiny_language, write_held_out_data

FILES = ["editing-edits.png", "editing-prompts.png", "editing.json", "editing.png", "judge.safetensors"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_models) -> Path:
    return save_tiny_language(tmp_path_factory.mktemp("model"), tiny_models)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_held_out_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(
        "pictish.recipes.starter.evaluation.judge.network_features", lambda device: cheap_features
    )


def evaluate(model: Path, *words: object) -> int:
    return main(["evaluate", "editing", *map(str, words), "--model", str(model), "--device", "cpu"])


def test_evaluation_writes_numbers_and_pictures_twice_the_same(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--data", data, "--out", out, "--limit", 7)
    assert evaluate(model, *words) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(first) == FILES
    report = json.loads(first["editing.json"])
    assert report["changes"]["edits"] + report["controls"]["edits"] == 7
    assert set(report["kinds"]) == {"style", "skin tone", "gender", "colour", "same", "already"}
    for group in (report["changes"], report["controls"], *report["kinds"].values()):
        assert set(group["ways"]) == {"edited", "true codes", "real", "source"}
        for way in group["ways"].values():
            assert set(way) == {"asked", "kept", "style", "all"}
    assert report["image_and_text"]["all"]["prompts"] == 7
    assert report["image_and_text"]["skin_tone"]["prompts"] == 3
    assert report["image_and_image"]["prompts"] == 7
    for name in FILES[:2] + FILES[3:4]:
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    text = capsys.readouterr().out.split("wrote ")[0]
    for word in ("changes (", "controls (", "skin tone", "image and text (7)", "image and image (7)"):
        assert word in text
    assert "…" not in text, "a table does not fit into 80 columns"
    assert max(map(len, text.splitlines())) <= 80
    assert evaluate(model, *words) == 2
    assert "already contains editing.json" in capsys.readouterr().err
    assert evaluate(model, *words, "--quiet", "--overwrite") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert str(tmp_path).encode() not in first["editing.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "pictish data starter"), (("--steps", 3), "only a preview, which takes no steps")],
)
def test_what_does_not_fit_is_a_users_mistake(words, said, model, tmp_path, capsys):
    assert evaluate(model, "--data", tmp_path, "--out", tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
