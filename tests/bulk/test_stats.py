import json
import threading

import pytest

from pictish.bulk.stats import HEADER, BulkFolder, ShardStats, stats_name
from pictish.data.token_folder import Header
from pictish.io.storage import Stored

HEAD = Header("token-shards", "0123456789ab", 64, {"budget": None})
STATS = ShardStats("a.tar", 10, "0" * 64, 4, "1" * 64, 2, 2, 100, 9, 99, {"bad": "not a picture"})


@pytest.fixture
def folder(tmp_path):
    """A folder with one shard, as a run has left it."""
    bulk = BulkFolder(str(tmp_path / "out"), HEAD, overwrite=False)
    bulk.prepare(["a.tar"])
    (tmp_path / "out" / "a.tar").write_bytes(b"four")
    bulk.commit("a.tar", STATS)
    return bulk


def test_stats_come_back_and_mark_a_shard(folder, tmp_path):
    assert folder.finished(Stored("/in/a.tar", "a.tar", 10)) == STATS
    assert folder.finished(Stored("/in/b.tar", "b.tar", 10)) is None
    with pytest.raises(ValueError, match="have changed"):
        folder.finished(Stored("/in/a.tar", "a.tar", 11))
    (tmp_path / "out" / "a.tar").write_bytes(b"three")
    assert folder.finished(Stored("/in/a.tar", "a.tar", 10)) is None
    (tmp_path / "out" / "a.tar").write_bytes(b"four")
    folder.withdraw("a.tar")
    assert folder.finished(Stored("/in/a.tar", "a.tar", 10)) is None


def test_stats_of_other_settings_do_not_count(folder):
    other = Header("token-shards", "0123456789ab", 64, {"budget": 4})
    assert BulkFolder(folder.place, other, False).finished(Stored("/in/a.tar", "a.tar", 10)) is None
    with pytest.raises(ValueError, match="budget none, this run has 4"):
        BulkFolder(folder.place, other, False).prepare(["a.tar"])
    with pytest.raises(ValueError, match="would not be replaced"):
        BulkFolder(folder.place, other, True).prepare(["b.tar"])
    BulkFolder(folder.place, other, True).prepare(["a.tar"])
    BulkFolder(folder.place, other, False).prepare(["a.tar"])


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: "no JSON",
        lambda facts: "[" * 100_000,
        lambda facts: "[]",
        lambda facts: json.dumps({**facts, "format": 1}),
        lambda facts: json.dumps({**facts, "format": 3}),
        lambda facts: json.dumps({**facts, "bits": 3.5}),
        lambda facts: json.dumps({**facts, "bytes": "4"}),
        lambda facts: json.dumps({**facts, "bytes": -4}),
        lambda facts: json.dumps({**facts, "tokens": True}),
        lambda facts: json.dumps({**facts, "left_out": []}),
        lambda facts: json.dumps({key: value for key, value in facts.items() if key != "sha256"}),
    ],
)
def test_damaged_stats_are_refused_in_one_line(folder, tmp_path, change):
    path = tmp_path / "out" / stats_name("a.tar")
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=r"a_stats\.json: ") as caught:
        folder.finished(Stored("/in/a.tar", "a.tar", 10))
    assert len(str(caught.value).splitlines()) == 1


def test_many_may_prepare_a_folder_at_once(tmp_path):
    place, errors = str(tmp_path / "out"), []

    def prepare():
        try:
            BulkFolder(place, HEAD, False).prepare(["a.tar"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == [HEADER]


def test_a_shard_has_one_writer_and_a_dead_one_leaves_nothing_in_the_way(tmp_path):
    bulk = BulkFolder(str(tmp_path / "out"), HEAD, False)
    with bulk.claim("a.tar"):
        with pytest.raises(BlockingIOError, match=r"a\.tar: another process"), bulk.claim("a.tar"):
            pass
        with bulk.claim("b.tar"):
            pass
    (tmp_path / "out" / ".a.tar.lock.pictish-tmp").touch()  # of a process that was killed
    with bulk.claim("a.tar"):
        pass
    assert list((tmp_path / "out").iterdir()) == []
