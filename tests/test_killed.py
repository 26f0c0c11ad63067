"""Every command that writes: killed at random moments, asked to stop, on a full disk, without permission."""

import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.killing import CASES, Harness

# One command for each way of writing: a folder of files with a journal, a row of shards, shards made of
# shards, single files, a folder that is renamed as a whole, and one that replaces another. Checkpoints are
# killed in tests/test_chain.py.
WAYS = (
    "tokenize",
    "tokenize to shards",
    "tokenize raw shards",
    "generate",
    "import lavit",
    "data tasks",
)
POLITE = [name for name, case in CASES.items() if case.polite]
KILLED = [pytest.param(name, 1, marks=pytest.mark.slow) for name in WAYS]
KILLED += [pytest.param(name, 2, marks=pytest.mark.exhaustive) for name in CASES]


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("killing"))


@pytest.mark.parametrize(("name", "kills"), KILLED)
def test_a_killed_command_leaves_nothing_half_and_ends_as_an_undisturbed_one(harness, name, kills):
    chance = random.Random(name)
    for _ in range(kills):
        harness.kill(name, chance)
    harness.finish(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", POLITE)
def test_sigterm_ends_a_unit_and_says_how_to_go_on(harness, name):
    chance = random.Random(name)
    for number in (signal.SIGTERM, signal.SIGINT):
        stopped = harness.kill(name, chance, number)
        if stopped.code == -number:  # it had ended its work, and was only leaving
            harness.compare(name)
        elif stopped.hit and stopped.code != 0:  # 0: it was at its last unit
            assert stopped.code == 130, stopped.err
            last = stopped.err.splitlines()[-1]
            # cut off where work is not in units: while features are cached, or a model is saved
            assert "the same command" in last or last == "pictish: interrupted", stopped.err
            assert "Traceback" not in stopped.err
    harness.finish(name)


def mounted(place: Path, kilobytes: int) -> bool:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "pictish-test", str(place)]
    return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own of 40 kilobytes."""
    place = tmp_path / "disk"
    if not mounted(place, 40):
        pytest.skip("a small disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_is_one_line_and_with_room_the_work_goes_on(harness, name, disk, monkeypatch):
    whole = harness.whole(name)
    monkeypatch.setattr(harness, "out", lambda name: disk / "out")
    process = harness._start(name, disk / "out")
    _, err = process.communicate(timeout=900)
    assert process.returncode == 2, err
    assert re.search("No space left on device|make room", err.splitlines()[-1]), err
    assert "Traceback" not in err
    harness.check_whole(name)
    remount(disk, "size=256m")
    harness.finish(name)
    assert whole.exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_an_output_that_may_not_be_written_is_one_line(harness, name, disk):
    (disk / "there").mkdir()
    remount(disk, "ro")
    process = harness._start(name, disk / "there" / "out")
    _, err = process.communicate(timeout=900)
    assert process.returncode == 2, err
    # a disk of forty kilobytes has no room for an import in any case, which is looked at first
    assert re.search("Read-only file system|make room", err.splitlines()[-1]), err
    assert "Traceback" not in err
    assert list((disk / "there").iterdir()) == []
