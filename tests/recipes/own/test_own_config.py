"""The one configuration of `train model`: presets of every size, and paths that start at its folder."""

from pathlib import Path

import pytest

from pictish.configs import parse
from pictish.configs.explain import commented_yaml
from pictish.io.plain_yaml import parse_yaml
from pictish.recipes.own.config import OwnConfig, located, preset


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_presets_fit_and_read_back(size):
    config = preset(size, None, ["lm.seed=7"])
    assert config.lm.seed == 7
    assert config.decoder.tokenizer == config.lm.tokenizer == "tokenizer"
    assert parse(OwnConfig, parse_yaml(commented_yaml(config)), size) == config
    if size != "tiny":  # the parts see the same squares, so that the cache is decoded once
        assert config.tokenizer.model.encoder.image_size == config.decoder.model.side


def test_relative_paths_start_at_the_folder(tmp_path):
    base = "lm.model.base={kind: pretrained, folder: models/base}"
    config = located(preset("tiny", "/elsewhere/model", [base, "decoder.tokenizer=starter"]), tmp_path)
    here = Path(tmp_path).resolve()
    assert config.tokenizer.initial == "/elsewhere/model"
    assert config.decoder.tokenizer == "starter"
    assert config.lm.tokenizer == str(here / "tokenizer")
    assert config.tokenizer.data.cache == config.decoder.data.cache == str(here / "cache")
    assert config.tokenizer.data.train == (str(here / "data/train/*.tar"),)
    assert config.lm.data.train["pictures"].paths == (str(here / "tokens/train/*.tar"),)
    assert config.lm.model.base.folder == str(here / "models/base")


def test_an_unknown_key_is_said():
    with pytest.raises(ValueError, match=r"--size tiny: unknown key decoder\.stepz; did you mean steps"):
        preset("tiny", None, ["decoder.stepz=3"])
