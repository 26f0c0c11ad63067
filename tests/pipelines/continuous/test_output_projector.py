"""An output projector: a frozen language model learns to draw without codes, and draws what it learned."""

import json
import logging
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictish.cli import main
from pictish.configs import load, parse
from pictish.data.shards import ShardFile
from pictish.decoder.diffusion import save_diffusion
from pictish.lm.adapted import read_base
from pictish.lm.output_projector import OutputProjector, OutputProjectorConfig
from pictish.pipelines.continuous.config import TrainConfig
from pictish.pipelines.continuous.generate import ContinuousGenerator
from pictish.pipelines.continuous.train import captions_of, prompt_ids, train
from pictish.pipelines.settings import GenerationConfig
from pictish.tokenizer.cache import build_cache
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from tests.decoder.tiny import config as decoder_config
from tests.decoder.tiny import decoder_of
from tests.lm.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from tests.shards import COLOURS, SHAPES, png, told_picture
from tests.test_several_processes import check
from tests.test_several_processes import run as run_processes
from tests.tokenizer.conftest import tiny_network
from tests.whole import speaking_model

PAIRS = [(f"a {colour} {shape}", told_picture(colour, shape)) for colour, shape in product(COLOURS, SHAPES)]


def shard(path: Path, *, uncaptioned: int = 0) -> Path:
    with ShardFile(path) as file:
        for number, (caption, picture) in enumerate(PAIRS):
            words = {} if number < uncaptioned else {"txt": caption.encode()}
            file.write(f"{number:03d}", {"png": png(picture), **words})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tokenizer, a language model, and a decoder that reads features alone."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(folder / "tokenizer", tiny_network())
    tokenizer = Tokenizer.from_folder(folder)
    speaking_model(tokenizer).save(folder / "lm", dtype=torch.float32)
    settings = decoder_config(condition={"channels": 2, "width": 16, "sequence": ["features"]})
    save_diffusion(folder / "decoder", decoder_of(tokenizer, settings), tokenizer.fingerprint)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return shard(tmp_path_factory.mktemp("data") / "pairs.tar")


def experiment(model: Path, data: Path, *changes: str) -> TrainConfig:
    given = [
        f"language_model={model}",
        f"tokenizer={model}",
        f"data.train=[{data}]",
        f"data.validation=[{data}]",
        f"data.cache={data.parent / 'cache'}",
        "batch_size=6",
    ]
    return parse(TrainConfig, load("tiny/output-projector", [*given, *changes]), "test")


@pytest.fixture(scope="module")
def trained(model, data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "whole"
    changes = ["steps=160", "model.queries=4", "validate_every=80", "sample_every=160", "learning_rate=4e-3"]
    train(experiment(model, data, *changes), run, "cpu")
    return run


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in found]


def test_each_caption_draws_the_features_of_its_own_image(model, trained):
    tokenizer = Tokenizer.from_folder(model)
    generator = ContinuousGenerator.from_folder(trained / "model", model, steps=0)
    found = generator.features([caption for caption, _ in PAIRS]).flatten(1)
    wanted = tokenizer.reconstruct(tokenizer.tokenize([picture for _, picture in PAIRS])).flatten(1)
    assert torch.cdist(found, wanted).argmin(dim=1).tolist() == list(range(len(PAIRS)))
    errors = [row["validation_features_error"] for row in lines(trained) if "validation_loss" in row]
    assert errors[-1] < 0.2 * lines(trained)[0]["features_error"]
    with Image.open(trained / "samples" / "step-00000160.png") as sheet:
        assert sheet.size[0] == 6 * sheet.size[1] // 3  # images, their features, and what is drawn


@pytest.mark.parametrize("steps", [0, 2])
def test_prompt_and_seed_give_the_image(model, trained, steps):
    generator = ContinuousGenerator.from_folder(trained / "model", model, steps=steps)
    config = GenerationConfig(num_inference_steps=steps, size=32)
    first, again, other = (generator(["a red disc"], [seed], config)[0] for seed in (1, 1, 2))
    assert first.size == (32, 32)
    assert first.tobytes() == again.tobytes()
    assert (first.tobytes() == other.tobytes()) == (steps == 0)  # the noise is the decoder's
    beside = generator(["a blue bar on a table", "a red disc"], [5, 1], config)[1]
    assert np.abs(np.asarray(beside, int) - np.asarray(first, int)).max() <= 1


def test_the_language_model_stays_as_it_was(model, data, tmp_path):
    before = (model / "lm" / "model.safetensors").read_bytes()
    base = read_base(model)
    whole = {name: tensor.clone() for name, tensor in base.language.state_dict().items()}
    projector = OutputProjector.beside(base.language, OutputProjectorConfig(width=32), 16, 12)
    projector(base.language, prompt_ids(base, ["a red disc", ""])).sum().backward()
    assert all(parameter.grad is not None for parameter in projector.parameters())
    assert all(parameter.grad is None for parameter in base.language.parameters())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in base.language.state_dict().items())
    train(experiment(model, data, "steps=1", "warmup=0"), tmp_path / "run", "cpu")
    assert (model / "lm" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_queries_stand_behind_their_prompt_whatever_else_is_in_the_batch(architecture):
    text = tiny_tokenizer()
    language = tiny_model(architecture, len(text), dtype=torch.float32)
    projector = OutputProjector.beside(language, OutputProjectorConfig(width=32), 16, 12)
    prompts = [text.encode(words) for words in ("a red apple on a table", "two pears", "")]
    with torch.no_grad():
        together = projector.states(language, prompts)
        for number, prompt in enumerate(prompts):
            words = language.get_input_embeddings()(torch.tensor([prompt], dtype=torch.long))
            alone = language.base_model(
                inputs_embeds=torch.cat([words, projector.queries[None]], dim=1), use_cache=False
            ).last_hidden_state[0, len(prompt) :]
            torch.testing.assert_close(together[number], alone, rtol=1e-3, atol=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stop_changes_nothing(model, data, tmp_path, stop):
    changes = [
        "steps=4",
        "warmup=1",
        "checkpoint_every=1",
        "log_every=1",
        "validate_every=2",
        "sample_every=0",
    ]
    changes += ["objective.diffusion=0.5", f"decoder={model}"]

    def progress(done: int, total: int) -> None:
        if done == stop:
            raise Killed

    train(experiment(model, data, *changes), tmp_path / "whole", "cpu")
    with pytest.raises(Killed):
        train(experiment(model, data, *changes), tmp_path / "run", "cpu", progress)
    torch.rand(5)  # another process has another state
    train(experiment(model, data, *changes), tmp_path / "run", "cpu")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert {"features_error", "diffusion_error"} <= lines(tmp_path / "run")[0].keys()
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_two_processes_learn_what_one_does(model, data, tmp_path):
    places = [f"language_model={model}", f"tokenizer={model}", f"decoder={model}"]
    places += [f"data.{part}=[{data}]" for part in ("train", "validation")]
    settings = [*places, f"data.cache={tmp_path}", "objective.diffusion=0.5", "batch_size=6", "steps=4"]
    settings += ["warmup=1", "log_every=1", "validate_every=4", "checkpoint_every=4", "sample_every=4"]
    run_processes(1, "output-projector", tmp_path / "one", *settings)
    run_processes(2, "output-projector", tmp_path / "two", *settings)
    check(tmp_path / "two", tmp_path / "one")


def test_the_diffusion_loss_reaches_the_projector(model, data, tmp_path):
    """Features alone of weight 0: what is learned then comes through the decoder."""
    changes = ["objective.features=0", "objective.diffusion=1", f"decoder={model}", "steps=60", "warmup=2"]
    changes += ["log_every=20", "sample_every=0", "validate_every=60", "learning_rate=4e-3"]
    train(experiment(model, data, *changes), tmp_path / "run", "cpu")
    errors = [row["diffusion_error"] for row in lines(tmp_path / "run") if "diffusion_error" in row]
    assert errors[-1] < errors[0]


def test_from_the_command_line(model, data, trained, tmp_path, capsys):
    run = tmp_path / "run"
    places = [f"language_model={model}", f"tokenizer={model}", f"data.cache={tmp_path}"]
    places += [f"data.train=[{data}]", f"data.validation=[{data}]"]
    config = ["tiny/output-projector", *places, "steps=6", "warmup=1", "batch_size=6"]
    assert main(["train", "output-projector", *config, "--run", str(run), "--quiet"]) == 0
    assert f"model folder: {run / 'model'}" in capsys.readouterr().out
    draw = ["generate", "a red disc", "a blue bar", "--model", str(model)]
    draw += ["--output-projector", str(trained / "model"), "--out", str(tmp_path / "out"), "--size", "48"]
    assert main([*draw, "--count", "2", "--grid", str(tmp_path / "grid.png")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"a-{what}-{seed}.png" for what in ("red-disc", "blue-bar") for seed in (0, 1)}
    assert main(draw) == 2
    assert "already exists; give --overwrite" in capsys.readouterr().err
    assert main([*draw, "--overwrite", "--temperature", "0.5"]) == 2
    assert (
        "--temperature: applies to codes, which --output-projector does not write" in capsys.readouterr().err
    )


def test_a_language_model_without_codes_draws_too(model, data, tmp_path):
    """A plain transformers folder: nothing of it is widened."""
    text = tiny_tokenizer()
    tiny_model("qwen3", len(text), dtype=torch.float32).save_pretrained(tmp_path / "base")
    text.save_pretrained(tmp_path / "base")
    changes = [f"language_model={tmp_path / 'base'}", "steps=2", "warmup=0", "sample_every=0"]
    train(experiment(model, data, *changes), tmp_path / "run", "cpu")
    generator = ContinuousGenerator.from_folder(tmp_path / "run" / "model", model, tmp_path / "base", steps=0)
    assert generator(["a red disc"], [0], GenerationConfig(num_inference_steps=0, size=16))[0].size == (
        16,
        16,
    )
    with pytest.raises(ValueError, match=r"an output projector of the language model \w{12}, not of \w{12}"):
        ContinuousGenerator.from_folder(tmp_path / "run" / "model", model, steps=0)


def test_images_without_a_caption_are_counted(model, data, tmp_path, caplog):
    some = shard(tmp_path / "some.tar", uncaptioned=2)
    changes = [f"data.train=[{some}]", "steps=1", "warmup=0", "sample_every=0"]
    with caplog.at_level(logging.WARNING, "pictish"):
        train(experiment(model, data, *changes), tmp_path / "run", "cpu")
    assert (
        "2 of 6 images have no caption, and are drawn from an empty prompt: some.tar/000, some.tar/001"
        in caplog.text
    )
    none = shard(tmp_path / "none.tar", uncaptioned=len(PAIRS))
    with pytest.raises(ValueError, match=r"no captions in .*none\.tar"):
        train(experiment(model, data, f"data.train=[{none}]"), tmp_path / "other", "cpu")


def test_shards_of_one_name_keep_their_own_captions(tmp_path):
    for number, (caption, picture) in enumerate(PAIRS[:2]):
        (tmp_path / str(number)).mkdir()
        with ShardFile(tmp_path / str(number) / "a.tar") as file:
            file.write("0", {"png": png(picture), "txt": caption.encode()})
    shards = [str(tmp_path / str(number) / "a.tar") for number in range(2)]
    cache = build_cache(
        tmp_path, shards, 32, views=2, limit=None, workers=0, seed=0, report=lambda done, count: None
    )
    assert captions_of(shards, cache) == [(caption,) for caption, _ in PAIRS[:2]]
    assert sorted(cache.numbers(0, 4, seed=0)) == [0, 0, 1, 1]


def test_what_does_not_fit_is_refused(model, data, trained, tmp_path):
    tokenizer = Tokenizer.from_folder(model)
    codes = decoder_config(condition={"channels": 2, "width": 16, "sequence": ["codes"]})
    save_diffusion(tmp_path / "codes", decoder_of(tokenizer, codes), tokenizer.fingerprint)
    build = partial(experiment, model, data)
    with pytest.raises(ValueError, match="decoder: it reads codes"):
        train(build(f"decoder={tmp_path / 'codes'}", "objective.diffusion=1"), tmp_path / "run", "cpu")
    with pytest.raises(
        ValueError, match=r"objective.diffusion: is the loss of a `decoder`, and none is given"
    ):
        build("objective.diffusion=1")
    with pytest.raises(ValueError, match="so nothing would be learned"):
        build("objective.features=0")
    with pytest.raises(ValueError, match="holds no diffusion decoder"):
        train(build(f"decoder={model / 'lm'}", "objective.diffusion=1"), tmp_path / "run", "cpu")
    with pytest.raises(ValueError, match="an output projector was asked for"):
        ContinuousGenerator.from_folder(model / "lm", model, steps=0)
    generator = ContinuousGenerator.from_folder(trained / "model", model, steps=0)
    with pytest.raises(ValueError, match="an empty prompt"):
        generator(["  "], [0])
    with pytest.raises(ValueError, match="temperature: applies to codes"):
        generator(["a red disc"], [0], GenerationConfig(temperature=0.5))
