"""A source looked through once and written as raw shards that every other command reads."""

import json

import pytest
from PIL import Image

from pictish.data.collect import look, read_manifest, write_raw_shards
from pictish.data.samples import Pair, index_shard
from tests.shards import drawn_picture


@pytest.fixture
def folder(tmp_path):
    """Ten images with captions, one of them twice; three without, one of them a GIF; one that is broken."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number in range(10):
        drawn_picture(number, 32).save(folder / "sub" / f"v1.{number}.png")
        (folder / "sub" / f"v1.{number}.txt").write_text(f"picture {number}")
    (folder / "copy.png").write_bytes((folder / "sub" / "v1.0.png").read_bytes())
    (folder / "copy.txt").write_text("a copy")
    drawn_picture(20, 40).save(folder / "bare.png")
    drawn_picture(21, 40).convert("RGB").save(folder / "bare.gif")
    drawn_picture(22, 40).convert("RGB").save(folder / "bare.webp")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    return folder


def samples(path):
    index = index_shard(path)
    return [index.read(row) for row in range(len(index))]


def test_shards_hold_all_that_can_be_used(folder, tmp_path):
    found = look(folder)
    manifest = write_raw_shards(found, tmp_path / "data", 0.2)
    assert manifest == read_manifest(tmp_path / "data")
    assert (
        manifest["samples"]["train/uncaptioned"] + manifest["samples"].get("validation/uncaptioned", 0) == 3
    )
    (source,) = manifest["sources"]
    assert (source["pictures"], source["captioned"], source["captions"], source["copies"]) == (14, 11, 11, 1)
    assert source["sizes"] == {"smallest": [32, 32], "median": [32, 32], "largest": [40, 40]}
    assert source["captions_from"] == {"name.txt": 11}
    ((_, left_out),) = source["left_out"].items()
    assert left_out == {"count": 1, "names": ["broken.png"]}
    by_split = {
        split: samples(tmp_path / "data" / split / "captioned-000000.tar")
        for split in ("train", "validation")
    }
    captions = [caption for pairs in by_split.values() for pair in pairs for caption in pair.captions]
    assert sorted(captions) == sorted([*(f"picture {number}" for number in range(10)), "a copy"])
    assert all(isinstance(pair, Pair) for pair in by_split["train"])
    held_out = {pair.captions[0] for pair in by_split["validation"]}
    assert 2 <= len(held_out) <= 3
    assert ("a copy" in held_out) == ("picture 0" in held_out), "copies lie on one side"


def test_it_is_written_the_same_again(folder, tmp_path):
    for name in ("one", "two"):
        write_raw_shards(look(folder, workers=2 if name == "two" else 0), tmp_path / name, 0.2)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.tar")]
    assert files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_source_of_its_own_to_validate_on(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    drawn_picture(30, 32).save(other / "x.png")
    (other / "x.txt").write_text("held out")
    manifest = write_raw_shards(look(folder), tmp_path / "data", look(other))
    assert manifest["samples"] == {"train/captioned": 11, "train/uncaptioned": 3, "validation/captioned": 1}


def test_a_source_that_changes_meanwhile_is_refused(folder, tmp_path):
    found = look(folder)
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    with pytest.raises(ValueError, match="changed while it was read"):
        write_raw_shards(found, tmp_path / "data", 0.2)
    assert not (tmp_path / "data").exists()


def test_several_captions_are_kept(tmp_path):
    drawn_picture(1, 32).save(tmp_path / "a.png")
    drawn_picture(2, 32).save(tmp_path / "b.png")
    rows = [{"file_name": f"{name}.png", "captions": ["one", "two"]} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_raw_shards(look(tmp_path), tmp_path / "data", 0.5)
    (pair,) = samples(tmp_path / "data" / "train" / "captioned-000000.tar")
    assert pair.captions == ("one", "two")


def test_what_cannot_be_trained_on_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="caption_key 'words': no sample has captions there"):
        look(folder, "words")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image could be used: 1 skipped, .*x\.png"):
        look(empty)
    drawn_picture(1).save(empty / "x.png")
    with pytest.raises(ValueError, match="one more is needed"):
        write_raw_shards(look(empty), tmp_path / "data", 0.1)
