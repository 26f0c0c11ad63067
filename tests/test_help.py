"""`--help` of every command answers without torch: only the file of the command asked for is imported."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest

from pictish.cli import COMMANDS, GROUPS
from tests.tree import ROOT

HEAVY = [
    "torch",
    "transformers",
    "timm",
    "diffusers",
    "accelerate",
    "webdataset",
    "matplotlib",
    "skimage",
    "scipy",
]
PANEL = re.compile(r"^╭─ (.+?) ─+╮$", flags=re.MULTILINE)
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pictish.cli import main
code = main(sys.argv[2:])
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


@functools.cache
def ask(*words: str) -> tuple[str, set[str]]:
    """What `pictish WORDS --help` prints, and the modules it needed."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", ASK, str(ROOT), *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    answer = json.loads(done.stderr)
    assert answer["code"] == 0
    return done.stdout, set(answer["modules"])


def test_help_lists_every_command_and_needs_no_heavy_library():
    text, modules = ask()
    assert modules.isdisjoint([*HEAVY, "numpy", "PIL", "pydantic", "rich"])
    assert not [name for name in modules if name.startswith("pictish.commands.")]
    for words in COMMANDS:
        assert re.search(rf"^  {words.split()[0]} +\S", text, flags=re.MULTILINE), words


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_a_group_lists_its_commands(group):
    text, modules = ask(group)
    assert modules.isdisjoint(HEAVY)
    for words in COMMANDS:
        if words.startswith(f"{group} "):
            assert re.search(rf"^  {words.split()[1]} +\S", text, flags=re.MULTILINE), words


@pytest.mark.parametrize("words", COMMANDS)
def test_help_of_a_command_needs_no_heavy_library(words):
    text, modules = ask(*words.split())
    assert modules.isdisjoint(HEAVY)
    assert f"Usage: pictish {words} " in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    description = PANEL.split(text)[0].strip().partition("\n")[2].strip()
    assert len(description) > 20, "the function of the command has no docstring"
    options = re.findall(r"^│ \*? {0,4}(--[a-z-]+)(.*)│$", text, flags=re.MULTILINE)
    assert len(options) > 1
    for option, rest in options:
        assert re.search(r" {2,}[A-Za-z0-9]", rest), f"{option} has no help text"


@pytest.mark.parametrize("words", COMMANDS)
def test_options_are_in_panels_and_rare_ones_last(words):
    text, _ = ask(*words.split())
    panels = PANEL.findall(text)
    assert "Options" not in panels, "an option without a panel"
    order = ["Arguments", "Input/Output", "Token selection", "Sampling", "Decoder", "Input shards"]
    order += ["Runtime", "Advanced"]
    assert panels == [name for name in order if name in panels]
    rare = text.partition("─ Advanced ─")[2]
    for option in ("--official-quirks", "--gumbel", "--lowres"):
        assert option in rare or f" {option} " not in text, option


def test_flags_that_scripts_rely_on():
    text, _ = ask("tokenize")
    for flag in (
        "--workers",
        "--overwrite",
        "--strict",
        "--model",
        "--device",
        "--budget",
        "--max-pixels",
        "--seed",
    ):
        assert f"{flag} " in text, flag
    for words in COMMANDS:
        if not words.startswith(("data ", "import ", "model ", "config ")):
            assert "--device " in ask(*words.split())[0], words
