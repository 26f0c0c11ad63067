"""Model folders: they load as they were saved, plain too, go on training, and are refused when damaged."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pictish.lm.config import PretrainedModel
from pictish.lm.model import PROJECTOR, ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.sequence import picture_of
from tests.lm.tiny import tiny_model, tiny_tokenizer, tiny_unified

IMAGE_TOKENS = ImageTokens("0" * 12, 30, 16, 5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_unified("llama", 5).save(folder)
    return folder


def test_a_placed_model_is_a_plain_folder_that_knows_its_cells(tmp_path):
    model = tiny_unified("llama", cells=16)
    model.save(tmp_path / "model")
    loaded = UnifiedModel.from_folder(tmp_path / "model")
    assert loaded.vocabulary == model.vocabulary
    assert (loaded.vocabulary.cells, loaded.image_tokens.cells) == (16, 16)
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "a red apple[IMG]<skip-00003><code-00002><code-00001><skip-00010><code-00029>[/IMG]"
    ids = plain(text, add_special_tokens=False).input_ids
    codes, cells = picture_of(np.array(ids[ids.index(loaded.vocabulary.begin) :]), loaded.vocabulary)
    assert (codes.tolist(), cells.tolist()) == ([2, 1, 29], [3, 4, 15])
    assert plain.decode(ids) == text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size == len(plain)
    for cells in (None, 9):
        facts = {"fingerprint": "0" * 12, "codes": 30, "max_tokens": 16, "features": 0, "cells": cells}
        change_config(tmp_path / "model", image_tokens=facts)
        with pytest.raises(ValueError, match="the text tokenizer has 30 codes on 16 cells"):
            UnifiedModel.from_folder(tmp_path / "model")


def test_a_folder_without_a_word_of_cells_knows_the_order_of_codes_only(folder):
    facts = yaml.safe_load((folder / "config.yaml").read_text())
    del facts["image_tokens"]["cells"]  # as folders were written before
    (folder / "config.yaml").write_text(yaml.safe_dump(facts))
    loaded = UnifiedModel.from_folder(folder)
    assert (loaded.vocabulary.cells, loaded.image_tokens.cells) == (None, None)
    with pytest.raises(
        ValueError, match=r"30 codes of tokenizer 0{12}, not the 30 codes on 16 cells of 0{12}"
    ):
        continued(folder, replace(IMAGE_TOKENS, cells=16))


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def continued(folder: Path | str, image_tokens: ImageTokens = IMAGE_TOKENS, **settings) -> UnifiedModel:
    base = PretrainedModel(folder=str(folder), **settings)
    return new_model(base, None, image_tokens, features=False, seed=0)


def test_a_saved_model_is_a_plain_one_of_half_precision(saved):
    plain = AutoModelForCausalLM.from_pretrained(saved)
    assert plain.dtype == torch.float16
    before, after = tiny_unified("llama", 5).language.half().state_dict(), plain.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = UnifiedModel.from_folder(saved)
    assert next(loaded.parameters()).dtype == torch.float32
    original = tiny_unified("llama", 5).projector.state_dict()
    assert all(torch.equal(original[name], t) for name, t in loaded.projector.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_saving_copies_no_weights_where_the_model_is(tmp_path, monkeypatch, tied):
    model = tiny_unified("qwen3")
    if tied:
        model.language.config.tie_word_embeddings = True
        model.language.tie_weights()
    state = {name: tensor.clone() for name, tensor in model.language.state_dict().items()}

    def refuse(self, memo):
        raise AssertionError("copied where it is")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    model.save(tmp_path / "model")
    monkeypatch.undo()
    assert all(torch.equal(state[name], t) for name, t in model.language.state_dict().items()), "untouched"
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert ("lm_head.weight" in stored) != tied
    UnifiedModel.from_folder(tmp_path / "model")


@pytest.mark.parametrize("settings", [{}, {"lora": 2}])
def test_a_model_of_ours_is_a_base_as_it_is(folder, settings):
    stored = UnifiedModel.from_folder(folder)
    model = continued(folder, **settings).eval()
    assert model.vocabulary == stored.vocabulary
    ids = torch.arange(0, 300, 13)[None]
    with torch.no_grad():
        assert torch.equal(model.language(ids).logits, stored.language(ids).logits)
        assert torch.equal(model.projector(torch.ones(1, 5)), stored.projector(torch.ones(1, 5)))
    model.save(folder.parent / "again")
    assert UnifiedModel.from_folder(folder.parent / "again").vocabulary == stored.vocabulary


def test_a_base_of_ours_may_be_given_a_projector(tmp_path):
    tiny_unified("llama").save(tmp_path / "model")
    base, tokens = PretrainedModel(folder=str(tmp_path / "model")), ImageTokens("0" * 12, 30, 16, 0)
    assert new_model(base, None, tokens, features=True, seed=0).projector is not None


def test_a_base_for_another_tokenizer_is_refused(folder):
    for tokens in (ImageTokens("f" * 12, 30, 16, 5), ImageTokens("0" * 12, 31, 16, 5)):
        with pytest.raises(
            ValueError, match=f"30 codes of tokenizer {'0' * 12}, not the {tokens.codes} codes of"
        ):
            continued(folder, tokens)


def test_a_plain_base_beside_a_foreign_config(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_model("llama", len(tokenizer), dtype=torch.float32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text("optimizer: adam\n")
    assert continued(tmp_path).vocabulary.codes == 30


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


NORM = "model.norm.weight"
DAMAGE = {
    "1 missing": lambda f: change_weights(f, lambda tensors: tensors.pop(NORM)),
    "1 missing.*lm_head": lambda f: change_weights(f, lambda tensors: tensors.pop("lm_head.weight")),
    "1 unexpected.*strange": lambda f: change_weights(f, lambda t: t.update(strange=torch.ones(2))),
    "1 mismatched.*norm": lambda f: change_weights(f, lambda t: t.update({NORM: torch.ones(3)})),
    "norm.weight holds values that are no finite": lambda f: change_weights(
        f, lambda t: t[NORM].fill_(math.nan)
    ),
    "cannot be loaded": lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-100]
    ),
    "projector.safetensors: damaged": lambda f: (f / PROJECTOR).write_bytes(b"hello"),
    "projector.safetensors: damaged, or": lambda f: save_file({"a": torch.ones(1)}, f / PROJECTOR),
    "projector.safetensors: damaged, or not": lambda f: (f / PROJECTOR).unlink(),
    "unknown key colour": lambda f: change_config(f, colour=1),
    "format: got 2": lambda f: change_config(f, format=2),
    "image_tokens": lambda f: change_config(f, image_tokens={"codes": 30}),
    "speaks of 29 codes, the text tokenizer has 30": lambda f: change_config(
        f, image_tokens={"fingerprint": "0" * 12, "codes": 29, "max_tokens": 16, "features": 5}
    ),
    "holds part 'decoder'": lambda f: change_config(f, part="decoder"),
    r"training run; when it is done, .*model would fit": lambda f: change_config(f, stages=[]),
    r"no config\.json": lambda f: (f / "config.json").unlink(),
    "cannot be loaded as": lambda f: (f / "config.json").write_text("{"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(folder, message, capfd):
    DAMAGE[message](folder)
    with pytest.raises(ValueError, match=message) as refused:
        UnifiedModel.from_folder(folder)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""
