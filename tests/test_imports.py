"""Every module imports, and importing does nothing: no folder, no logging setup, no changed torch default."""

import importlib
import subprocess
import sys

import pytest

from tests.tree import ROOT, modules

QUIET = """
import importlib, logging, os, random, sys
import numpy, torch
import rich.style  # draws a random number
sys.path.insert(0, sys.argv[1])

def world():
    return {
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed()),
        "random": (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "logging": [repr(handler) for handler in logging.getLogger().handlers],
        "process": (os.getcwd(), dict(os.environ)),
    }

before = world()
for name in sys.argv[2:]:
    importlib.import_module(name)
assert before == world(), [key for key, value in world().items() if value != before[key]]
assert not torch.cuda.is_initialized()
assert os.listdir(".") == []
"""


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__main__")])
def test_module_imports_and_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"


def test_importing_does_no_work(tmp_path):
    names = [name for name in modules() if not name.endswith("__main__")]
    command = [sys.executable, "-c", QUIET, str(ROOT), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
