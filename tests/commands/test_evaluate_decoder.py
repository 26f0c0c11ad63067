import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.cli import main
from pictish.decoder.diffusion import save_diffusion
from pictish.decoder.pixel import Decoder
from pictish.decoder.upscaler import save_upscaler
from pictish.evaluation import decoder as decoder_evaluation
from pictish.io.model_folder import fingerprint, read_config
from pictish.io.plain_yaml import to_yaml
from pictish.pipelines.pipeline import Pipeline
from pictish.pipelines.settings import Drawing
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from tests.commands.test_evaluate import picture
from tests.decoder.tiny import config, decoder_of, tiny_upscaler
from tests.evaluation.tiny_decoder import save_tiny_decoder
from tests.tokenizer.conftest import ORDERED, tiny_network

METRICS = {"psnr", "ssim", "feature_distance", "fid_small", "kid"}


class FlatDistance:
    """In place of lite2: the pixels of an image, and its mean colours as what FID and KID see."""

    NETWORK = "flat"

    def __init__(self, device: object = "cpu") -> None:
        pass

    def features(self, pictures):
        return pictures / 255

    def pooled(self, pictures):
        return pictures.mean(axis=(1, 2)) / 255

    def compare(self, ours, theirs):
        return np.abs(ours - theirs).mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_models) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"), tiny_models)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr("pictish.evaluation.metrics.FeatureDistance", FlatDistance)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(4):
        picture(seed).save(folder / f"{seed}.png")
    return folder


def evaluate(model: Path, *words: object) -> int:
    return main(["evaluate", "decoder", *map(str, words), "--model", str(model), "--device", "cpu"])


def test_evaluation_writes_numbers_and_sheet_twice_the_same(pictures, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(model, pictures, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["decoder-pictures.png", "decoder.json"]
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    report = json.loads(first["decoder.json"])
    assert (report["steps"], report["guidance"]) == (2, 1.5)
    (found,) = report["sets"]
    assert (found["pictures"], found["broken"]) == (4, [])
    assert list(found["ways"]) == ["decoder", "mean image", "preview", "thumbnail"]
    for name, way in found["ways"].items():
        assert set(way) == METRICS
        assert way["psnr"]["low"] <= way["psnr"]["mean"] <= way["psnr"]["high"]
        if name != "decoder":
            gained = found["gain_over"][name]["psnr"]["mean"]
            ours = found["ways"]["decoder"]["psnr"]["mean"]
            assert gained == pytest.approx(ours - way["psnr"]["mean"], abs=1e-3)
    text = capsys.readouterr().out
    assert "FID-small(4)" in text
    assert "…" not in text, "the table does not fit into 80 columns"
    assert max(map(len, text.split("wrote ")[0].splitlines())) <= 80
    assert evaluate(model, pictures, "--out", out) == 2
    assert "already contains decoder.json" in capsys.readouterr().err
    assert evaluate(model, pictures, "--out", out, "--quiet", "--overwrite") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_curve_writes_numbers_and_chart(pictures, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decoder_evaluation, "STEPS", (1, 2, 4))
    out = tmp_path / "out"
    assert evaluate(model, pictures, "--out", out, "--curve") == 0
    assert sorted(path.name for path in out.iterdir()) == ["decoder-curve.json", "decoder-curve.png"]
    (found,) = json.loads((out / "decoder-curve.json").read_bytes())["sets"]
    assert [(point["scheduler"], point["steps"]) for point in found["points"]] == [
        (name, steps)
        for name in ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
        for steps in (1, 2, 4)
    ]
    for point in [*found["points"], found["preview"]]:
        assert set(point) >= METRICS | {"seconds"}
        assert point["seconds"] > 0
    with Image.open(out / "decoder-curve.png") as chart:
        assert min(chart.size) > 300
    text = capsys.readouterr().out.split("wrote ")[0]
    assert "…" not in text, "the table does not fit into 80 columns"
    assert max(map(len, text.splitlines())) <= 80


def test_a_model_without_a_preview_head_and_a_broken_picture(pictures, model, tmp_path, capsys):
    (pictures / "torn.png").write_text("no picture")
    folder = tmp_path / "model"
    folder.mkdir()
    for part in ("tokenizer", "decoder"):
        (folder / part).symlink_to(model / part)
    assert evaluate(folder, pictures, "--out", tmp_path / "out", "--quiet", "--limit", 5) == 1
    assert "torn.png: not an image" in capsys.readouterr().err
    (found,) = json.loads((tmp_path / "out" / "decoder.json").read_bytes())["sets"]
    assert found["pictures"] == 4
    assert "preview" in found["ways"], "the tokenizer's own pixels"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scheduler", "DDIMScheduler"), "not for noise of kind flow"),
        (("--curve", "--steps", 4), "do not give --steps"),
        (("--curve", "--upscale", 4), "do not give --upscale 4"),
        (("--steps", 0), "--steps"),
        (("--pixel-guidance", 1000), "--pixel-guidance': Input should be less than"),
    ],
)
def test_settings_that_do_not_fit_are_a_users_mistake(words, said, pictures, model, tmp_path, capsys):
    assert evaluate(model, pictures, "--out", tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_model_with_a_preview_alone_is_a_users_mistake(pictures, tiny_models, tmp_path, capsys):
    assert evaluate(tiny_models, pictures, "--out", tmp_path / "out") == 2
    assert "has no diffusion decoder to evaluate" in capsys.readouterr().err


def test_figures_before_and_after_the_upscaler(pictures, model, tmp_path, capsys):
    folder = tmp_path / "model"
    for part in ("tokenizer", "decoder", "preview"):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).symlink_to(model / part)
    assert evaluate(folder, pictures, "--out", tmp_path / "out", "--upscale", 2) == 2
    assert "upscale: 2 asked for; this model has no upscaler" in capsys.readouterr().err
    network = tiny_upscaler()
    save_upscaler(folder / "upscaler", network.config, network.state_dict())
    assert evaluate(folder, pictures, "--out", tmp_path / "plain", "--quiet") == 0
    plain = json.loads((tmp_path / "plain" / "decoder.json").read_bytes())
    assert (plain["side"], plain["upscale"], plain["upscaler"]) == (32, 1, None)
    assert "decoder, upscaled" not in plain["sets"][0]["ways"]
    assert evaluate(folder, pictures, "--out", tmp_path / "out", "--upscale", 2) == 0
    report = json.loads((tmp_path / "out" / "decoder.json").read_bytes())
    assert (report["side"], report["upscale"]) == (64, 2)
    assert report["upscaler"] == fingerprint(folder / "upscaler")
    ways = report["sets"][0]["ways"]
    assert set(ways["decoder, upscaled"]) == METRICS
    assert ways["decoder, upscaled"]["psnr"] != ways["decoder"]["psnr"]
    gained = report["sets"][0]["gain_over"]["decoder, upscaled"]["psnr"]["mean"]
    before, after = (ways[name]["psnr"]["mean"] for name in ("decoder", "decoder, upscaled"))
    assert gained == pytest.approx(before - after, abs=1e-3)
    text = capsys.readouterr().out.split("wrote ")[0]
    assert "…" not in text, "the table does not fit into 80 columns"
    assert max(map(len, text.splitlines())) <= 80


def test_it_measures_what_detokenize_draws(pictures, model, tmp_path, monkeypatch):
    """Of a decoder with other defaults for reconstruction than for generation."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    config = read_config(folder / "decoder")
    sampling = config["model"]["sampling"]
    config["model"]["redraw"] = {**sampling, "steps": 3, "guidance": 2.0}
    (folder / "decoder" / "config.yaml").write_text(to_yaml(config))
    drawn = []
    original = Decoder.decode

    def noted(self, tokens, generators, **settings):
        drawn.append((settings["steps"], settings["guidance"]))
        return original(self, tokens, generators, **settings)

    monkeypatch.setattr(Decoder, "decode", noted)
    assert evaluate(folder, pictures, "--out", tmp_path / "out", "--limit", 2, "--quiet") == 0
    numbers = json.loads((tmp_path / "out" / "decoder.json").read_bytes())
    assert (numbers["steps"], numbers["guidance"]) == (3, 2.0)
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    pipe.detokenize(pipe.tokenize(picture(0)))
    assert set(drawn) == {(3, 2.0)}
    settled = pipe.reconstructor().settled(Drawing(), generated=True)
    assert (settled.steps, settled.guidance) == (sampling["steps"], sampling["guidance"])


def test_a_model_that_is_unlike_the_starter(pictures, tmp_path):
    """Features hold no pixels, as LaVIT's, so there is no preview; 3 x 3 cells, and images of 24 pixels."""
    encoder = {**ORDERED["encoder"], "image_size": 48, "grid": 3, "pixels": 0}
    save_tokenizer(tmp_path / "model" / "tokenizer", tiny_network(**{**ORDERED, "encoder": encoder}))
    tokenizer = Tokenizer.from_folder(tmp_path / "model")
    network = decoder_of(tokenizer, config(side=24))
    save_diffusion(tmp_path / "model" / "decoder", network, tokenizer.fingerprint)
    assert evaluate(tmp_path / "model", pictures, "--out", tmp_path / "out", "--quiet") == 0
    numbers = json.loads((tmp_path / "out" / "decoder.json").read_bytes())
    assert (numbers["side"], set(numbers["sets"][0]["ways"])) == (
        24,
        {"decoder", "thumbnail", "mean image"},
    )
    words = ["evaluate", "tokenizer", pictures, "--out", tmp_path / "out", "--model", tmp_path / "model"]
    assert main([*map(str, words), "--device", "cpu", "--quiet"]) == 0
    numbers = json.loads((tmp_path / "out" / "tokenizer.json").read_bytes())
    assert (numbers["side"], numbers["grid"]) == (24, [3, 3])
    assert [point["budget"] for point in numbers["sets"][0]["budgets"]] == [4, 8, 9]
