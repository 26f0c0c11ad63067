"""Every form that images with captions come in, as one stream; what is left out has a name and a reason."""

import csv
import json

import pytest

from pictish.data.captions import captions_of
from pictish.data.shards import ShardFile
from pictish.data.sources import Reading, read_source, reader_of
from tests.shards import png, told_picture, write_described_shards

CAPTIONS = {"one": "a red disc", "two": "a blue bar"}
PICTURES = {"one": told_picture("red", "disc", 32), "two": told_picture("blue", "bar", 32)}


def save(folder, names=("one", "two")):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        PICTURES[name].save(folder / f"{name}.png")
    return folder


def read(path, key=None):
    """Captions by the name of the image's last part, and the reading."""
    reading = Reading(key)
    found = {}
    for item in read_source(path, reading):
        assert item.read().startswith(b"\x89PNG")
        found[item.name.rpartition("/")[2].removesuffix(".png")] = item.captions
    return found, reading


def expected(names=("one", "two")):
    return {name: (CAPTIONS[name],) for name in names}


def write_texts(folder):
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.txt").write_text(f"  {caption}\n")


def write_captions(folder):
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.caption").write_text(caption)


def write_objects(folder):
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.json").write_text(json.dumps({"Prompt": caption, "seed": 1}))


def write_metadata_jsonl(folder):
    rows = [json.dumps({"file_name": f"{name}.png", "text": caption}) for name, caption in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def write_metadata_csv(folder):
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("file_name", "additional_feature", "prompt"), ("one.png", "x", CAPTIONS["one"])])
        rows.writerow(("two.png", "with, a comma", CAPTIONS["two"]))


@pytest.mark.parametrize(
    "write", [write_texts, write_captions, write_objects, write_metadata_jsonl, write_metadata_csv]
)
def test_a_folder_of_pictures(write, tmp_path):
    write(save(tmp_path))
    found, reading = read(tmp_path)
    assert found == expected()
    assert reading.report.skipped == {}
    assert reading.ignored == {}


def test_metadata_in_a_folder_below_names_the_files_beside_it(tmp_path):
    write_metadata_jsonl(save(tmp_path / "train"))
    (tmp_path / "more").mkdir()
    PICTURES["one"].save(tmp_path / "more" / "alone.png")
    assert read(tmp_path)[0] == {**expected(), "alone": ()}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_a_table_that_names_files(suffix, tmp_path):
    save(tmp_path / "pictures")
    rows = [{"image": f"pictures/{name}.png", "caption": caption} for name, caption in CAPTIONS.items()]
    rows.append({"image": "pictures/one.png", "caption": "the same disc"})
    path = tmp_path / f"table.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        separator = "," if suffix == "csv" else "\t"
        lines = [separator.join(row) for row in [rows[0].keys(), *(row.values() for row in rows)]]
        path.write_text("\n".join(lines))
    assert read(path)[0] == {"one": (CAPTIONS["one"], "the same disc"), "two": (CAPTIONS["two"],)}


def test_shards(tmp_path):
    with ShardFile(tmp_path / "a.tar") as shard:
        shard.write("one", {"png": png(PICTURES["one"]), "txt": CAPTIONS["one"].encode()})
        facts = {"captions": [CAPTIONS["two"], "bar"]}
        shard.write("two", {"png": png(PICTURES["two"]), "json": json.dumps(facts).encode()})
        shard.write("words", {"txt": b"no picture"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path, tmp_path / "a.tar"):
        found, reading = read(path)
        assert found == {"one": (CAPTIONS["one"],), "two": (CAPTIONS["two"], "bar")}
        assert reading.report.skipped["holds 0 images, and one is needed"] == ["a/words"]
    damage = [name for names in read(tmp_path)[1].report.skipped.values() for name in names]
    assert any(name.startswith("b.tar after sample") for name in damage)


def test_samples_of_several_pictures_are_named(tmp_path):
    write_described_shards(tmp_path, 3)
    found, reading = read(tmp_path / "edits.tar")
    assert found == {}
    assert len(reading.report.skipped["holds 2 images, and one is needed"]) == 3


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    parquet.write_table(pa.Table.from_pylist(rows), path)


def hugging_face_rows():
    return [
        {"image": {"bytes": png(PICTURES[name]), "path": f"{name}.png"}, "text": caption, "label": 3}
        for name, caption in CAPTIONS.items()
    ]


def test_parquet_of_hugging_face_and_of_img2dataset(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", hugging_face_rows())
    for path in (tmp_path, tmp_path / "train-00000-of-00001.parquet"):
        assert read(path)[0] == expected()
    rows = [
        {"key": name, "caption": caption, "url": f"https://example.org/{name}", "jpg": png(PICTURES[name])}
        for name, caption in CAPTIONS.items()
    ]
    rows.append({"key": "gone", "caption": "x", "url": "https://example.org/gone", "jpg": None})
    write_parquet(tmp_path / "00000.parquet", rows)
    found, reading = read(tmp_path / "00000.parquet")
    assert found == expected()
    assert list(reading.report.skipped) == ["holds no image but a URL"]


def test_damaged_parquet_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", hugging_face_rows())
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    found, reading = read(tmp_path / "a.parquet")
    assert found == {}
    assert [names for names in reading.report.skipped.values()] == [["a.parquet from row 0"]]


def test_a_folder_saved_by_datasets(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(hugging_face_rows())
    with pa.ipc.new_stream(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    assert reader_of(tmp_path)[0] == "folder saved by datasets"
    assert read(tmp_path)[0] == expected()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(ValueError, match="give the folder of one"):
        reader_of(tmp_path)


def test_a_caption_key_names_the_field():
    record = {"text": "short", "Long_Caption": ["a long one", " ", "another"], "n": 3}
    assert captions_of(record) == ("text", ("short",))
    assert captions_of(record, "long_caption") == ("Long_Caption", ("a long one", "another"))
    assert captions_of(record, "n") == (None, ())
    assert captions_of({"caption": "", "text": "x"}) == ("text", ("x",))


def test_a_caption_key_goes_before_files_of_text(tmp_path):
    write_objects(save(tmp_path))
    (tmp_path / "one.txt").write_text("other words")
    assert read(tmp_path, key="prompt")[0] == expected()


def test_what_a_folder_holds_beside_pictures_is_counted(tmp_path):
    write_texts(save(tmp_path))
    save(tmp_path / ".thumbnails", ["one"])
    for name in ("notes.md", "film.mp4", "orphan.txt", "rows.jsonl", "more.tar"):
        (tmp_path / name).write_text("")
    rows = [{"file_name": "three.png", "text": "x"}, {"file_name": "../one.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*map(json.dumps, rows), "{"]))
    found, reading = read(tmp_path)
    assert found == expected()
    assert reading.ignored == {".md": 1, ".mp4": 1, ".txt": 1, "hidden files": 1}
    named = {name for names in reading.report.skipped.values() for name in names}
    assert named == {
        "rows.jsonl",
        "more.tar",
        "three.png",
        "metadata.jsonl line 2",
        "metadata.jsonl line 3",
    }


def test_what_is_no_source_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path, said in (
        (tmp_path / "none", "no such file"),
        (tmp_path / "notes.txt", "not a source"),
        (tmp_path, "no images found"),
    ):
        with pytest.raises(ValueError, match=said):
            reader_of(path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'pictish\[parquet\]'"):
        read(tmp_path / "a.parquet")
