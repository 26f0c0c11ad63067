"""docs/training.md, "Eyes for your language model": its files and commands, at tiny size."""

import json
import re
import shlex

import pytest

from pictish.cli import main
from pictish.configs import parse
from pictish.io.plain_yaml import read_yaml
from pictish.lm.config import TrainConfig
from tests.lm.tiny import tiny_model, tiny_tokenizer
from tests.shards import told_picture
from tests.tree import ROOT

TEXT = (ROOT / "docs" / "training.md").read_text("utf-8")
PAGE = TEXT.partition("## Eyes for your language model")[2].partition("\n## ")[0]


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def test_the_page_runs_as_it_stands(whole_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3", len(tokenizer)).float().save_pretrained("models/qwen3-0.6b")
    tokenizer.save_pretrained("models/qwen3-0.6b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "models/qwen3-0.6b").iterdir()}
    (questions,) = blocks(PAGE, "json")
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(("red", "blue", "green")):
        told_picture(colour, "bar").save(f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(f"a {colour} bar")
    told_picture("red", "disc").save("pictures/apple.png")
    (tmp_path / "pictures/apple.json").write_text(questions)
    (config,) = blocks(PAGE, "yaml")
    (tmp_path / "eyes.yaml").write_text(config)
    commands = [line.strip() for line in PAGE.splitlines() if line.startswith("    pictish ")]
    assert len(commands) == 2
    tiny = "stages=[{name: all, steps: 2, warmup: 0}]"  # the steps of the page are for a real model
    more = {"train": [f"tokenizer={whole_model}", tiny, "data.length=64", "data.rows=4"], "describe": []}
    more["describe"] = ["--model", str(whole_model), "--max-new-tokens", "3"]
    for command in commands:
        words = shlex.split(command)[1:]
        assert main([*words, *more[words[0]]]) == 0, command
    assert "Traceback" not in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in (tmp_path / "models/qwen3-0.6b").iterdir()}
    assert after == before
    assert json.loads(questions)["questions"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_configs_of_systems_are_configs(number, tmp_path):
    text = blocks((ROOT / "docs" / "systems.md").read_text("utf-8"), "yaml")[number]
    (tmp_path / "system.yaml").write_text(text)
    config = parse(TrainConfig, read_yaml(tmp_path / "system.yaml"), "docs/systems.md")
    assert (config.adaptor is not None) == (number == 2)
