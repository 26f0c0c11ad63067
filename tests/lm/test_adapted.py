"""Training an adaptor beside a frozen base, and its folder."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pictish.configs import load, parse
from pictish.data.shards import ShardFile
from pictish.lm.adapted import AdaptedModel, adapt, load_adaptor, read_base, weights_fingerprint
from pictish.lm.config import AdaptorConfig, TrainConfig
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.sampler import sampler_of
from pictish.lm.start import starting_model
from pictish.lm.train import train
from pictish.lm.trainable import trainable
from tests.lm import test_sampler
from tests.lm.pictures import CODES, COLOURS, FINGERPRINT, caption, encoded, pair_shard
from tests.lm.seeing import seeing_model
from tests.lm.test_processes import losses_of
from tests.lm.test_processes import run as run_processes
from tests.lm.tiny import tiny_model, tiny_tokenizer, tiny_unified

IMAGE_TOKENS = ImageTokens(FINGERPRINT, CODES, 16, 12)


def encode_images(pictures):
    """Features that tell the colour, as a tokenizer would give them."""
    found = []
    for one in pictures:
        colour = COLOURS.index(one.blob.decode().split()[1])
        features = np.zeros((2, 12), np.float32)
        features[:, colour] = 1
        found.append(encoded([colour, 3], None, features))
    return found


def our_base(folder: Path) -> Path:
    """A model folder whose language model knows images."""
    model = tiny_unified("qwen3")
    model.image_tokens = IMAGE_TOKENS
    model.save(folder, dtype=torch.float32)
    return folder


def plain_base(folder: Path) -> Path:
    """A folder as the hub has them."""
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3", len(tokenizer), dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_for(tmp_path: Path, base: Path, *, continuous: float = 1.0, **changes) -> TrainConfig:
    """Two stages of two steps: the projector, then all of the adaptor."""
    with ShardFile(tmp_path / "raw" / "0.tar") as shard:
        chance = np.random.default_rng(0)
        for number in range(30):
            text = caption(chance).encode()
            shard.write(f"{number:04d}", {"png": text, "txt": text})
    raw = load("tiny/lm", [])
    raw["model"] = {"base": {"kind": "pretrained", "folder": str(base)}, "features": True}
    raw["data"]["train"] = {
        "pictures": {"paths": [f"{tmp_path}/raw/*.tar"], "caption": 1.0, "continuous": continuous}
    }
    raw["adaptor"] = {"kind": "colours", "points": [1]}
    raw["stages"] = [
        {"name": "projector", "steps": 2, "learning_rate": 0.01, "warmup": 0, "trainable": ["projector.*"]},
        {"name": "all", "steps": 2, "learning_rate": 0.01, "warmup": 0},
    ]
    raw |= {"checkpoint_every": 1, "log_every": 1, "validate_every": 100, **changes}
    return parse(TrainConfig, raw, "test")


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def run(config: TrainConfig, folder: Path, **options) -> Path:
    return train(config, folder, IMAGE_TOKENS, "cpu", encode_images=encode_images, **options)


class Killed(Exception):
    pass


def test_an_adaptor_is_trained_alone_in_stages_and_a_killed_run_ends_alike(tmp_path):
    base = our_base(tmp_path / "base")
    before, config = digests(base), config_for(tmp_path, base)
    whole = run(config, tmp_path / "whole")
    stops = {1, 3}

    def progress(done: int, total: int) -> None:
        if done in stops:
            stops.remove(done)
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            run(config, tmp_path / "broken", progress=progress)
    broken = run(config, tmp_path / "broken", progress=progress)
    weights, others = (load_file(folder / "model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert weights.keys() == others.keys()
    assert digests(base) == before
    assert {name.partition(".")[0] for name in weights} == {"layers", "table", "norm", "head", "projector"}
    assert not (whole / "tokenizer.json").exists(), "the base has it"
    checkpoint = load_file(tmp_path / "whole" / "checkpoints" / "step-00000004" / "tensors.safetensors")
    assert not any(name.startswith("language.") for name in checkpoint), "nothing of the base is kept"
    stage = load_file(tmp_path / "whole" / "checkpoints" / "step-00000003" / "tensors.safetensors")
    assert not torch.equal(stage["projector.body.1.weight"], checkpoint["projector.body.1.weight"])

    together = read_base(base)
    adapted = load_adaptor(whole, together)
    assert isinstance(adapted, AdaptedModel)
    assert (adapted.kind, adapted.adaptor.points) == ("colours", (1,))
    assert torch.equal(
        adapted.adaptor.layers[0].mlp.down_proj.weight, weights["layers.0.mlp.down_proj.weight"]
    )
    assert adapted.adaptor.layers[0].mlp.down_proj.weight.abs().max() > 0, "identity was where it began"
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(
            together.language(ids).logits, UnifiedModel.from_folder(base).language(ids).logits
        ), "text is untouched by one that is loaded"
        assert not torch.equal(together.language(ids).logits, adapted.language(ids).logits)


def test_a_text_adaptor_with_tied_ends_holds_its_layers_alone(tmp_path):
    base = our_base(tmp_path / "base")
    config = config_for(
        tmp_path,
        base,
        model={"base": {"kind": "pretrained", "folder": str(base)}},
        adaptor={"kind": "code", "points": [0, 1], "table": "tied", "norm": "tied", "head": "tied"},
        stages=[{"name": "text", "steps": 2, "warmup": 0}],
        continuous=0.0,
    )
    folder = run(config, tmp_path / "run")
    assert {name.partition(".")[0] for name in load_file(folder / "model.safetensors")} == {"layers"}
    assert load_adaptor(folder, read_base(base)).projector is None


def test_a_base_that_knows_no_pictures_gets_them_in_the_adaptor_and_no_other_base_is_taken(tmp_path):
    base = plain_base(tmp_path / "base")
    folder = run(config_for(tmp_path, base), tmp_path / "run")
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & set(stored), "of where it was read"
    together = read_base(base)
    rows = together.language.get_input_embeddings().weight.shape[0]
    adapted = load_adaptor(folder, together)
    assert adapted.language.get_input_embeddings().weight.shape[0] == adapted.vocabulary.size > rows
    assert together.language.get_input_embeddings().weight.shape[0] == rows
    assert together.fingerprint == weights_fingerprint(base)

    other = tmp_path / "other"
    tiny_model("qwen3", rows, seed=1, dtype=torch.float32).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(
        ValueError, match=f"of the language model {together.fingerprint}, not of [0-9a-f]+; give"
    ):
        load_adaptor(folder, read_base(other))
    with pytest.raises(ValueError, match=r"no adaptor, it has no config\.yaml"):
        load_adaptor(base, together)
    with pytest.raises(ValueError, match=r"table tied and head own, but .* knows no images"):
        run(config_for(tmp_path, base, adaptor={"table": "tied"}), tmp_path / "tied")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="weights do not fit the config"):
        load_adaptor(folder, together)


def test_what_would_reach_the_base_is_refused(tmp_path):
    base = our_base(tmp_path / "base")
    model = starting_model(config_for(tmp_path, base), IMAGE_TOKENS, tmp_path / "run")
    with trainable(model, ["*"]):
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if n.startswith(("adaptor.", "projector."))}
    with (
        pytest.raises(ValueError, match="of the adaptor's base, which stays as it is"),
        trainable(model, ["language.model.layers.0.*"]),
    ):
        pass
    with pytest.raises(ValueError, match="its base is a pretrained model without lora"):
        config_for(tmp_path, base, model={"base": {"kind": "pretrained", "folder": "x", "lora": 4}})


@pytest.mark.slow
def test_two_processes_train_an_adaptor_as_one_does(tmp_path):
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 60, seed=number)
    pair_shard(tmp_path / "validation" / "unseen.tar", 16, seed=9)
    settings = (
        "model={base: {kind: pretrained, folder: %s}}" % our_base(tmp_path / "base"),  # noqa: UP031
        "adaptor={kind: drawings, points: [0, 1]}",
        "stages=[{name: layers, steps: 2, warmup: 0, trainable: ['adaptor.layers.*']},"
        " {name: all, steps: 2, warmup: 0}]",
        "log_every=1",
    )
    run_processes(1, tmp_path, "one", *settings)
    run_processes(2, tmp_path, "two", *settings)
    assert losses_of(tmp_path / "two") == [
        pytest.approx(row, rel=1e-5) for row in losses_of(tmp_path / "one")
    ]
    weights, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for key, weight in weights.items():
        torch.testing.assert_close(again[key], weight, rtol=1e-3, atol=1e-5)


def test_an_adaptor_of_a_masked_model_fills_in_masks_too(tmp_path):
    folder = tmp_path / "base"
    test_sampler.masked_model(attention="prefix").save(folder, dtype=torch.float32)
    plain = UnifiedModel.from_folder(folder)
    adapt(plain, AdaptorConfig(points=(0,)), folder).save(tmp_path / "adaptor", dtype=torch.float32)
    adapted = load_adaptor(tmp_path / "adaptor", read_base(folder))
    assert adapted.masked == plain.masked
    request, seeds = test_sampler.request(), test_sampler.seeded
    drawn = [
        sampler_of(model).pictures(test_sampler.prompts(model, draw=True), request, seeds(3))
        for model in (plain, adapted)
    ]
    assert drawn[0] == drawn[1], "a new adaptor changes nothing"


def test_an_adaptor_beside_a_vision_tower_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only those that read the codes of an image tokenizer"):
        adapt(seeing_model(), AdaptorConfig(), tmp_path)
