import gzip
import io
import tarfile

import pytest
import webdataset.tariterators as webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.data import tar
from pictish.data.shards import (
    ShardFile,
    ShardWriter,
    check_key,
    find_shards,
    key_of,
    name_of,
    open_shard,
    read_shard,
    scan_shard,
)
from pictish.io.finding import IMAGES

SAMPLES = [
    ("a", {"png": b"\x89PNG", "txt": "größe".encode(), "json": b"{}"}),
    ("sub/b", {"tokens": b"\0" * 700}),
    ("sub/ü 名 " + "long" * 40, {"jpg": b"", "txt": b"x"}),
]


def write(path, samples=SAMPLES):
    with ShardFile(path) as shard:
        for key, members in samples:
            shard.write(key, members)
    return path


def raw_tar(path, members):
    """A tar written without our checks: (name or TarInfo, bytes)."""
    with tarfile.open(path, "w") as archive:
        for member, blob in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_samples_come_back(tmp_path):
    path = write(tmp_path / "one.tar")
    assert list(read_shard(path)) == [{"__key__": key, **members} for key, members in SAMPLES]


def test_webdataset_reads_the_same_samples(tmp_path):
    path = write(tmp_path / "one.tar")
    with path.open("rb") as file:
        members = [{**member, "__url__": "x"} for member in webdataset.tar_file_iterator(file)]
    found = [
        {key: value for key, value in sample.items() if key not in ("__url__", "__local_path__")}
        for sample in webdataset.group_by_keys(members)
    ]
    assert found == list(read_shard(path))


def test_equal_samples_give_equal_bytes_whatever_the_time_and_order_of_members(tmp_path):
    first = write(tmp_path / "one.tar").read_bytes()
    turned = [(key, dict(reversed(members.items()))) for key, members in SAMPLES]
    assert write(tmp_path / "two.tar", turned).read_bytes() == first
    with tarfile.open(tmp_path / "one.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")


def test_the_writer_starts_a_new_shard_when_one_is_full(tmp_path):
    with ShardWriter(tmp_path / "out", samples_per_shard=2) as writer:
        for number in range(5):
            writer.write(f"{number:03d}", {"txt": b"x"})
    names = ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [path.name for path in writer.shards] == names
    assert [[sample["__key__"] for sample in read_shard(path)] for path in writer.shards] == [
        ["000", "001"],
        ["002", "003"],
        ["004"],
    ]


def test_an_interrupted_shard_is_not_there(tmp_path):
    def write_until_stopped():
        with ShardWriter(tmp_path, samples_per_shard=2) as writer:
            for key in "abc":
                writer.write(key, {"txt": b"x"})
            assert (tmp_path / ".shard-000001.tar.pictish-tmp").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_until_stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_a_shard_cut_anywhere_is_refused_by_name(tmp_path):
    samples = [("a", {"txt": b"\0" * 600}), ("b", {"txt": b"\0" * 600})]
    blob = write(tmp_path / "one.tar", samples).read_bytes()
    end = len(blob.rstrip(b"\0")) + 600  # the last header, its payload of zeros, then the end mark
    for length in [0, 1, 511, 512, 513, 1024, 1536, 2048, 2060, 3000, *range(3072, end, 97)]:
        (tmp_path / "cut.tar").write_bytes(blob[:length])
        with pytest.raises(ValueError, match=r"^cut\.tar: ") as error:
            list(read_shard(tmp_path / "cut.tar"))
        assert "\n" not in str(error.value)


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    blob = bytearray(write(tmp_path / "one.tar").read_bytes())
    blob[1024 + 3] ^= 1
    (tmp_path / "one.tar").write_bytes(blob)
    with pytest.raises(ValueError, match=r"one\.tar: .*damaged"):
        list(read_shard(tmp_path / "one.tar"))


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ("../out.txt", "plain relative name"),
        ("/etc/cron.txt", "plain relative name"),
        ("a/../../b.txt", "plain relative name"),
        ("a\\b.txt", "plain relative name"),
        ("a.pkl", "pickle"),
        ("a.PYD", "pickle"),
        ("a.features.pth", "pickle"),
    ],
)
def test_hostile_members_are_refused(tmp_path, member, complaint):
    path = raw_tar(tmp_path / "evil.tar", [("ok.txt", b"x"), (member, b"x")])
    with pytest.raises(ValueError, match=rf"^evil\.tar: .*{complaint}|^{complaint}\.tar"):
        list(read_shard(path))


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (
            special("a.txt", tarfile.SYMTYPE, "/etc/passwd"),
            "a link to '/etc/passwd', which is not in the shard",
        ),
        (special("a.txt", tarfile.SYMTYPE, "../../ok.txt"), "a link to '../../ok.txt', which is not"),
        (
            special("a.txt", tarfile.LNKTYPE, "b.txt"),
            "a link to 'b.txt', which is not in the shard before it",
        ),
        (special("a.txt", tarfile.CHRTYPE), "not a plain file"),
        (special("a.txt", tarfile.FIFOTYPE), "not a plain file"),
    ],
)
def test_members_that_are_no_files_are_named_and_the_rest_is_read(tmp_path, member, complaint):
    path = raw_tar(tmp_path / "odd.tar", [("ok.txt", b"x"), (member, b""), ("z.txt", b"z")])
    with open_shard(path) as shard:
        assert (list(shard.samples), list(shard.ignored), shard.damage) == (["ok", "z"], ["a.txt"], None)
        assert complaint in shard.ignored["a.txt"]


def test_links_inside_a_tar_are_followed(tmp_path):
    hard = special("hard.jpg", tarfile.LNKTYPE, "./sub/a.jpg")
    soft = special("sub/soft.jpg", tarfile.SYMTYPE, "../hard.jpg")
    path = raw_tar(tmp_path / "a.tar", [("./sub/a.jpg", b"picture"), (hard, b""), (soft, b"")])
    assert [(s["__key__"], s["jpg"]) for s in read_shard(path)] == [
        ("sub/a", b"picture"),
        ("hard", b"picture"),
        ("sub/soft", b"picture"),
    ]


def test_a_member_that_claims_a_negative_size_does_not_hang(tmp_path):
    blob = bytearray(raw_tar(tmp_path / "a.tar", [("a.txt", b"x"), ("b.txt", b"x")]).read_bytes())
    blob[1024 + 124 : 1024 + 136] = b"\xff" * 10 + (2**16 - 1024).to_bytes(2, "big")
    blob[1024 + 148 : 1024 + 156] = b" " * 8
    blob[1024 + 148 : 1024 + 156] = f"{sum(blob[1024:1536]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(blob)
    with pytest.raises(ValueError, match=r"a\.tar"):
        list(read_shard(tmp_path / "a.tar"))


def test_members_of_other_kinds_and_hidden_ones_are_counted(tmp_path):
    folder = special("sub", tarfile.DIRTYPE)
    others = [("sub/a.npy", b"3"), ("b.npy", b"3"), ("sub/.hidden", b""), ("__MACOSX/sub/._a.png", b"")]
    path = raw_tar(
        tmp_path / "a.tar",
        [(folder, b""), ("./sub/a.PNG", b"p"), *others, ("sub/a.txt", b"t"), ("c.psd", b"")],
    )
    assert list(read_shard(path)) == [{"__key__": "sub/a", "png": b"p", "txt": b"t"}]
    with open_shard(path) as shard:
        assert shard.hidden == 2
        assert set(shard.ignored) == {"*.npy", "c.psd"}
        assert shard.ignored["*.npy"] == "2 members of an unknown kind"
        assert "unsupported image format" in shard.ignored["c.psd"]


@pytest.mark.parametrize("suffix", IMAGES)
def test_every_kind_of_image_is_a_member_by_its_suffix_or_its_content(tmp_path, suffix):
    path = raw_tar(
        tmp_path / "a.tar", [(f"a.{suffix.upper()}", b"p"), ("a.txt", b"t"), ("b", b"\xff\xd8\xff")]
    )
    assert list(read_shard(path)) == [
        {"__key__": "a", suffix: b"p", "txt": b"t"},
        {"__key__": "b", "jpg": b"\xff\xd8\xff"},
    ]


@pytest.mark.parametrize(
    ("members", "samples"),
    [
        (
            ["v1.0 take 0.jpg", "v1.0 take 0.txt", "v1.0 take 1.jpg"],
            {"v1%2E0 take 0": "jpg txt", "v1%2E0 take 1": "jpg"},
        ),
        (["v1.jpg", "v1.txt", "v1.5.jpg", "v1.5.txt"], {"v1": "jpg txt", "v1%2E5": "jpg txt"}),
        (["0.input.jpg", "0.caption.txt"], {"0": "input.jpg caption.txt"}),
        (
            ["0/input.jpg", "0/caption.txt", "1/input.jpg", "1/caption.txt"],
            {"0/input": "jpg caption.txt", "1/input": "jpg caption.txt"},
        ),
        (
            ["0.cls", "0.jpg", "1.caption", "1.jpg", "2.jpg", "2.text", "3.jpg", "3.jsonl"],
            {"0": "cls jpg", "1": "caption jpg", "2": "jpg text", "3": "jpg jsonl"},
        ),
        (["c.png", "c.source.png", "c.txt", "c.2.png"], {"c": "png source.png txt", "c%2E2": "png"}),
        (["e.json", "e.source.png", "e.target.png"], {"e": "json source.png target.png"}),
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], {"a": "jpg txt", "b": "jpg txt"}),
    ],
)
def test_which_members_make_a_sample(tmp_path, members, samples):
    path = raw_tar(tmp_path / "a.tar", [(name, b"x") for name in members])
    with open_shard(path) as shard:
        assert {key: " ".join(one) for key, one in shard.samples.items()} == samples
        assert (shard.ignored, shard.damage) == ({}, None)


def test_a_second_member_of_a_name_is_named_and_the_first_is_read(tmp_path):
    path = raw_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3"), ("b.TXT", b"4")])
    assert list(read_shard(path)) == [{"__key__": "a", "txt": b"1"}, {"__key__": "b", "txt": b"2"}]
    with open_shard(path) as shard:
        assert set(shard.ignored) == {"a.txt (again)", "b.TXT"}


def test_tars_joined_into_one_file_are_read_to_the_end(tmp_path):
    first = write(tmp_path / "one.tar", SAMPLES[:2]).read_bytes()
    second = write(tmp_path / "two.tar", SAMPLES[2:]).read_bytes()
    (tmp_path / "both.tar").write_bytes(first + second)
    assert list(read_shard(tmp_path / "both.tar")) == [
        {"__key__": key, **members} for key, members in SAMPLES
    ]
    (tmp_path / "more.tar").write_bytes(first + b"something else" * 100)
    with open_shard(tmp_path / "more.tar") as shard:
        assert list(shard.samples) == ["a", "sub/b"]
        assert "1,400 bytes, after its end mark, are not a tar" in shard.ignored["(end)"]


@pytest.mark.parametrize("suffix", [".tar.gz", ".TGZ", ".tar.zst"])
def test_a_compressed_shard_is_read_if_its_name_says_so(tmp_path, suffix):
    plain = write(tmp_path / "one.tar")
    if suffix == ".tar.zst":
        zstandard = pytest.importorskip("zstandard")
        packed = zstandard.compress(plain.read_bytes())
    else:
        packed = gzip.compress(plain.read_bytes())
    path = tmp_path / f"two{suffix}"
    path.write_bytes(packed)
    assert list(read_shard(path)) == list(read_shard(plain))
    with pytest.raises(ValueError, match="cannot be read in random order"):
        next(scan_shard(path))
    path.write_bytes(packed[:40] + b"\xff" * 40 + packed[80:])
    with pytest.raises(ValueError, match=r"two\..*: (damaged: |bad checksum)"):
        list(read_shard(path))
    path.write_bytes(packed[:-9])
    with pytest.raises(ValueError, match=r"damaged|truncated|end|empty"):
        list(read_shard(path))
    path.write_bytes(plain.read_bytes())
    with pytest.raises(ValueError, match=r"two\..*: not compressed, but named as"):
        list(read_shard(path))


def test_a_compressed_shard_may_not_unpack_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_SMALL", 1 << 16)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(ValueError, match=r"bomb\.tar\.gz: unpacks to more than 200 times its size"):
        list(read_shard(tmp_path / "bomb.tar.gz"))


def test_a_compressed_tar_and_a_text_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(ValueError, match=r"a\.tar: compressed with gzip, but named as uncompressed"):
        list(read_shard(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_text("hello " * 500)
    with pytest.raises(ValueError, match=r"a\.tar"):
        list(read_shard(tmp_path / "a.tar"))


@pytest.mark.parametrize("key", ["../a", "/a", "a.b", "sub/.a", "", "a\\b", "a\0b"])
def test_keys_no_reader_would_accept_are_not_written(tmp_path, key):
    with pytest.raises(ValueError, match=r"key|name"), ShardFile(tmp_path / "a.tar") as shard:
        shard.write(key, {"txt": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_members_no_reader_knows_and_keys_used_twice_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="pkl"), ShardFile(tmp_path / "a.tar") as shard:
        shard.write("a", {"pkl": b"x"})
    with ShardFile(tmp_path / "a.tar") as shard:
        shard.write("a", {"txt": b"x"})
        with pytest.raises(ValueError, match="two samples"):
            shard.write("a", {"txt": b"x"})


letters = st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"])
part = st.text(letters, min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))


@settings(deadline=None)
@given(st.lists(part, min_size=1, max_size=3).map("/".join))
def test_every_picture_name_has_a_key_that_leads_back(name):
    key = key_of(name + ".jpg")
    check_key(key)
    assert name_of(key) == name


def test_find_shards(tmp_path):
    for name in ("b/shard-1.tar", "a/shard-0.tar", "a/deep/shard-2.tar", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = ["shard-0.tar", "shard-1.tar", "shard-2.tar"]
    found = find_shards([tmp_path / "b", tmp_path / "a"])
    assert [path.name for path in found] == names
    assert find_shards([tmp_path / "a", tmp_path / "b" / "shard-1.tar", tmp_path / "b"]) == found
    (tmp_path / "empty").mkdir()
    for inputs, complaint in (
        ([tmp_path / "empty"], "no shards found"),
        ([tmp_path / "none.tar"], "no such file"),
        ([tmp_path / "a" / "notes.txt"], "notes.txt: not an image by its name .*, and shards .tar "),
    ):
        with pytest.raises(ValueError, match=complaint):
            find_shards(inputs)
