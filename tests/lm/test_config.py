"""Settings that cannot work are one line before anything is read."""

import pytest

from pictish.configs import load, parse
from pictish.decoder.config import TrainConfig as DecoderConfig
from pictish.lm.config import NewModel, TrainConfig
from pictish.lm.model import ImageTokens
from pictish.lm.new_model import new_model
from pictish.tokenizer.config import TrainConfig as TokenizerConfig
from tests.lm.tiny import tiny_tokenizer

WRONG = {
    "stages=[]": "stages",
    "stages=[{name: a, steps: 5, warmup: 6}]": "warmup 6 must be 0 to steps, which is 5",
    "stages=[{name: a, steps: 5, warmup: 0, weights: {pictures: -1}}]": r"weights\.pictures.*-1",
    "stages=[{name: a, steps: 5, warmup: 0, weights: {pictures: 0}}]": "all its sources have weight 0",
    "data.train.pictures.continuous=0.5": "source pictures: continuous is 0.5, which takes model.features",
    "data.validation={unseen: {paths: [x], continuous: 1}}": "source unseen: continuous",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_cannot_work_is_one_line(change):
    with pytest.raises(ValueError, match=WRONG[change]) as caught:
        parse(TrainConfig, load("tiny/lm", [change]), "tiny/lm")
    assert "\n" not in str(caught.value)


def test_continuous_pictures_with_features_are_fine():
    changes = ["data.train.pictures.continuous=0.5", "model.features=true"]
    assert parse(TrainConfig, load("tiny/lm", changes), "tiny/lm").data.train["pictures"].continuous == 0.5


def test_the_other_parts_refuse_the_same():
    with pytest.raises(ValueError, match="warmup 99"):
        parse(DecoderConfig, load("tiny/preview", ["steps=9", "warmup=99"]), "tiny/preview")
    with pytest.raises(ValueError, match="phases"):
        parse(TokenizerConfig, load("tiny/tokenizer", ["phases=[]"]), "tiny/tokenizer")
    phase = "phases=[{name: a, steps: 9, quantize: false}]"
    with pytest.raises(ValueError, match="warmup 100"):
        parse(TokenizerConfig, load("tiny/tokenizer", [phase]), "tiny/tokenizer")


SIZES = [{"num_attention_heads": 5}, {"num_attention_heads": 0}, {"hidden_size": "a"}, {"hidden_size": -4}]


@pytest.mark.parametrize("wrong", SIZES)
def test_settings_that_transformers_refuses_are_one_line(wrong):
    settings = {**load("tiny/lm")["model"]["base"]["settings"], **wrong}
    base, tokens = NewModel(settings=settings), ImageTokens("0123456789ab", 30, 16, 12)
    with pytest.raises(ValueError, match=r"^model\.base: ") as caught:
        new_model(base, tiny_tokenizer(), tokens, features=False, seed=0)
    assert "\n" not in str(caught.value)
