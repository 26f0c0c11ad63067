import sys

import pytest

from pictish.io import storage
from pictish.io.storage import (
    Stored,
    delete,
    download,
    find_shards,
    is_remote,
    join,
    list_folder,
    read_bytes,
    sha256_of,
    size_of,
    upload,
    write_bytes,
)
from tests.store import misbehaving_store

BLOB = bytes(range(256)) * 4000


@pytest.fixture
def store():
    patch = pytest.MonkeyPatch()
    with misbehaving_store(patch) as running:
        yield running
    patch.undo()


@pytest.fixture(autouse=True)
def _little_waiting(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)


def test_what_a_place_is():
    assert is_remote("s3://bucket/x")
    assert is_remote("gs://bucket/x")
    assert not is_remote("/a/b")
    assert not is_remote("pipe:cat x")
    for place in ("http://host/x", "simplecache::s3://b/x", "file:///x", "ssh://host/x", "://"):
        with pytest.raises(ValueError, match="would fit"):
            is_remote(place)
    assert join("s3://bucket/x/", "a.tar") == "s3://bucket/x/a.tar"
    assert join("x", "a.tar") == "x/a.tar"


def round_trip(folder, tmp_path):
    """Every function once, on a folder that is empty."""
    place = join(folder, "sub/a.tar")
    assert list_folder(folder) == {}
    assert size_of(place) is None
    with pytest.raises(FileNotFoundError):
        read_bytes(place)
    write_bytes(place, BLOB)
    write_bytes(join(folder, "b.json"), b"{}")
    assert read_bytes(place) == BLOB
    assert size_of(place) == len(BLOB)
    assert list_folder(folder) == {"b.json": 2}
    write_bytes(join(folder, "sub/._a.tar"), b"")
    for one in (folder, place):
        shards, found = find_shards([one])
        assert shards == [Stored(place, "a.tar", len(BLOB))]
        assert found.hidden == (["sub/._a.tar"] if one == folder else [])
    (tmp_path / "blob").write_bytes(BLOB)
    assert sha256_of(place) == sha256_of(str(tmp_path / "blob"))
    write_bytes(place, b"new")
    assert read_bytes(place) == b"new"
    delete(place)
    delete(place)
    assert size_of(place) is None


def test_local_files(tmp_path):
    round_trip(str(tmp_path / "folder"), tmp_path)
    assert not list(tmp_path.rglob("*.pictish-tmp"))


def test_an_object_store(store, tmp_path):
    round_trip("s3://raw/folder", tmp_path)
    upload(tmp_path / "blob", "s3://raw/c.tar")
    download("s3://raw/c.tar", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BLOB


@pytest.mark.parametrize("fault", ["503", "hang", "cut", "short", "lost"])
def test_faults_of_every_kind_are_overcome(store, tmp_path, fault):
    """Every third request fails, and what arrives is whole all the same."""
    (tmp_path / "blob").write_bytes(BLOB)

    store.faults = lambda number, method, path: fault if number % 3 == 1 else None
    upload(tmp_path / "blob", "s3://raw/a.tar")
    download("s3://raw/a.tar", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BLOB
    write_bytes("s3://raw/a_stats.json", b'{"a": 1}')
    assert read_bytes("s3://raw/a_stats.json") == b'{"a": 1}'
    assert size_of("s3://raw/a.tar") == len(BLOB)
    assert fault in store.injected


def test_a_store_that_stays_away_is_one_error_with_its_name(store, tmp_path):
    write_bytes("s3://raw/a.tar", BLOB)
    store.faults = lambda number, method, path: "lost"
    with pytest.raises(OSError, match=r"s3://raw/a\.tar: "):
        download("s3://raw/a.tar", tmp_path / "back")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"pictish\[gcs\]"):
        size_of("gs://bucket/x")
