"""Bad input of what draws by diffusion: one line on stderr and exit code 2, never a traceback."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pictish import cli
from pictish.data.tokens import TokenizedImage
from pictish.decoder.diffusion import save_diffusion
from pictish.decoder.preview import Preview
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from tests.decoder.tiny import config, decoder_of
from tests.shards import write_shard
from tests.tokenizer.conftest import tiny_network


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Path:
    """A model folder with a tokenizer of 64 codes and 16 cells and a diffusion decoder of random weights."""
    folder = tmp_path_factory.mktemp("drawing")
    save_tokenizer(folder / "tokenizer", tiny_network())
    tokenizer = Tokenizer.from_folder(folder)
    save_diffusion(folder / "decoder", decoder_of(tokenizer), tokenizer.fingerprint)
    return folder


@pytest.fixture
def copied(drawing, tmp_path) -> Path:
    return Path(shutil.copytree(drawing, tmp_path / "model"))


def token_file(folder: Path, place: Path, count: int = 3, **changes) -> Path:
    tokenizer = Tokenizer.from_folder(folder)
    grid = changes.get("grid", tokenizer.grid)
    whose = changes.get("fingerprint", tokenizer.fingerprint)
    cells = changes.get("cells", np.arange(count))
    place.write_bytes(TokenizedImage(np.arange(count), cells, grid, (48, 48), whose, 64).to_bytes())
    return place


def refused(capsys, *words: str | Path) -> str:
    assert cli.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pictish: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def detokenizing(folder: Path, tmp_path: Path, *more: str | Path) -> list[str | Path]:
    tokens = token_file(folder, tmp_path / "a.tokens")
    return ["detokenize", tokens, tmp_path / "out", "--model", folder, "--quiet", *more]


def test_tokens_of_another_tokenizer(drawing, tmp_path, capsys):
    file = token_file(drawing, tmp_path / "b.tokens", fingerprint="f" * 12)
    line = refused(capsys, "detokenize", file, tmp_path / "out", "--model", drawing, "--quiet")
    assert "written by tokenizer ffffffffffff, but this model has" in line


def test_more_tokens_than_cells(drawing, tmp_path, capsys):
    file = token_file(drawing, tmp_path / "b.tokens", 17, grid=(5, 5))
    words = ["detokenize", file, tmp_path / "out", "--model", drawing, "--quiet"]
    assert cli.main([str(word) for word in words]) == 1
    assert "b.tokens: 17 tokens for one image; this tokenizer writes 1 to 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "found"),
    [({"cells": None}, "no cells"), ({"grid": (5, 5)}, "those of a grid of 5 x 5")],
)
def test_codes_without_cells_of_this_grid(drawing, tmp_path, capsys, change, found):
    file = token_file(drawing, tmp_path / "b.tokens", **change)
    words = ["detokenize", file, tmp_path / "out", "--model", drawing, "--quiet"]
    assert cli.main([str(word) for word in words]) == 1
    line = f"b.tokens: this tokenizer decodes codes at their cells; these tokens have {found}"
    assert line in capsys.readouterr().err


def test_no_tokens(drawing, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    (tmp_path / "b.tokens").write_bytes(b"")
    refused(capsys, "detokenize", tmp_path / "none", tmp_path / "out", "--model", drawing, "--quiet")
    words = ["detokenize", tmp_path / "b.tokens", tmp_path / "out", "--model", drawing, "--quiet"]
    assert cli.main([str(word) for word in words]) == 1
    assert "b.tokens: not a token file, or a damaged one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--scheduler", "FooScheduler"], "scheduler FooScheduler: diffusers has none of that name"),
        (["--scheduler", "DDIMScheduler"], "scheduler DDIMScheduler: not for noise of kind flow"),
        (["--pixel-guidance", "101"], "--pixel-guidance': Input should be less than"),
    ],
)
def test_a_setting_the_decoder_cannot_take(drawing, tmp_path, capsys, options, line):
    assert line in refused(capsys, *detokenizing(drawing, tmp_path, *options))
    assert not (tmp_path / "out").exists()
    assert cli.main([str(word) for word in detokenizing(drawing, tmp_path)]) == 0
    assert (tmp_path / "out" / "a.png").exists()


def test_steps_without_a_diffusion_decoder(tiny_models, tmp_path, capsys):
    line = refused(capsys, *detokenizing(tiny_models, tmp_path, "--steps", "5"))
    assert "has only a preview, which takes no steps; omit steps" in line


def test_no_steps_without_a_preview(drawing, tmp_path):
    """A tokenizer that places its codes reconstructs pixels itself."""
    words = detokenizing(drawing, tmp_path, "--steps", "0", "--size", "16")
    assert cli.main([str(word) for word in words]) == 0
    tokenizer = Tokenizer.from_folder(drawing)
    token = TokenizedImage.from_bytes((tmp_path / "a.tokens").read_bytes())
    (expected,) = Preview(None, tokenizer).decode([token])
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), expected.numpy())


def test_no_steps_without_a_preview_where_codes_have_no_cells(copied, tmp_path, capsys):
    words = detokenizing(copied, tmp_path, "--steps", "0")
    config = copied / "tokenizer" / "config.yaml"
    config.write_text(config.read_text().replace("kind: grid", "kind: sequence"))
    assert "no preview found for model" in refused(capsys, *words)


def test_no_steps_are_the_preview(drawing, tiny_models, tmp_path):
    """Of a folder with both: the diffusion decoder in decoder/, the preview in preview/."""
    tokenizer = Tokenizer.from_folder(tiny_models)
    model = tmp_path / "both"
    shutil.copytree(tiny_models / "tokenizer", model / "tokenizer")
    shutil.copytree(tiny_models / "decoder", model / "preview")
    settings = config(side=64, noise={"kind": "flow", "predicts": "x0"})
    save_diffusion(model / "decoder", decoder_of(tokenizer, settings), tokenizer.fingerprint)
    tokens = token_file(model, tmp_path / "a.tokens")
    pictures = {}
    for name, folder, more in (
        ("drawn", model, []),
        ("zero", model, ["--steps", "0"]),
        ("plain", tiny_models, []),
    ):
        words = ["detokenize", tokens, tmp_path / name, "--model", folder, "--quiet", *more]
        assert cli.main([str(word) for word in words]) == 0
        pictures[name] = (tmp_path / name / "a.png").read_bytes()
    assert pictures["zero"] == pictures["plain"]
    assert pictures["drawn"] != pictures["zero"]


def test_the_seed_makes_the_picture(drawing, tmp_path):
    words = [str(word) for word in detokenizing(drawing, tmp_path)]
    pictures = []
    for number, seed in enumerate(("1", "1", "2")):
        words[2] = str(tmp_path / f"out{number}")
        assert cli.main([*words, "--seed", seed]) == 0
        pictures.append((tmp_path / f"out{number}" / "a.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_changed_files(copied, tmp_path, capsys):
    path = copied / "decoder" / "denoiser" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] + 1}, path)
    line = refused(capsys, *detokenizing(copied, tmp_path))
    assert "decoder/denoiser: not the files this folder was written with; copy it again" in line
    path.unlink()
    assert "not the files this folder was written with" in refused(capsys, *detokenizing(copied, tmp_path))


def test_another_class_in_the_folder(copied, tmp_path, capsys):
    path = copied / "decoder" / "denoiser" / "config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "_class_name": "UNet2DConditionModel"}))
    assert "not the files this folder was written with" in refused(capsys, *detokenizing(copied, tmp_path))
    # also where somebody wrote a digest that fits
    from pictish.decoder import diffusion

    whole = copied / "decoder" / "config.yaml"
    settings = whole.read_text().splitlines()
    fitting = f"  denoiser: {diffusion._digest(path.parent)}"
    place = settings.index("sha256:") + 1
    whole.write_text("\n".join([*settings[:place], fitting, *settings[place + 1 :]]))
    line = refused(capsys, *detokenizing(copied, tmp_path))
    assert "it holds a UNet2DConditionModel, not a PixArtTransformer2DModel" in line


@pytest.mark.parametrize("part", ["denoiser", "condition"])
def test_weights_that_are_no_numbers(drawing, tmp_path, capsys, part, monkeypatch):
    tokenizer = Tokenizer.from_folder(drawing)
    model = decoder_of(tokenizer)
    with torch.no_grad():
        next(getattr(model, part).parameters()).view(-1)[0] = float("nan")
    shutil.copytree(drawing / "tokenizer", tmp_path / "model" / "tokenizer")
    with monkeypatch.context() as patched:  # as an earlier version saved them
        patched.setattr("pictish.decoder.denoiser.check_finite", lambda *_: None)
        save_diffusion(tmp_path / "model" / "decoder", model, tokenizer.fingerprint)
    line = refused(capsys, *detokenizing(tmp_path / "model", tmp_path))
    assert "is not finite; the file is damaged or the training diverged" in line


@pytest.mark.parametrize("missing", ["tokenizer", "sha256", "model"])
def test_a_config_with_a_hole(copied, tmp_path, capsys, missing):
    import yaml

    path = copied / "decoder" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings[missing]
    path.write_text(yaml.safe_dump(settings))
    assert missing in refused(capsys, *detokenizing(copied, tmp_path))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "model.denoiser.settings.num_layer=2",
            "denoiser.settings: PixArtTransformer2DModel knows no num_layer",
        ),
        ("model.side=18", "side: 18 pixels do not fit 4 x 4 cells; give a multiple of 4"),
        ("model.sampling.scheduler=FooScheduler", "scheduler FooScheduler: diffusers has none of that name"),
        ("model.sampling.scheduler=DDIMScheduler", "scheduler DDIMScheduler: not for noise of kind flow"),
        ("model.denoiser.folder=DENOISER", "it holds a UNet2DConditionModel, not a PixArtTransformer2DModel"),
        (
            "model.denoiser.folder=/nowhere",
            "/nowhere: no diffusers model; looked for transformer/config.json",
        ),
        ("objective.weighting=min_snr", "objective.weighting: min_snr is for noise of kind diffusion"),
        ("model.condition={channels: 0, sequence: []}", "no channels and no sequence"),
        ("model.condition.channelss=2", "unknown key model.condition.channelss; did you mean channels"),
    ],
)
def test_training_that_cannot_be(drawing, tmp_path, capsys, change, line):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    write_shard(tmp_path / "some.tar", 8)
    shards = [f"data.train=[{tmp_path}/some.tar]", f"data.validation=[{tmp_path}/some.tar]"]
    words = ["train", "decoder", "tiny/decoder", f"tokenizer={drawing / 'tokenizer'}", *shards, "steps=9"]
    change = change.replace("DENOISER", f"{tmp_path}/unet")
    found = refused(capsys, *words, change, "--run", tmp_path / "run", "--device", "cpu", "--quiet")
    assert line in found
    assert not list(tmp_path.glob("run/cache/*")), "refused before the pictures are encoded"
