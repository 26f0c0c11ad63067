import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pictish.data import loader
from pictish.data.images import find_images, fit_square, load_image
from pictish.data.loader import ImageBytes, WorkerPool, decode_images
from pictish.io.finding import File


def pictures(folder, count, side=40):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (side + number, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03d}.png")
    return find_images([folder])


def facts(decoded):
    return decoded.file.name, decoded.size, decoded.error, decoded.sha256, decoded.pixels


def same(first, second):
    return facts(first)[:4] == facts(second)[:4] and np.array_equal(first.pixels, second.pixels)


def test_any_number_of_workers_gives_the_same_in_order(tmp_path):
    files = pictures(tmp_path / "in", 9)
    (tmp_path / "in" / "004.png").write_text("not a picture")
    expected = list(decode_images(files, 16, workers=0))
    assert [one.file for one in expected] == files
    assert [one.error is None for one in expected] == [number != 4 for number in range(9)]
    for one in expected:
        blob = one.file.path.read_bytes()
        assert one.sha256 == hashlib.sha256(blob).hexdigest()
        if one.error is None:
            assert np.array_equal(one.pixels, fit_square(load_image(blob), 16))
            assert one.size == (40 + int(one.file.name[:3]), 40)
    for workers, prefetch in ((1, 1), (2, 64), (3, 4)):
        found = list(decode_images(files, 16, workers=workers, prefetch=prefetch))
        assert len(found) == len(expected)
        assert all(map(same, found, expected))


def test_pictures_in_memory(tmp_path):
    files = pictures(tmp_path / "in", 3)
    members = [ImageBytes(file.path.read_bytes(), file.name) for file in files]
    for workers in (0, 2):
        found = list(decode_images(members, 16, workers=workers))
        assert all(map(same, found, decode_images(files, 16, workers=0)))
        assert [one.file for one in found] == members


@pytest.mark.parametrize("workers", [0, 1])
def test_every_fault_is_one_line_and_the_rest_goes_on(tmp_path, workers):
    files = pictures(tmp_path / "in", 2)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "cut.png").write_bytes(files[0].path.read_bytes()[:-500])
    strange = tmp_path / os.fsdecode(b"\xff \n.png")
    strange.write_bytes(files[0].path.read_bytes())
    broken = [File(tmp_path / name, name) for name in ("pipe.png", "cut.png", "gone.png")]
    found = list(decode_images([files[0], *broken, File(strange, strange.name), files[1]], 16, workers))
    errors = [one.error for one in found]
    assert errors[0] is errors[4] is errors[5] is None
    assert errors[1] == "not a regular file"
    assert errors[2].startswith("cannot be decoded")
    assert errors[3] == "No such file or directory"
    assert found[3].sha256 is None
    (limited,) = decode_images(files[:1], 16, workers, max_pixels=1599)
    assert "at most 1,599" in limited.error


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_still_has_its_checksum_is_not_decoded(tmp_path, workers):
    files = pictures(tmp_path / "in", 3)
    known = {file.name: hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files}
    known["001.png"] = "0" * 64
    found = list(decode_images(files, 16, workers, skip=known.get))
    assert [one.pixels is None for one in found] == [True, False, True]
    assert all(one.error is None for one in found)


def trapped(monkeypatch, what: str) -> None:
    """Run `what` in the workers before they decode 002.png."""
    trap = f"""
import os, pathlib
import pictish.data.loader as loader
decode = loader._decode
def deadly(file, request):
    if file.name == "002.png":
        {what}
    return decode(file, request)
loader._decode = deadly
"""
    path, serve = loader._START.split("from pictish.data.loader")
    monkeypatch.setattr(loader, "_START", f"{path}{trap}from pictish.data.loader{serve}")


def test_a_picture_that_kills_its_worker_is_broken_and_the_rest_goes_on(tmp_path, monkeypatch):
    files = pictures(tmp_path / "in", 6)
    trapped(monkeypatch, "os._exit(7)")
    found = list(decode_images(files, 16, workers=2))
    assert [one.error is None for one in found] == [True, True, False, True, True, True]
    assert found[2].error == "the decoding process died on it (exit code 7)"
    assert found[2].sha256 == hashlib.sha256(files[2].path.read_bytes()).hexdigest()
    assert not found[2].transient


def test_a_picture_whose_worker_is_killed_from_outside_is_tried_again(tmp_path, monkeypatch):
    files = pictures(tmp_path / "in", 6)
    expected = list(decode_images(files, 16, workers=0))
    mark = tmp_path / "killed"
    once = f"mark = pathlib.Path({str(mark)!r}); mark.exists() or (mark.touch(), os.kill(os.getpid(), 9))"
    trapped(monkeypatch, once)
    found = list(decode_images(files, 16, workers=2))
    assert mark.exists()
    assert all(map(same, found, expected))
    trapped(monkeypatch, "os.kill(os.getpid(), 9)")
    (one,) = decode_images(files[2:3], 16, workers=1)
    assert one.error == "the decoding process was killed 3 times (SIGKILL)"
    assert one.transient, "it says nothing about the picture"


@pytest.mark.parametrize("when", ["starting", "idle"])
def test_a_worker_killed_between_pictures_is_replaced(tmp_path, when):
    files = pictures(tmp_path / "in", 3)
    with WorkerPool(1) as pool:
        if when == "idle":
            list(decode_images(files, 16, pool))
        os.kill(pool._all[0]._process.pid, signal.SIGKILL)
        assert all(map(same, decode_images(files, 16, pool), decode_images(files, 16, 0)))


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), MemoryError()])
def test_faults_that_say_nothing_of_a_picture_are_transient(tmp_path, monkeypatch, fault):
    def fail(*args, **settings):
        raise fault

    files = pictures(tmp_path / "in", 1)
    monkeypatch.setattr(loader, "read_regular_file" if isinstance(fault, OSError) else "load_image", fail)
    (one,) = decode_images(files, 16, 0)
    assert one.error
    assert one.transient
    monkeypatch.undo()
    files[0].path.write_bytes(b"no picture")
    (one,) = decode_images(files, 16, 0)
    assert one.error
    assert not one.transient


def test_stopping_early_leaves_no_process(tmp_path):
    files = pictures(tmp_path / "in", 20)
    before = set(children(os.getpid()))
    decoded = decode_images(files, 16, workers=2)
    next(decoded)
    assert len(set(children(os.getpid())) - before) >= 2
    decoded.close()
    assert set(children(os.getpid())) <= before


def test_workers_end_when_the_parent_is_killed(tmp_path):
    pictures(tmp_path / "in", 4)
    code = (
        "import sys; sys.path[:] = eval(sys.argv[2])\n"
        "from pathlib import Path; from pictish.data.images import find_images\n"
        "from pictish.data.loader import decode_images\n"
        "decoded = decode_images(find_images([Path(sys.argv[1])]), 16, workers=2)\n"
        "next(decoded); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in"), repr(sys.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        workers = children(parent.pid)
        assert len(workers) == 2
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def children(pid):
    command = ["ps", "-o", "pid=,comm=", "--ppid", str(pid)]
    rows = [
        line.split() for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    ]
    return [int(row[0]) for row in rows if row[1].startswith("python")]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return not state.startswith("Z") and state != ""


def test_a_bug_is_not_called_a_broken_picture(monkeypatch, tmp_path):
    files = pictures(tmp_path / "in", 1)
    with pytest.raises((RuntimeError, TypeError), match=r"side|int"):
        list(decode_images(files, "x", workers=1))


def test_negative_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        next(decode_images(pictures(tmp_path / "in", 1), 16, workers=-1))


def test_workers_that_cannot_start_are_an_error_and_not_broken_pictures(monkeypatch, tmp_path):
    files = pictures(tmp_path / "in", 3)
    monkeypatch.setattr(loader, "_START", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="did not start"):
        list(decode_images(files, 16, workers=1))
