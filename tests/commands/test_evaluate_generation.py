import json
from pathlib import Path

import pytest
from PIL import Image

from pictish.cli import main
from pictish.recipes.starter.evaluation import generation
from tests.evaluation.emoji import cheap_features, write_starter_data
from tests.evaluation.starter import save_tiny_language

FILES = ["generation-pictures.png", "generation.json", "generation.png", "judge.safetensors"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_models) -> Path:
    return save_tiny_language(tmp_path_factory.mktemp("language") / "model", tiny_models)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_starter_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def evaluate(model, data, monkeypatch):
    monkeypatch.setattr(
        "pictish.recipes.starter.evaluation.judge.network_features", lambda device: cheap_features
    )
    monkeypatch.setattr(generation, "SCALES", (1.0, 2.5))
    monkeypatch.setattr(generation, "LEAST_OF_CURVE", 2)
    words = ("--data", data, "--model", model, "--device", "cpu")
    return lambda *more: main(["evaluate", "generation", *map(str, (*words, *more))])


def test_evaluation_writes_numbers_chart_and_sheet_twice_the_same(evaluate, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate("--out", out, "--limit", 3) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    report = json.loads(first["generation.json"])
    assert str(tmp_path) not in first["generation.json"].decode()
    seen, held_out = report["seen"], report["held_out"]
    assert (seen["prompts"], seen["with_style"], held_out["prompts"]) == (3, 2, 3)
    assert (report["judge"]["pictures"], report["judge"]["concepts"]) == (48, 16)
    for measure in ("seen", "held_out"):
        assert set(report[measure]["ways"]) == set(generation.WAYS)
        assert set(report[measure]["share"]) == set(report[measure]["ways"]["generated"])
    assert [point["scale"] for point in report["curve"]["points"]] == [1, 2.5]
    for name in ("generation.png", "generation-pictures.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    text = capsys.readouterr().out.split("wrote ")[0]
    for words in ("seen captions (3)", "held-out compositions (3)", "vs. codes", "best scale:"):
        assert words in text
    assert "…" not in text, "the tables do not fit into 80 columns"
    assert max(map(len, text.splitlines())) <= 80
    assert evaluate("--out", out) == 2
    assert "already contains generation.json" in capsys.readouterr().err
    assert evaluate("--out", out, "--limit", 3, "--quiet", "--overwrite") == 0
    assert capsys.readouterr().out == ""
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_without_curve_and_with_a_cache_elsewhere(evaluate, tmp_path, capsys):
    out, cache = tmp_path / "out", tmp_path / "cache" / "known"
    assert evaluate("--out", out, "--limit", 1, "--no-curve", "--steps", 0, "--cache", cache) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES[:3]
    assert cache.is_file()
    report = json.loads((out / "generation.json").read_bytes())
    assert (report["curve"], report["steps"], report["seen"]["prompts"]) == (None, 0, 1)
    assert "best scale" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", 4), "has only a preview"),
        (("--limit", 0), "--limit"),
        (("--data", "nowhere"), "nowhere is no starter data"),
    ],
)
def test_what_does_not_fit_is_a_users_mistake(words, said, evaluate, tmp_path, capsys):
    assert evaluate("--out", tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
