"""Every YAML that ships loads and fits the settings of its part."""

import pytest

from pictish.commands.config import class_of
from pictish.configs import load, parse, shipped_names
from tests.tree import ROOT


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_config_fits_its_part(name):
    parse(class_of(load(name), name), load(name), f"configs/{name}.yaml")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_config_begins_with_command_hardware_and_expectation(name):
    text = (ROOT / f"configs/{name}.yaml").read_text("utf-8")
    header = "\n".join(line for line in text.splitlines()[:12] if line.startswith("#"))
    assert f"pictish train {load(name)['part']} {name}" in header
    assert "expect" in header.lower() or "not run yet" in header.lower()


def test_there_are_configs_for_tests_and_for_the_starter():
    names = shipped_names()
    assert "starter/tokenizer" in names
    assert "starter/decoder" in names
    assert any(name.startswith("tiny/") for name in names)
    assert any(name.startswith("base/") for name in names)
    assert len(names) == len(list((ROOT / "configs").rglob("*.y*ml")))
