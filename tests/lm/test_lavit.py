"""A tiny language model in LaVIT's layout becomes one of ours; what is wrong with it is told."""

import json
from pathlib import Path

import pytest
import torch

from pictish.data.importing import Part, Source, write_pieces
from pictish.io.model_folder import SHARDS, fingerprint
from pictish.lm.lavit import plan_language
from pictish.lm.model import PROJECTOR, UnifiedModel
from tests.lm.test_sentencepiece import pieces, written

CODES, WIDTH, FEATURES = 5, 8, 6
WORDS = len(pieces())
ROWS = WORDS + 2 + CODES
OVERRIDE = "language_model/visual_weight.bin"
SETTINGS = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tokenizer_class": "LlamaTokenizer",
    "_name_or_path": "somewhere",
}
LAYER = "model.layers.0"
FIRST = {
    "model.embed_tokens.weight": (ROWS, WIDTH),
    **{f"{LAYER}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"},
    f"{LAYER}.input_layernorm.weight": (WIDTH,),
}
SECOND = {
    f"{LAYER}.mlp.gate_proj.weight": (12, WIDTH),
    f"{LAYER}.mlp.up_proj.weight": (12, WIDTH),
    f"{LAYER}.mlp.down_proj.weight": (WIDTH, 12),
    f"{LAYER}.post_attention_layernorm.weight": (WIDTH,),
    "model.norm.weight": (WIDTH,),
    "lm_head.weight": (ROWS, WIDTH),
}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint" / "language_model"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    places = {}
    for number, shapes in enumerate((FIRST, SECOND), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        drawn = {n: torch.randn(shape, generator=generator).bfloat16() for n, shape in shapes.items()}
        places |= dict.fromkeys(shapes, file)
        if number == 1:  # as old files have it
            drawn[f"{LAYER}.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        torch.save(drawn, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    (folder / "tokenizer.model").write_bytes(written(pieces()))
    vit_proj = {"vit_proj.weight": torch.ones(WIDTH, FEATURES), "vit_proj.bias": torch.zeros(WIDTH)}
    torch.save(vit_proj, folder / "visual_weight.bin")
    return folder


def plan(folder: Path) -> tuple[Part | None, list[str]]:
    source = Source(folder.parent)
    made = plan_language(source, codes=CODES, max_tokens=9, features=FEATURES, override=OVERRIDE)
    return made, source.wrong


def test_it_becomes_a_folder_that_transformers_and_pictish_load(checkpoint, tmp_path):
    part, wrong = plan(checkpoint)
    assert wrong == []
    assert part is not None
    out = tmp_path / "lm"
    for file, weights in part.weights.items():
        write_pieces(out / file, weights, lambda count: None)
    part.finish(out, "0123456789ab")
    model = UnifiedModel.from_folder(out)
    stored = torch.load(checkpoint / "pytorch_model-00001-of-00002.bin", weights_only=True)
    embedding = model.language.get_input_embeddings().weight
    assert torch.equal(embedding, stored["model.embed_tokens.weight"].float())
    assert (model.vocabulary.begin, model.vocabulary.first_code, model.vocabulary.size) == (
        WORDS,
        WORDS + 2,
        ROWS,
    )
    assert model.image_tokens.fingerprint == "0123456789ab"
    assert torch.equal(model.projector(torch.ones(1, FEATURES)), torch.full((1, WIDTH), float(FEATURES)))
    assert model.defaults.drawing.ignored_ids == (0, 1, 2, WORDS)
    assert model.defaults.continuous
    files = json.loads((out / SHARDS).read_text())
    assert set(files["weight_map"]) == {*FIRST, *SECOND}
    assert sorted(files["metadata"]["sha256"]) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    before = fingerprint(out)
    (out / SHARDS).write_text((out / SHARDS).read_text().replace("sha256", "sha255"))
    assert fingerprint(out) != before
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (out / PROJECTOR).is_file()


def other_settings(**changes):
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(SETTINGS | changes))

    return change


def without(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()

    return change


def other_index(folder: Path) -> None:
    places = dict.fromkeys([*FIRST, *SECOND], "pytorch_model-00001-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def escaping_index(folder: Path) -> None:
    text = json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.bin"}})
    (folder / "pytorch_model.bin.index.json").write_text(text)


def narrow_projector(folder: Path) -> None:
    torch.save({"vit_proj.weight": torch.ones(3, FEATURES)}, folder / "visual_weight.bin")


def one_more(folder: Path) -> None:
    path = folder / "pytorch_model-00002-of-00002.bin"
    torch.save({**torch.load(path, weights_only=True), "strange": torch.ones(1)}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("config.json"), "config.json: missing; pictish generate, edit and describe needs it"),
        (without("tokenizer.model"), "tokenizer.model: missing"),
        (without("pytorch_model.bin.index.json"), "index.json: missing"),
        (without("pytorch_model-00002-of-00002.bin"), "00002-of-00002.bin: missing"),
        (other_settings(model_type="gpt2"), "not the settings of a Llama"),
        (other_settings(vocab_size=WORDS), f"vocab_size is {WORDS}"),
        (other_settings(hidden_size=16), "misshapen: model.embed_tokens.weight"),
        (other_settings(num_hidden_layers=2), "places 9 tensors nowhere"),
        (other_index, "6 missing: model.layers.0.mlp.gate_proj.weight"),
        (escaping_index, "not the index of a model's files"),
        (narrow_projector, "vit_proj.weight is of shape"),
        (one_more, "1 unexpected: strange"),
    ],
)
def test_what_is_wrong_is_told(change, message, checkpoint):
    change(checkpoint)
    part, wrong = plan(checkpoint)
    assert part is None
    assert any(message in line for line in wrong), wrong
    assert all("\n" not in line for line in wrong)
