"""`pictish describe` of folders and shards: a line of JSON for each image; resumed; the broken are named."""

import json

import pytest

from pictish.cli import main
from pictish.data.shards import ShardFile
from pictish.io.model_folder import fingerprint
from tests.shards import png, told_picture

NAMES = ("blue.png", "green.png", "red.png", "sub/red.png")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        told_picture(name.rpartition("/")[2].removesuffix(".png"), "disc").save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffno picture")
    return folder


@pytest.fixture
def describe(whole_model, capsys, monkeypatch):
    monkeypatch.delenv("PICTISH_TRACEBACK", raising=False)

    def run(*words):
        options = ["--model", whole_model, "--max-new-tokens", "6", "--batch-size", "2"]
        code = main([str(word) for word in ("describe", *words, *options)])
        run.out, run.err = capsys.readouterr()
        return code

    return run


def test_a_folder_gives_a_line_for_each_image(describe, folder, whole_model, tmp_path):
    assert describe(folder) == 1
    rows = [json.loads(line) for line in describe.out.splitlines()]
    assert [row["file_name"] for row in rows] == list(NAMES)
    assert all(row["lm"] == fingerprint(whole_model / "lm") for row in rows)
    assert "broken.jpg: " in describe.err
    assert "4 images described, 1 could not be read" in describe.err
    assert describe(folder / "red.png") == 0
    assert describe.out.rstrip("\n") == rows[2]["text"] == rows[3]["text"]
    with ShardFile(tmp_path / "a.tar") as shard:
        shard.write("red", {"png": png(told_picture("red", "disc"))})
    assert describe(tmp_path / "a.tar", "which colour?") == 0
    (row,) = map(json.loads, describe.out.splitlines())
    assert (row["file_name"], row["question"]) == ("a.tar/red.png", "which colour?")
    assert describe(folder / "red.png", "which colour?") == 0
    assert row["answer"] == describe.out.rstrip("\n")


def test_a_file_is_resumed_with_the_same_settings_only(describe, folder, tmp_path):
    out = tmp_path / "texts" / "all.jsonl"
    assert describe(folder, "--out", out) == 1
    assert describe.out == ""
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20])
    assert describe(folder, "--out", out) == 1
    assert out.read_text() == whole
    assert describe(folder, "--out", out) == 1
    assert out.read_text() == whole
    assert describe(folder, "who?", "--out", out) == 2
    assert "was written with question None, and who? is asked for; give --overwrite" in describe.err
    assert describe(folder, "--out", out, "--codes", "--overwrite") == 1
    assert len(out.read_text().splitlines()) == 4
    (tmp_path / "other.jsonl").write_text("[1]\n")
    assert describe(folder, "--out", tmp_path / "other.jsonl") == 2
    assert "line 1 is not of pictish describe" in describe.err
    assert describe(folder, "--out", folder / "texts.jsonl") == 2
    assert "lies among the inputs" in describe.err
