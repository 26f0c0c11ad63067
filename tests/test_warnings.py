"""No warning of any library reaches a user from the everyday commands."""

import subprocess
import sys

from tests.tree import ROOT

COMMANDS = """
import sys
from pictish.cli import main
out = sys.argv[1]
for words in (
    ["tokenize", "docs/samples", out + "/tokens", "--quiet"],
    ["detokenize", out + "/tokens", out + "/pictures", "--quiet"],
    ["generate", "a red apple", "--out", out + "/generated", "--quiet"],
    ["edit", "docs/samples/twemoji-globe.png", "make it red", "--out", out + "/edited", "--quiet"],
    ["describe", "docs/samples/twemoji-globe.png"],
    ["describe", "docs/samples/twemoji-globe.png", "In which style is it drawn?"],
):
    assert main(words) == 0, words
"""
SHOWN = ["-W", "error"]  # but for those that Python hides from users
for hidden in ("DeprecationWarning", "PendingDeprecationWarning", "ImportWarning", "ResourceWarning"):
    SHOWN += ["-W", f"ignore::{hidden}"]


def test_everyday_commands_warn_of_nothing(tmp_path):
    command = [sys.executable, *SHOWN, "-c", COMMANDS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
