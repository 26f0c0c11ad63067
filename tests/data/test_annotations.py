"""Edits and questions beside images become samples; what names no usable image is said."""

import json

import pytest

from pictish.data.collect import look, write_raw_shards
from pictish.data.samples import Edit, Question, index_shard
from pictish.data.shards import ShardFile
from tests.shards import png, told_picture

EDITS = [
    {"source": "red.png", "instruction": " make it blue ", "target": "./sub/blue.webp"},
    {"source": "red.png", "instruction": "make it green", "target": "green.png"},
    {"source": "red.png", "instruction": "", "target": "sub/blue.webp"},
    {"source": "broken.png", "instruction": "mend it", "target": "red.png"},
]
QUESTIONS = [
    {"image": "red.png", "question": "which colour?", "answer": "red"},
    {"file_name": "red.png", "question": "which shape?", "answer": "disc"},
    {"image": "red.png", "question": "which shape?", "answer": 3},
]


def lines(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    told_picture("red", "disc", 32).save(folder / "red.png")
    told_picture("blue", "disc", 32).save(folder / "sub" / "blue.webp", lossless=True)
    told_picture("blue", "bar", 32).save(folder / "bar.png")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    for name in ("red", "sub/blue", "bar"):
        (folder / f"{name}.txt").write_text(f"a {name} thing")
    (folder / "edits.jsonl").write_text(lines(EDITS) + "no JSON\n")
    (folder / "questions.jsonl").write_text(lines(QUESTIONS))
    (folder / "sub" / "questions.jsonl").write_text(
        lines([{"image": "blue.webp", "question": "which colour?", "answer": "blue"}])
    )
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "questions.jsonl").write_text("not looked at")
    return folder


def samples_of(data, kind):
    indices = [index_shard(shard) for shard in sorted(data.rglob(f"{kind}-*.tar"))]
    return [index.read(row) for index in indices for row in range(len(index))]


def test_they_become_samples_of_the_pictures_they_name(folder, tmp_path):
    found = look(folder)
    skipped = {name: reason for reason, names in found.reading.report.skipped.items() for name in names}
    assert skipped.pop("broken.png")
    assert skipped == {
        "edits.jsonl line 2": "names green.png, no image of the source",
        "edits.jsonl line 3": "instruction is missing, or no text",
        "edits.jsonl line 4": "names broken.png, an image that cannot be used",
        "edits.jsonl line 5": "not a JSON object",
        "questions.jsonl line 3": "answer is missing, or no text",
    }
    data = tmp_path / "data"
    manifest = write_raw_shards(found, data, 0.3)
    assert (manifest["sources"][0]["edits"], manifest["sources"][0]["questions"]) == (1, 3)
    (edit,) = samples_of(data, "edits")
    assert isinstance(edit, Edit)
    assert edit.instruction == "make it blue"
    assert edit.before.blob == (folder / "red.png").read_bytes()
    assert edit.after.blob == (folder / "sub" / "blue.webp").read_bytes()
    asked = {sample.turns: sample.picture.blob for sample in samples_of(data, "questions")}
    assert all(isinstance(sample, Question) for sample in samples_of(data, "questions"))
    assert asked == {
        (("which colour?", "red"), ("which shape?", "disc")): (folder / "red.png").read_bytes(),
        (("which colour?", "blue"),): (folder / "sub" / "blue.webp").read_bytes(),
    }
    assert not list(data.rglob(".named"))


def test_an_edit_of_a_picture_that_is_held_out_is_held_out(folder, tmp_path):
    found = look(folder)
    write_raw_shards(found, tmp_path / "two", 0.99)  # two of three images, so one of the edit's
    assert [len(samples_of(tmp_path / "two" / split, "edits")) for split in ("train", "validation")] == [0, 1]
    write_raw_shards(found, tmp_path / "none", look(folder / "sub"))
    assert [len(samples_of(tmp_path / "none" / split, "edits")) for split in ("train", "validation")] == [
        1,
        0,
    ]


def test_pictures_of_shards_are_named_by_shard_and_key(tmp_path):
    source = tmp_path / "shards"
    with ShardFile(source / "a.tar") as shard:
        for colour in ("red", "blue"):
            members = {"png": png(told_picture(colour, "disc", 32)), "txt": f"a {colour} disc".encode()}
            shard.write(colour, members)
    row = {"source": "a/red", "instruction": "make it blue", "target": "a/blue"}
    (source / "edits.jsonl").write_text(lines([row, {**row, "target": "a/green"}]))
    found = look(source)
    assert found.reading.report.skipped == {"names a/green, no image of the source": ["edits.jsonl line 2"]}
    write_raw_shards(found, tmp_path / "data", 0.5)
    (edit,) = samples_of(tmp_path / "data", "edits")
    assert edit.before.blob == png(told_picture("red", "disc", 32))
    assert edit.after.blob == png(told_picture("blue", "disc", 32))
