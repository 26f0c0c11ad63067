"""Commands whose standard streams are closed, full, left by their readers, or know only ASCII."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pictish.io.streams import lasting_streams

ROOT = Path(__file__).parent.parent.parent
COMMAND = """
import logging, sys, types
from pathlib import Path
from pictish import cli
from pictish.io.report import Report
module = types.ModuleType("probe")
def run() -> None:
    with Report("working", 2, quiet=False, strict=False) as report:
        report.failed("caf\\u00e9.png", "broken")
    logging.getLogger("pictish").warning("a warning \\u2014 of a library")
    print("one line \\u2014 " + "x" * 200_000)
    Path(sys.argv[1]).write_text("done")
module.run = run
sys.modules["probe"] = module
cli.COMMANDS["probe"] = ("probe:run", "Probe.")
sys.exit(cli.main(["probe"]))
"""


def probe(shell, out, **environment):
    """The exit code, stderr and whether the work was done, of a command with redirections."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {shell}', sys.executable, COMMAND, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        env={**os.environ, **environment},
        timeout=120,
    )
    return done.returncode, done.stderr, out.exists()


@pytest.mark.parametrize(
    "shell",
    [">&-", "2>&-", "<&- >&- 2>&-", "> >(exit)", "2> >(exit)", "2>/dev/full", ">/dev/null"],
)
def test_the_work_is_done_whatever_becomes_of_its_words(tmp_path, shell):
    code, err, done = probe(shell, tmp_path / "out")
    assert (code, done) == (0, True)
    assert "Traceback" not in err
    assert "Exception" not in err


def test_output_that_is_lost_is_said_in_the_end(tmp_path):
    code, err, done = probe(">/dev/full", tmp_path / "out")
    assert (code, done) == (2, True)
    assert err.splitlines()[-1] == "pictish: standard output: No space left on device"
    assert "Exception" not in err


def test_a_terminal_of_ascii_gets_escapes(tmp_path):
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    code, err, done = probe("", tmp_path / "out", **ascii_only)
    assert (code, done) == (0, True)
    assert "caf\\xe9.png: broken" in err
    assert "a warning \\u2014 of" in err


def test_streams_of_a_host_are_left_alone(capsys):
    before = sys.stdout, sys.stderr
    with lasting_streams() as finish:
        assert (sys.stdout, sys.stderr) == before
        print("shown")
        finish()
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "shown\n"
