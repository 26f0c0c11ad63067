import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.cli import main
from pictish.data.images import png_bytes
from pictish.data.shards import ShardWriter
from pictish.evaluation.tokenizer import METRICS, budgets_of


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, size=(5, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((40, 50), Image.Resampling.BILINEAR)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "some pictures"
    folder.mkdir()
    for seed in range(3):
        picture(seed).save(folder / f"bild ü{seed}.png")
    return folder


def evaluate(tiny_models: Path, *words: object) -> int:
    return main(["evaluate", "tokenizer", *map(str, words), "--model", str(tiny_models), "--device", "cpu"])


def test_evaluation_writes_numbers_chart_and_sheet(pictures, tiny_models, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(tiny_models, pictures, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "tokenizer-pictures.png",
        "tokenizer.json",
        "tokenizer.png",
    ]
    report = json.loads((out / "tokenizer.json").read_bytes())
    (found,) = report["sets"]
    assert (found["name"], found["pictures"], found["broken"]) == ("pictures", 3, [])
    cells = report["grid"][0] * report["grid"][1]
    assert [point["budget"] for point in found["budgets"]] == list(budgets_of(cells))
    for point in found["budgets"]:
        assert point["tokens"]["p95"] == point["budget"]
    for name in ("computed", "random", "uniform"):
        assert found["baselines"][name]["tokens"] == found["automatic"]["tokens"]
        assert set(found["gain_over"][name]) == set(METRICS)
    for name in ("tokenizer.png", "tokenizer-pictures.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    text = capsys.readouterr().out
    assert "pictures (3)" in text
    assert "…" not in text, "the table does not fit into 80 columns"
    for words in (
        "automatic",
        "computed: PSNR",
        "random: PSNR",
        "uniform: feature distance",
        "thumbnail",
        str(out / "tokenizer.json"),
    ):
        assert words in text


def test_a_second_run_gives_the_same_bytes_and_needs_overwrite(pictures, tiny_models, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(tiny_models, pictures, "--out", out, "--quiet") == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert evaluate(tiny_models, pictures, "--out", out) == 2
    assert "already contains tokenizer.json" in capsys.readouterr().err
    assert evaluate(tiny_models, pictures, "--out", out, "--quiet", "--overwrite") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert str(tmp_path).encode() not in first["tokenizer.json"]


def test_shards_and_limit(tiny_models, tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        for seed in range(3):
            writer.write(f"key{seed}", {"png": png_bytes(picture(seed))})
    words = (tmp_path / "shards", "--limit", 2, "--out", tmp_path / "out", "--quiet")
    assert evaluate(tiny_models, *words) == 0
    (found,) = json.loads((tmp_path / "out" / "tokenizer.json").read_bytes())["sets"]
    assert found["pictures"] == 2


def test_photographs_are_a_set_of_their_own(pictures, tiny_models, tmp_path):
    words = (pictures / "bild ü0.png", "--photographs", "--out", tmp_path / "out", "--quiet")
    assert evaluate(tiny_models, *words) == 0
    sets = json.loads((tmp_path / "out" / "tokenizer.json").read_bytes())["sets"]
    assert [(each["name"], each["pictures"]) for each in sets] == [("pictures", 1), ("photographs", 8)]
    assert (tmp_path / "out" / "tokenizer-photographs.png").exists()


def test_pictures_of_one_colour_are_a_set_of_their_own(tiny_models, tmp_path):
    assert evaluate(tiny_models, "--flat", "--out", tmp_path / "out", "--quiet") == 0
    (found,) = json.loads((tmp_path / "out" / "tokenizer.json").read_bytes())["sets"]
    assert (found["name"], found["pictures"]) == ("flat", 16)
    assert (tmp_path / "out" / "tokenizer-flat.png").exists()


def test_a_broken_picture_is_named_and_left_out(pictures, tiny_models, tmp_path, capsys):
    (pictures / "torn.jpg").write_text("no picture")
    assert evaluate(tiny_models, pictures, "--out", tmp_path / "out", "--quiet") == 1
    said = capsys.readouterr()
    assert "torn.jpg: not an image" in said.err
    assert said.out == ""
    (found,) = json.loads((tmp_path / "out" / "tokenizer.json").read_bytes())["sets"]
    assert found["pictures"] == 3
    assert [each["name"] for each in found["broken"]] == ["torn.jpg"]


def test_figures_among_the_pictures_are_refused(pictures, tiny_models, capsys):
    before = sorted(pictures.iterdir())
    assert evaluate(tiny_models, pictures, "--out", pictures) == 2
    assert "lies among the inputs" in capsys.readouterr().err
    assert sorted(pictures.iterdir()) == before


@pytest.mark.parametrize("inputs", [(), ("empty",), ("absent",), ("only-broken",)])
def test_nothing_to_evaluate_is_a_users_mistake(inputs, tiny_models, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "only-broken").mkdir()
    (tmp_path / "only-broken" / "torn.png").write_text("no picture")
    words = [tmp_path / name for name in inputs]
    assert evaluate(tiny_models, *words, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + ("only-broken" in inputs)
    assert all(line.startswith("pictish: ") for line in lines)
    assert not (tmp_path / "out").exists()
