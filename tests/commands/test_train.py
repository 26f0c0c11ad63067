"""`pictish train`: what may be another when a run goes on, and that a run has one process."""

import pytest

from pictish.commands.train import UNDECIDING, _begun
from pictish.configs import load, parse
from pictish.decoder.config import TrainConfig as DecoderConfig
from pictish.io.files import only_writer
from pictish.lm.config import TrainConfig
from pictish.tokenizer.config import TrainConfig as TokenizerConfig

PARTS = {"tokenizer": TokenizerConfig, "preview": DecoderConfig, "lm": TrainConfig}
OTHER_VALUES = {"data.strict": "true", "data.read_ahead": "false", "tensorboard": "true", "samples": "[a]"}


def config(part, *changes):
    return parse(PARTS[part], load(f"tiny/{part}", changes), part)


def has(part, name):
    fields = PARTS[part].model_fields
    group, _, own = name.rpartition(".")
    return (own in fields["data"].annotation.model_fields) if group else (own in fields)


@pytest.mark.parametrize(("part", "name"), [(p, n) for p in PARTS for n in UNDECIDING if has(p, n)])
def test_a_run_goes_on_with_other_reporting(part, name, tmp_path):
    with _begun(tmp_path, config(part), quiet=False):
        pass
    changed = config(part, f"{name}={OTHER_VALUES.get(name, '1')}")
    assert changed != config(part)
    with _begun(tmp_path, changed, quiet=False):
        assert parse(PARTS[part], load(tmp_path / "config.yaml"), "run") == changed


@pytest.mark.parametrize(
    ("part", "change"),
    [("lm", "seed=1"), ("lm", "data.rows=16"), ("preview", "steps=99"), ("tokenizer", "seed=1")],
)
def test_what_decides_the_weights_must_be_the_same(part, change, tmp_path):
    with _begun(tmp_path, config(part), quiet=False):
        pass
    with (
        pytest.raises(ValueError, match="contains a run with a different config"),
        _begun(tmp_path, config(part, change), quiet=False),
    ):
        pass


def test_a_run_has_one_process(tmp_path, monkeypatch):
    taken = pytest.raises(ValueError, match="another process is writing here")
    with only_writer(tmp_path), taken, _begun(tmp_path, config("lm"), quiet=False):
        pass
    with only_writer(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with _begun(tmp_path, config("lm"), quiet=False):
            pass  # the first of its processes holds it
    monkeypatch.delenv("RANK")
    for _ in range(2):
        with _begun(tmp_path, config("lm"), quiet=False):
            pass
