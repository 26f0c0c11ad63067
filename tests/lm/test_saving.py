"""What is saved can be read, moved, and is what was trained."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pictish.lm.config import PretrainedModel
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from tests.lm.tiny import tiny_model, tiny_tokenizer, tiny_unified

IMAGE_TOKENS = ImageTokens("0" * 12, 30, 16, 5)
TEXT = torch.arange(3, 200, 11)[None]  # (1, L) ids


def base_folder(folder: Path) -> Path:
    """A causal language model as the hub has them, head and embedding apart."""
    tokenizer = tiny_tokenizer()
    tiny_model("llama", len(tokenizer), dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def widened(folder: Path) -> UnifiedModel:
    model = new_model(PretrainedModel(folder=str(folder)), None, IMAGE_TOKENS, features=False, seed=0)
    return model.eval()


@pytest.mark.parametrize("large", [1e5, -3e38])
def test_weights_beyond_the_range_of_fp16_come_back(tmp_path, caplog, large):
    model = tiny_unified("llama", 5)
    with torch.no_grad():
        model.language.model.layers[0].mlp.up_proj.weight[3, 4] = large
        model.language.to(torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        model.save(tmp_path / "model")
    assert "beyond the range of torch.float16; stored as torch.float32" in caplog.text
    loaded, expected = UnifiedModel.from_folder(tmp_path / "model"), model.language.state_dict()
    assert all(torch.equal(expected[name].float(), t) for name, t in loaded.language.state_dict().items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.dtype == torch.float32


def test_a_model_that_fits_is_stored_as_asked(tmp_path, caplog):
    model = tiny_unified("llama")
    with caplog.at_level(logging.WARNING):
        model.save(tmp_path / "model", dtype=torch.bfloat16)
    assert not caplog.text
    assert load_file(tmp_path / "model" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_written(tmp_path, value):
    model = tiny_unified("llama")
    with torch.no_grad():
        model.language.lm_head.weight[5, 2] = value
    with pytest.raises(ValueError, match=r"lm_head\.weight holds values that are no finite numbers"):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_holds_no_path_of_the_base_and_can_be_moved(tmp_path):
    base = base_folder(tmp_path / "base")
    change_json(
        base / "tokenizer_config.json",
        special_tokens_map_file=str(base / "special_tokens_map.json"),
        tokenizer_file=str(base / "tokenizer.json"),
        name_or_path=str(base),
    )
    change_json(base / "config.json", _name_or_path=str(base))
    model = widened(base)
    model.save(tmp_path / "model", dtype=torch.float32)
    shutil.rmtree(base)
    moved = shutil.move(tmp_path / "model", tmp_path / "moved")
    for file in Path(moved).iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    loaded = UnifiedModel.from_folder(moved)
    assert loaded.text_tokenizer("a red apple").input_ids == model.text_tokenizer("a red apple").input_ids
    with torch.no_grad():
        assert torch.equal(loaded.language(TEXT).logits, model.language(TEXT).logits)


def test_a_separate_head_stays_separate_whatever_the_config_says(tmp_path):
    base = base_folder(tmp_path / "base")
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base).eval()(TEXT).logits
    change_json(base / "config.json", tie_word_embeddings=True)
    model = widened(base)
    with torch.no_grad():
        assert torch.allclose(model.language(TEXT).logits[..., : expected.shape[-1]], expected, atol=1e-5)
    model.save(tmp_path / "model", dtype=torch.float32)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    for loaded in (
        UnifiedModel.from_folder(tmp_path / "model").language,
        AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval(),
        widened(tmp_path / "model").language,  # trained further
    ):
        with torch.no_grad():
            assert torch.equal(loaded(TEXT).logits, model.language(TEXT).logits)


def test_a_tied_head_stays_tied(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3", len(tokenizer), tied=True, dtype=torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = widened(tmp_path / "base")
    language = model.language
    assert language.get_output_embeddings().weight is language.get_input_embeddings().weight
    model.save(tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")


def test_contradictory_generation_settings_of_a_base_do_not_stop_a_save(tmp_path):
    base = base_folder(tmp_path / "base")
    change_json(base / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    model = widened(base)
    model.language.generation_config.max_length = 30  # as training scripts do
    model.save(tmp_path / "model")
    UnifiedModel.from_folder(tmp_path / "model")


def test_shards_of_a_base_are_not_looked_for_elsewhere(tmp_path):
    base = base_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "outside.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../outside.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"outside\.safetensors"):
        widened(base)
