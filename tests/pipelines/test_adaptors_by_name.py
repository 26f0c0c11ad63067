"""Adaptors by name beside one model: the Python API, and the commands."""

from pathlib import Path

import pytest

import pictish
from pictish.cli import main
from pictish.data.provenance import read_origin
from pictish.pipelines.adaptors import adaptor_folders, choose_adaptor
from tests.shards import told_picture
from tests.whole import write_adaptor


@pytest.fixture(scope="module")
def beside(whole_model, tmp_path_factory) -> Path:
    """A folder with two adaptors of `whole_model`; one lies in a run's folder."""
    folder = tmp_path_factory.mktemp("adaptors")
    write_adaptor(whole_model, folder / "red", 1)
    write_adaptor(whole_model, folder / "run" / "model", 2)
    return folder


def test_images_of_one_call_are_answered_by_different_adaptors_and_the_model_stays_itself(
    whole_model, beside
):
    pipe = pictish.Pipeline.from_pretrained(whole_model)
    image = told_picture("red", "disc")
    plain, drawn = pipe.describe(image, "what?", max_new_tokens=6), pipe.generate_tokens("a red disc", seed=1)
    assert [pipe.load_adaptor(beside / "red"), pipe.load_adaptor(beside / "run", "blue")] == ["red", "blue"]
    assert pipe.adaptors == ["blue", "red"]
    names = ["red", None, "blue", "red"]
    together = pipe.describe([image] * 4, "what?", max_new_tokens=6, adaptor=names)
    assert together == [pipe.describe(image, "what?", max_new_tokens=6, adaptor=name) for name in names]
    assert together[1] == plain
    assert len(set(together)) == 3
    assert pipe.generate_tokens("a red disc", seed=1) == drawn
    assert pipe.generate_tokens("a red disc", seed=1, adaptor="red") != drawn
    pipe.unload_adaptor("red")
    assert pipe.describe(image, "what?", max_new_tokens=6) == plain
    for name in ("red", "green"):
        with pytest.raises(ValueError, match=f"no adaptor is called {name}, and the model has none"):
            pipe.describe(image, adaptor=name)
    with pytest.raises(ValueError, match="no adaptor called red is loaded; blue"):
        pipe.unload_adaptor("red")
    with pytest.raises(ValueError, match="2 names for 1 images"):
        pipe.describe([image], adaptor=["blue", None])


def test_a_picture_remembers_the_adaptor_it_was_drawn_by(whole_model, beside, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--model", str(whole_model), "--quiet", "--steps", "0"]
    folders = ["--adaptor-folder", str(beside / "red"), "--adaptor-folder", str(beside / "run")]
    assert main(["generate", "a red disc", "--adaptor", "run", *folders, *more]) == 0
    origin = read_origin(tmp_path / "generated" / "a-red-disc-0.png")
    assert origin.adaptor == "run"
    assert origin.adaptor_weights is not None
    assert main(["generate", "a red disc", *folders, *more, "--out", "x"]) == 2
    assert "2 adaptors were given, red, run; choose one by name" in capsys.readouterr().err


def test_names_of_adaptors_are_those_of_their_folders(beside, tmp_path):
    assert adaptor_folders(tmp_path, [beside]) == {"red": beside / "red"}  # a run is given by itself
    assert adaptor_folders(tmp_path, [beside / "run"]) == {"run": beside / "run" / "model"}
    assert choose_adaptor(None, tmp_path) is None
    assert choose_adaptor(None, tmp_path, [beside / "red"]) == ("red", beside / "red")
    with pytest.raises(ValueError, match="no adaptor, nor a folder of adaptors"):
        adaptor_folders(tmp_path, [tmp_path])
