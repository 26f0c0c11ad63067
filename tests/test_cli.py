"""How errors, exit codes and Ctrl-C reach the user, shown with commands made for the test."""

import logging
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated

import pytest
import typer

from pictish import cli
from tests.tree import ROOT


@pytest.fixture
def command(monkeypatch):
    """Registers one function as `pictish probe` and `pictish group probe`."""

    def register(function):
        module = types.ModuleType("pictish_probe")
        module.run = function
        monkeypatch.setitem(sys.modules, "pictish_probe", module)
        target = ("pictish_probe:run", "Probe.")
        monkeypatch.setattr(
            cli, "COMMANDS", {"probe": target, "group probe": target, "other": ("no.module:run", "O.")}
        )
        monkeypatch.setattr(cli, "GROUPS", {"group": "A group."})
        monkeypatch.delenv("PICTISH_TRACEBACK", raising=False)

    return register


def failing(error: BaseException):
    def run() -> None:
        """Fail."""
        raise error

    return run


def test_arguments_and_options_arrive(command, capsys):
    def run(inputs: list[str], budget: Annotated[int, typer.Option(help="N.")] = 3) -> None:
        """Probe."""
        print(inputs, budget)

    command(run)
    assert cli.main(["probe", "a b", "c", "--budget", "7"]) == 0
    assert cli.main(["group", "probe", "x"]) == 0
    assert capsys.readouterr().out == "['a b', 'c'] 7\n['x'] 3\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("budget 0: give 1 or more"), "pictish: budget 0: give 1 or more"),
        (ValueError("two\n  lines"), "pictish: two lines"),
        (
            FileNotFoundError(2, "No such file or directory", "a b.jpg"),
            "pictish: a b.jpg: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", Path("x")), "pictish: x: Permission denied"),
        (OSError("tokens/a.jpg is a folder"), "pictish: tokens/a.jpg is a folder"),
    ],
)
@pytest.mark.parametrize("words", [["probe"], ["group", "probe"]])
def test_a_mistake_is_one_line_and_exit_code_2(command, capsys, words, error, line):
    command(failing(error))
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{line}\n"
    assert captured.out == ""


def test_a_real_missing_file_is_named(command, capsys, tmp_path):
    def run() -> None:
        (tmp_path / "none").read_bytes()

    command(run)
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == f"pictish: {tmp_path}/none: No such file or directory\n"


@pytest.mark.parametrize(
    "error", [AssertionError("bug"), KeyError("x"), RuntimeError("bug"), TypeError("bug")]
)
def test_a_bug_keeps_its_traceback(command, error):
    command(failing(error))
    with pytest.raises(type(error)):
        cli.main(["probe"])


def test_the_traceback_of_a_mistake_can_be_asked_for(command, monkeypatch):
    command(failing(ValueError("x")))
    monkeypatch.setenv("PICTISH_TRACEBACK", "1")
    with pytest.raises(ValueError, match="x"):
        cli.main(["probe"])


@pytest.mark.parametrize("code", [0, 1, 3])
def test_exit_codes_pass_through(command, code):
    command(failing(typer.Exit(code)))
    assert cli.main(["probe"]) == code


def test_ctrl_c_is_130(command, capsys):
    command(failing(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "pictish: interrupted\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["prob"], "pictish: No such command 'prob'. Did you mean 'probe'? See pictish --help\n"),
        (["group"], "pictish: Missing command. See pictish group --help\n"),
        (["group", "x"], "pictish: No such command 'x'. See pictish group --help\n"),
        (["probe", "--badget", "1"], "pictish: No such option: --badget. See pictish probe --help\n"),
        (["--bad"], "pictish: No such option: --bad. See pictish --help\n"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(command, capsys, args, line):
    command(failing(typer.Exit(0)))
    assert cli.main(args) == 2
    assert capsys.readouterr().err == line


def test_no_arguments_show_the_help(command, capsys):
    command(failing(typer.Exit(0)))
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: pictish ")


def test_version(capsys):
    from pictish import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pictish {__version__}\n"


def test_python_m_pictish_is_the_same_program():
    run = [sys.executable, "-m", "pictish"]
    good = subprocess.run([*run, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert good.stdout.startswith("Usage: pictish ")
    bad = subprocess.run([*run, "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


SLEEPER = """
import sys, time, types
from pictish import cli
module = types.ModuleType("probe")
def run() -> None:
    print("ready", flush=True)
    time.sleep(60)
module.run = run
sys.modules["probe"] = module
cli.COMMANDS["probe"] = ("probe:run", "Probe.")
sys.exit(cli.main(["probe"]))
"""


def test_a_real_ctrl_c_ends_the_process_with_130():
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "pictish: interrupted\n")


def test_a_closed_pipe_is_no_traceback():
    script = "import sys; from pictish import cli; sys.exit(cli.main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == ""


def test_what_libraries_warn_of_torchao_is_not_shown(command, caplog):
    about = [logging.getLogger(name) for name in cli.ABOUT_TORCHAO]
    before = [logger.level for logger in about]

    def run() -> None:
        for logger in about:
            logger.warning("an enum")
        logging.getLogger("diffusers").warning("weights are missing")

    command(run)
    assert cli.main(["probe"]) == 0
    assert caplog.messages == ["weights are missing"]
    assert [logger.level for logger in about] == before
