"""The public names: what `import pictish` costs, and that each leads to what it says."""

import importlib
import json
import subprocess
import sys

import pytest

import pictish
from tests.test_help import HEAVY
from tests.tree import ROOT

COST = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
start = time.process_time()  # not the clock of the wall: the machine may be busy
import pictish
seconds = time.process_time() - start
pictish.GenerationConfig(top_p=0.9)
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules), "names": dir(pictish)}))
"""


def test_importing_is_quick_and_loads_no_heavy_library():
    command = [sys.executable, "-c", COST, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["seconds"] < 0.1
    assert set(found["modules"]).isdisjoint([*HEAVY, "numpy", "PIL", "pydantic"])
    assert set(pictish.__all__) <= set(found["names"])


def test_every_public_name_is_what_it_says():
    assert sorted({*pictish._PUBLIC, "__version__"}) == sorted(pictish.__all__)
    for name, (module, original) in pictish._PUBLIC.items():
        value = getattr(pictish, name)
        assert value is getattr(importlib.import_module(module), original)
        assert value.__doc__, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pictish' has no attribute 'Pipes'"):
        pictish.Pipes  # noqa: B018
