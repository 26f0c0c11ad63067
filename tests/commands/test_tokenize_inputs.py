"""What `pictish tokenize` makes of what people have on their disks: nothing is lost without a word."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from pictish.cli import main
from pictish.data.shards import read_shard


def encoded(number, kind="JPEG"):
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((40, 30), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def fill(folder, files):
    for name, blob in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)
    return folder


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, blob in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    return path


@pytest.fixture
def tokenize(tiny_models, tmp_path, capsys):
    """Tokenize tmp_path/in to tmp_path/out: its exit code, its lines on stderr, the names of its tokens."""

    def run(*words):
        asked = [str(word) for word in words] or [str(tmp_path / "in")]
        out = tmp_path / "out"
        code = main(["tokenize", *asked, str(out), "--model", str(tiny_models), "--workers", "0"])
        made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.tokens"))
        return code, capsys.readouterr().err.splitlines(), made

    return run


def stats(folder, name):
    return json.loads((folder / f"{name}_stats.json").read_text())


def members(shard):
    return {sample["__key__"]: sorted(set(sample) - {"__key__"}) for sample in read_shard(shard)}


def test_hidden_files_are_left_out_and_counted(tmp_path, tokenize):
    fill(tmp_path / "in", {name: encoded(1) for name in ("a.jpg", ".ipynb_checkpoints/a.jpg", "._a.jpg")})
    code, lines, made = tokenize()
    assert (code, made) == (0, ["a.tokens"])
    assert lines == ["pictish: ignored 2 hidden files (._a.jpg, .ipynb_checkpoints)"]


def test_every_format_is_read_or_named(tmp_path, tokenize):
    kinds = {
        "a.jpg": "JPEG",
        "b.jfif": "JPEG",
        "c.jpe": "JPEG",
        "d.avif": "AVIF",
        "f": "PNG",
        "g.jpg_large": "JPEG",
    }
    files = {name: encoded(number, kind) for number, (name, kind) in enumerate(kinds.items())}
    fill(tmp_path / "in", {**files, "e.psd": b"8BPS", "words.txt": b"x"})
    code, lines, made = tokenize()
    assert made == ["a.tokens", "b.tokens", "c.tokens", "d.tokens", "f.tokens", "g.tokens"]
    assert (code, len(lines)) == (1, 2)
    assert lines[0] == "pictish: ignored 1 non-image file (1 .txt)"
    assert "e.psd: unsupported image format" in lines[1]


def test_a_heic_image_is_read_by_an_extra_or_named(tmp_path, tokenize):
    try:
        from pillow_heif import from_pillow
    except ImportError:
        fill(tmp_path / "in", {"a.jpg": encoded(0), "b.HEIC": b"\0\0\0\x18ftypheic"})
        code, lines, made = tokenize()
        assert (code, made) == (1, ["a.tokens"])
        assert "pip install 'pictish[heic]'" in lines[0]
        return
    buffer = io.BytesIO()
    from_pillow(Image.open(io.BytesIO(encoded(0)))).save(buffer)
    fill(tmp_path / "in", {"b.HEIC": buffer.getvalue()})
    assert tokenize() == (0, [], ["b.tokens"])


def test_linked_folders_are_read(tmp_path, tokenize):
    fill(tmp_path, {"in/real/a.jpg": encoded(1), "elsewhere/b.jpg": encoded(2)})
    (tmp_path / "in" / "linked").symlink_to("../elsewhere")
    assert tokenize() == (0, [], ["linked/b.tokens", "real/a.tokens"])


def test_all_that_would_meet_are_named_and_the_rest_is_done(tmp_path, tokenize):
    names = ["p0.jpg", "p0.png", "p1.gif", "p1.jpg", "p1.png", "other.jpg", "sub/p0.jpg", "a\\b.jpg"]
    fill(tmp_path / "in", dict.fromkeys(names, encoded(1)))
    code, lines, made = tokenize()
    assert (code, made) == (1, ["other.tokens", "sub/p0.tokens"])
    assert sorted(lines) == [
        r"pictish: a\b.jpg: 'a\\b.jpg' is not a plain relative name with / between its parts; rename it",
        "pictish: p0.jpg and p0.png: would both become p0.tokens; rename one",
        "pictish: p1.gif and p1.jpg and p1.png: would both become p1.tokens; rename one",
    ]


def test_a_name_that_grows_too_long_does_not_end_the_rest(tmp_path, tokenize):
    fill(tmp_path / "in", {"a.jpg": encoded(1), "m" * 251 + ".jpg": encoded(2), "z.jpg": encoded(3)})
    code, (line,), made = tokenize()
    assert (code, made) == (1, ["a.tokens", "z.tokens"])
    assert line.endswith("mmm.jpg: file name too long for this file system")


def test_a_folder_that_cannot_be_read_does_not_end_the_rest(tmp_path, tokenize, monkeypatch):
    fill(tmp_path / "in", {"a.jpg": encoded(1), "secret/b.jpg": encoded(2)})
    scandir = os.scandir

    def refusing(path="."):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    code, lines, made = tokenize()
    assert (code, lines, made) == (1, ["pictish: secret: Permission denied"], ["a.tokens"])


def test_shards_beside_a_picture_are_not_forgotten(tmp_path, tokenize):
    fill(tmp_path / "in", {"cover.jpg": encoded(1)})
    tar(tmp_path / "in" / "a.tar", {"a.jpg": encoded(2)})
    code, (line,), made = tokenize()
    assert (code, made) == (2, [])
    assert (
        "1 shard (a.tar ...) and 1 image (cover.jpg ...) were found; tokenize them in separate runs" in line
    )


def test_compressed_and_upper_case_shards_are_read(tmp_path, tokenize):
    tar(tmp_path / "in" / "a.tar", {"a.jpg": encoded(1)})
    packed = tar(tmp_path / "b", {"b.jpg": encoded(2), "b.txt": b"two"}).read_bytes()
    fill(tmp_path / "in", {"b.tar.gz": gzip.compress(packed), "wrong.tar": gzip.compress(packed)})
    tar(tmp_path / "in" / "C.TAR", {"c.jpg": encoded(3)})
    for _ in range(2):  # the second run finds them done
        code, lines, _ = tokenize()
        assert code == 1
        assert lines[0] == "pictish: C.TAR becomes C.tar, b.tar.gz becomes b.tar"
        assert lines[1].startswith("pictish: wrong.tar: compressed with gzip, but named as uncompressed")
        assert len(lines) == 2
    assert members(tmp_path / "out" / "b.tar") == {"b": ["tokens", "txt"]}
    assert {path.name for path in (tmp_path / "out").glob("*.tar")} == {"C.tar", "a.tar", "b.tar"}


def test_what_a_shard_holds_is_tokenized_carried_or_named(tmp_path, tokenize):
    jpg = encoded(1)
    odd = {
        "v1.0 take 0.jpg": jpg,
        "v1.0 take 0.txt": b"zero",
        "v1.0 take 1.jpg": jpg,
        "v1.0 take 1.txt": b"one",
        "s0.jpg": jpg,
        "s0.cls": b"281",
        "s1.bmp": encoded(2, "BMP"),
        "s1.caption": b"a dog",
        "s2.tif": encoded(3, "TIFF"),
        "s2.text": b"a cat",
        "s3.avif": encoded(4, "AVIF"),
        "s3.jsonl": b'{"caption": "a"}',
        "s4.input.jpg": jpg,
        "s4.caption.txt": b"four",
        "._s0.jpg": b"mac",
        "s0.npy": b"numbers",
        "s1.npy": b"numbers",
        "s5.psd": b"8BPS",
    }
    tar(tmp_path / "in" / "a.tar", odd)
    code, lines, _ = tokenize()
    assert members(tmp_path / "out" / "a.tar") == {
        "v1%2E0 take 0": ["tokens", "txt"],
        "v1%2E0 take 1": ["tokens", "txt"],
        "s0": ["cls", "tokens"],
        "s1": ["caption", "tokens"],
        "s2": ["text", "tokens"],
        "s3": ["jsonl", "tokens"],
        "s4": ["caption.txt", "input.tokens"],
    }
    assert code == 1
    assert lines[0] == "pictish: a.tar/*.npy: 2 members of an unknown kind"
    assert lines[1].startswith("pictish: a.tar/s5.psd: unsupported image format")
    assert lines[2:] == ["pictish: ignored 1 hidden member of shards"]
    found = stats(tmp_path / "out", "a")
    assert (found["samples"], found["left_out"], found["hidden"]) == (7, {}, 1)
    assert set(found["ignored"]) == {"*.npy", "s5.psd"}
    assert tokenize()[:2] == (code, lines), "a later run says it again"


def test_a_photograph_counts_before_its_mask_and_the_mask_is_named(tmp_path, tokenize):
    photo, mask = encoded(1), encoded(2, "PNG")
    tar(tmp_path / "in" / "a.tar", {"s.jpg": photo, "s.png": mask, "s.txt": b"a photograph"})
    tar(tmp_path / "in" / "b.tar", {"s.jpg": photo})
    code, lines, _ = tokenize()
    assert (code, lines) == (1, ["pictish: a.tar/s.png: its sample has .jpg too, which is tokenized"])
    (both,), (alone,) = (list(read_shard(tmp_path / "out" / name)) for name in ("a.tar", "b.tar"))
    assert both["tokens"] == alone["tokens"]


def test_shards_that_would_meet_are_named_and_the_rest_is_done(tmp_path, tokenize):
    for name in ("x/a.tar", "y/a.tar", "y/b.tar"):
        tar(tmp_path / "in" / name, {"s.jpg": encoded(1)})
    code, (line,), _ = tokenize()
    assert code == 1
    assert line.endswith("y/a.tar: would both become a.tar; rename one")
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["b.tar"]
