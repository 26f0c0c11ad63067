"""The one configuration of `train model`: presets of every size, and paths that start at its folder."""

from pathlib import Path

import pytest

from pictish.configs import parse
from pictish.configs.explain import commented_yaml
from pictish.io.plain_yaml import parse_yaml
from pictish.recipes.own.config import OwnConfig, located, preset
from pictish.recipes.own.prepare import settings


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
    assert config.tokenizer.data.train == (str(here / "data/train/*captioned-*.tar"),)
    assert config.lm.data.train["pictures"].paths == (str(here / "tokens/train/captioned-*.tar"),)
    assert config.lm.model.base.folder == str(here / "models/base")


def test_an_unknown_key_is_said():
    with pytest.raises(ValueError, match=r"--size tiny: unknown key decoder\.stepz; did you mean steps"):
        preset("tiny", None, ["decoder.stepz=3"])


def test_edits_and_questions_are_sources_where_there_are_some():
    samples = {"train/captioned": 200, "train/edits": 50, "train/questions": 1, "validation/captioned": 9}
    data = preset("tiny", None, [], samples).lm.data
    assert {name: source.weight for name, source in data.train.items()} == {
        "pictures": 1,
        "edits": 0.25,
        "questions": 0.005,
    }
    assert data.train["edits"].paths == ("tokens/train/edits-*.tar",)
    assert list(data.validation) == ["pictures"]


def test_missing_weights_of_an_encoder_are_said_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"vit_large\S+: the weights of timm's vit_large\S+ are needed here"):
        settings(tmp_path, "base", None, [], {})
    (tmp_path / "vit_large_patch14_reg4_dinov2.safetensors").touch()
    assert settings(tmp_path, "base", None, [], {})[0].size == "base"
