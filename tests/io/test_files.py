import errno
import fcntl
import os
import subprocess
import sys

import pytest

from pictish.io import files
from pictish.io.files import (
    check_relative,
    matching,
    one_line,
    only_writer,
    printable,
    remove_leftovers,
    temp_path,
    write_atomic,
)


def test_write_atomic_writes_and_replaces(tmp_path):
    path = tmp_path / "sub" / "a.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_old_bytes_and_no_temp(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "sync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 127)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"
    assert temp_path(path).name != temp_path(tmp_path / ("ü" * 126 + "a")).name


def test_remove_leftovers_takes_only_ours(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("keep.png", "sub/keep.tokens", ".a.tokens.pictish-tmp", "sub/.b.tar.pictish-tmp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".model.pictish-tmp").mkdir()
    (tmp_path / ".model.pictish-tmp" / "config.yaml").write_text("x")
    assert remove_leftovers(tmp_path) == 3
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["keep.png", "sub", "sub/keep.tokens"]


def test_one_folder_has_one_writer_and_a_dead_one_does_not_count(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pictish.io.files import only_writer\n"
        "with only_writer(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_env()) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process is writing"), only_writer(tmp_path):
            pass
        other.kill()
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def _env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../b", "a//b", "", ".", "a/.", "a\\b", "a\0b", "a/"]
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="plain relative name"):
        check_relative(name)


def test_ordinary_names_are_fine():
    for name in ("a", "sub/a.tokens", "ü 名/a b", "..a/b..", "a..b"):
        check_relative(name)


def test_patterns_find_brackets_and_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a[1].tar", "a1.tar", "b[x]/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert matching([str(tmp_path / "a[1].tar")]) == [tmp_path / "a[1].tar"]
    assert matching([str(tmp_path / "b[x]")]) == [tmp_path / "b[x]"]
    assert matching([str(tmp_path / "a[0-9].tar")]) == [tmp_path / "a1.tar"]
    assert matching(["~/a*.tar"]) == [tmp_path / "a1.tar", tmp_path / "a[1].tar"]
    with pytest.raises(ValueError, match="nothing matches '~/c"):
        matching(["~/c*"])


def test_messages_fit_on_one_line_of_any_terminal():
    assert one_line(ValueError("a\n b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert printable("a\nb\x1b[31m ü 名") == "a\\nb\\x1b[31m ü 名"
    assert printable(os.fsdecode(b"\xff.png")).encode("utf-8") == b"\\udcff.png"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_is_written_to(tmp_path, monkeypatch, code):
    def no_sync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", no_sync)
    write_atomic(tmp_path / "a.bin", b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_a_disk_that_fails_to_sync_is_an_error(tmp_path, monkeypatch):
    def broken_disk(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(tmp_path / "a.bin", b"x")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_is_written_to_and_named_once(tmp_path, monkeypatch, caplog, code):
    def no_locks(descriptor, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(3):
        with only_writer(tmp_path):
            write_atomic(tmp_path / "a.bin", b"x")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: cannot be locked ([Errno {code}] {os.strerror(code)}); "
        "make sure that no other process writes there"
    ]
