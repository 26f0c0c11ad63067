"""A configuration printed with the meaning of its keys reads back as the same configuration."""

import pytest
import yaml

from pictish.commands.config import class_of
from pictish.configs import load, parse
from pictish.configs.explain import commented_yaml
from pictish.io.plain_yaml import parse_yaml

NAMES = ["starter/tokenizer", "starter/decoder", "starter/lm", "tiny/lm", "base/tokenizer"]


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_back_and_explains(name):
    cls = class_of(load(name), name)
    config = parse(cls, load(name), name)
    text = commented_yaml(config, "one line\n\nanother")
    assert parse(cls, parse_yaml(text), name) == config
    assert text.startswith("# one line\n#\n# another\npart: ")
    described = [field.description for field in cls.model_fields.values() if field.description]
    assert described
    for description in described:
        assert description.split()[0] in text
    assert yaml.safe_load(text)["part"] == config.part
