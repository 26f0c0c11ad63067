import os

import pytest

from pictish.io.finding import IMAGES, File, Found, find, kind_of, shard_name_of, split_name, walk
from pictish.io.signatures import image_suffix

JPEG = b"\xff\xd8\xff\xe0" + bytes(40)


def fill(folder, names, blob=b"x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)
    return folder


def names(files):
    return [file.name for file in files]


def test_each_file_is_an_image_a_shard_a_problem_or_something_else(tmp_path):
    images = [f"a.{suffix}" for suffix in IMAGES] + ["B.JPG"]
    shards = ["a.tar", "b.tar.gz", "c.TGZ", "d.tar.zst", "E.TAR"]
    problems = ["a.psd", "b.NEF", "c.tar.bz2", "d.txz"]
    others = ["notes.txt", "a.tokens", "x"]
    fill(tmp_path, [*images, *shards, *problems, *others])
    found = find([tmp_path])
    assert names(found.images) == sorted(images)
    assert names(found.shards) == sorted(shards)
    assert [name for name, _ in found.problems] == sorted(problems)
    assert found.others == sorted(others)
    assert found.note() == "ignored 3 non-image files (1 .tokens, 1 .txt, 1 without suffix)"


def test_a_file_whose_name_says_nothing_is_an_image_by_its_first_bytes(tmp_path):
    fill(tmp_path, ["photo", "photo.jpg_large", "take 2.0", "page.html"], JPEG)
    fill(tmp_path, ["words", "page.php"], b"<!DOCTYPE html>")
    os.mkfifo(tmp_path / "pipe")
    found = find([tmp_path])
    assert names(found.images) == ["page.html", "photo", "photo.jpg_large", "take 2.0"]
    assert found.others == ["page.php", "pipe", "words"]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"GIF89a", "gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"MM\0*", "tif"),
        (b"II+\0\x08\0\0\0", "tif"),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "bmp"),
        (b"BMW is a car, not a bitmap", None),
        (b"\0\0\0\x20ftypavif", "avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "avif"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x2cftypmif1\0\0\0\0" + b"miafMA1Bheix" * 2 + b"avif", "avif"),
        (b"\0\0\0\x1cftypisom", None),
        (b"", None),
    ],
)
def test_what_begins_as_an_image_is_one(head, kind):
    assert image_suffix(head) == kind


def test_hidden_files_and_folders_are_left_out_and_counted_but_not_what_was_named(tmp_path):
    shown = ["a.jpg", "b.tar"]
    hidden = ["._a.jpg", ".ipynb_checkpoints", "__MACOSX", ".Trash-0", ".c.tar", "@eaDir"]
    fill(
        tmp_path, [*shown, "._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/._a.jpg", ".Trash-0/files/x.jpg"]
    )
    fill(tmp_path, [".c.tar", "@eaDir/a.jpg/thumb.jpg"])
    found = find([tmp_path])
    assert names([*found.images, *found.shards]) == shown
    assert sorted(found.hidden) == sorted(hidden)
    assert found.problems == []
    assert "6 hidden files (" in found.note()
    assert names(find([tmp_path / ".Trash-0", tmp_path / "._a.jpg"]).images) == ["._a.jpg", "files/x.jpg"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    fill(tmp_path, ["in/real/a.jpg", "elsewhere/b.jpg", "elsewhere/deep/c.jpg"])
    for link, target in (
        ("class", "../elsewhere"),
        ("again", "real"),
        ("loop", "."),
        ("x.jpg", "real/a.jpg"),
    ):
        (tmp_path / "in" / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.tar").symlink_to("nowhere")
    found = find([tmp_path / "in"])
    assert names(found.images) == ["class/b.jpg", "class/deep/c.jpg", "real/a.jpg", "x.jpg"]
    assert sorted(found.known) == ["again", "class/back", "loop"]
    assert found.problems == [("gone.tar", "not a regular file")]


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_found(tmp_path, monkeypatch):
    fill(tmp_path, ["a.jpg", "secret/b.jpg", "z/c.jpg"])
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) == "secret":  # noqa: PTH119
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find([tmp_path])
    assert names(found.images) == ["a.jpg", "z/c.jpg"]
    assert found.problems == [("secret", "Permission denied")]


def test_what_was_named_and_is_nothing_known_is_a_problem(tmp_path):
    fill(tmp_path, ["a.jpg", "notes.txt"])
    found = find([tmp_path / "notes.txt", tmp_path / "a.jpg"])
    assert names(found.images) == ["a.jpg"]
    ((name, reason),) = found.problems
    assert name == "notes.txt"
    assert reason.startswith("not an image by its name or content")
    with pytest.raises(ValueError, match="no such file"):
        find([tmp_path / "none"])


def test_names(tmp_path):
    assert split_name("a/v1.0 take 2.JPG") == ("a/v1.0 take 2", "jpg")
    assert [split_name(name)[1] for name in ("take 2.0", ".x", "a.b/c", "x." + "y" * 40)] == [""] * 4
    assert [shard_name_of(name) for name in ("a.tar.gz", "b.TAR", "c.v1.tgz")] == [
        "a.tar",
        "b.tar",
        "c.v1.tar",
    ]
    assert kind_of("a.TAR.BZ2") == "unsupported shard"
    fill(tmp_path, ["b/x", "a/y"])
    assert list(walk(tmp_path, Found())) == [File(tmp_path / name, name) for name in ("a/y", "b/x")]
