"""Signals between two units of work."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pictish.io import interrupt
from pictish.io.interrupt import Stopped, asked, handled, in_units, stop_here
from tests.tree import ROOT


def send(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    for _ in range(100):  # Python runs a handler between two of its instructions
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_without_units_is_cut_off(number):
    with pytest.raises(KeyboardInterrupt), handled():
        send(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_in_units_finishes_the_one_it_is_at(number, capfd):
    done = []

    def work() -> None:
        with handled(), in_units("picture"):
            for picture in range(5):
                stop_here(f"{len(done)} are done")
                if picture == 2:
                    send(number)
                    assert asked()
                done.append(picture)

    with pytest.raises(Stopped, match="3 are done"):
        work()
    assert done == [0, 1, 2]
    assert not asked(), "the next command of this process starts afresh"
    err = capfd.readouterr().err
    assert err == "pictish: stopping after this picture; once more stops at once\n"


def test_a_second_signal_stops_at_once():
    def work() -> None:
        with handled(), in_units("shard"):
            send()
            send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with handled():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is interrupt._on_signal
        assert signal.getsignal(signal.SIGINT) is not interrupt._on_signal
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_may_run_commands_too():
    found = []

    def run() -> None:
        with handled():
            found.append(signal.getsignal(signal.SIGINT) is interrupt._on_signal)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]


def test_work_cut_off_inside_exec_of_a_string_leaves_the_exit_code_alone(tmp_path):
    """Python marks a plain KeyboardInterrupt there, and `python -m` would end with SIGINT."""
    (tmp_path / "cut.py").write_text(
        "import os, signal, sys\n"
        "from pictish.io.interrupt import handled\n"
        "try:\n"
        "    with handled():\n"
        "        exec('os.kill(os.getpid(), signal.SIGTERM); [0 for _ in range(1000)]')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-m", "cut"], env=environment, capture_output=True)
    assert done.returncode == 130, done.stderr
