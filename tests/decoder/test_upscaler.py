"""The upscaler: shapes, the smaller factor, one image like many, and folders that are not to be trusted."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file

from pictish.decoder.config import PreviewConfig, UpscalerConfig
from pictish.decoder.preview import build_preview, save_preview
from pictish.decoder.upscaler import LICENCE, CompactUpscaler, Upscaler, save_upscaler
from pictish.io.budget import Refused
from pictish.io.model_folder import find_upscaler, fingerprint
from pictish.pipelines.reconstruct import Reconstructor
from pictish.pipelines.settings import Drawing
from tests.decoder.tiny import tiny_upscaler


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "upscaler"
    network = tiny_upscaler()
    save_upscaler(folder, network.config, network.state_dict(), "Do as you please.")
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model" / "upscaler"))


@pytest.fixture
def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (5, 8, 12, 3), dtype=torch.uint8, generator=generator)


def test_without_details_it_repeats_pixels(pictures):
    network = tiny_upscaler()
    torch.nn.init.zeros_(network.body[-1].weight)
    torch.nn.init.zeros_(network.body[-1].bias)
    enlarged = torch.stack(Upscaler(network, "0" * 12).enlarge(pictures, 4))
    assert enlarged.dtype == torch.uint8
    assert torch.equal(enlarged, pictures.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_half_the_factor_is_the_mean_of_areas(saved, pictures):
    upscaler = Upscaler.from_folder(saved)
    whole, half, none = (torch.stack(upscaler.enlarge(pictures, factor)) for factor in (4, 2, 1))
    assert [tuple(each.shape) for each in (whole, half, none)] == [
        (5, 32, 48, 3),
        (5, 16, 24, 3),
        (5, 8, 12, 3),
    ]
    means = F.avg_pool2d(whole.permute(0, 3, 1, 2).float(), 2).permute(0, 2, 3, 1)
    assert (half - means).abs().max() <= 1  # `whole` is rounded
    assert not torch.equal(whole, pictures.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_a_picture_does_not_depend_on_its_batch(saved, pictures):
    upscaler = Upscaler.from_folder(saved)
    together = upscaler.enlarge([*pictures, pictures[0, :3]], 4)
    assert together[-1].shape == (12, 48, 3)
    for place, picture in enumerate(pictures):
        assert torch.equal(upscaler.enlarge(picture[None], 4)[0], together[place])
    assert upscaler.enlarge([], 4) == []


def test_a_folder_gives_the_same_network_and_its_fingerprint(saved, pictures):
    loaded = Upscaler.from_folder(saved, dtype=torch.bfloat16)  # a CPU stays with float32
    assert loaded.fingerprint == fingerprint(saved)
    assert {tensor.dtype for tensor in loaded.network.state_dict().values()} == {torch.float32}
    ours, theirs = loaded.enlarge(pictures, 4), Upscaler(tiny_upscaler(), "").enlarge(pictures, 4)
    assert torch.equal(torch.stack(ours), torch.stack(theirs))
    assert (saved / LICENCE).read_text() == "Do as you please."


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_is_near_float32_on_the_cpu(saved, pictures):
    expected = torch.stack(Upscaler.from_folder(saved).enlarge(pictures, 4)).int()
    for dtype, most in ((torch.float32, 2), (torch.bfloat16, 8)):
        upscaler = Upscaler.from_folder(saved, "cuda", dtype)
        assert {tensor.dtype for tensor in upscaler.network.state_dict().values()} == {dtype}
        found = torch.stack(upscaler.enlarge(pictures, 4))
        assert (found.int() - expected).abs().max() <= most
        assert torch.equal(upscaler.enlarge(pictures[2:3], 4)[0], found[2])


@pytest.mark.parametrize("factor", [0, 3, 8, -1])
def test_other_factors_are_refused(saved, pictures, factor):
    with pytest.raises(ValueError, match=f"upscale: {factor} asked for; 1, 2, 4 fit this upscaler"):
        Upscaler.from_folder(saved).enlarge(pictures, factor)


def change(folder: Path, **settings) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"part": "decoder"}, "an upscaler was asked for, this folder holds part 'decoder'"),
        ({"model": {"upscale": 3, "width": 8, "layers": 1}}, "upscale"),
        ({"model": {"width": 8, "layers": 1, "depth": 2}}, "depth"),
        ({"model": {"width": 16, "layers": 1}}, "weights do not fit the config"),
        ({"model": {"width": 8, "layers": 2}}, "weights do not fit the config: 3 missing"),
        ({"model": {"width": 0, "layers": 1}}, "width"),
        ({"model": 4}, "config.yaml has int as model"),
    ],
)
def test_settings_that_do_not_fit(copied, settings, line):
    change(copied, **settings)
    with pytest.raises(ValueError, match=line) as caught:
        Upscaler.from_folder(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [{"width": 100_000, "layers": 1}, {"width": 8, "layers": 10_000_000}])
def test_settings_that_ask_for_more_than_the_weights_hold(copied, model):
    change(copied, model=model)
    with pytest.raises(Refused, match="which its weights do not account for"):
        Upscaler.from_folder(copied)


def test_damaged_weights(copied):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "body.0.bias": tensors["body.0.bias"] * torch.nan}, path)
    with pytest.raises(ValueError, match=r"body\.0\.bias is not finite"):
        Upscaler.from_folder(copied)
    save_file({**tensors, "stranger": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="1 unknown"):
        Upscaler.from_folder(copied)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a safetensors file"):
        Upscaler.from_folder(copied)


def test_it_is_found_beside_the_other_parts_and_never_passed_over(copied, tmp_path):
    model = tmp_path / "model"
    assert find_upscaler(model) == copied
    assert find_upscaler(copied) is None  # the folder of one part
    assert find_upscaler(tmp_path) is None
    change(copied, part="decoder")
    assert find_upscaler(model) == copied


@pytest.fixture(scope="module")
def model(folder, tokenizer, saved, tmp_path_factory) -> Path:
    """A tokenizer, a preview of 16 pixels and an upscaler."""
    model = tmp_path_factory.mktemp("upscaled") / "model"
    shutil.copytree(folder / "tokenizer", model / "tokenizer")
    shutil.copytree(saved, model / "upscaler")
    settings = PreviewConfig(width=16, blocks=1, smallest=8)
    save_preview(model / "preview", build_preview(settings, tokenizer), settings, tokenizer.fingerprint)
    return model


def test_pictures_are_upscaled_and_then_resized(model, tokens):
    draw = Reconstructor.from_folder(model)
    plain = draw(tokens, 16, drawing=Drawing(upscale=1))
    assert [picture.size for picture in plain] == [(16, 16)] * 7
    assert draw.upscaler is not None
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in plain]))
    for factor, drawing in ((4, Drawing()), (4, Drawing(upscale=4)), (2, Drawing(upscale=2))):
        drawn = draw(tokens, drawing=drawing)
        assert np.array_equal(np.stack(drawn), torch.stack(draw.upscaler.enlarge(pixels, factor)))
        resized = draw(tokens[:1], 40, drawing=drawing)[0]
        assert np.array_equal(np.asarray(resized), np.asarray(drawn[0].resize((40, 40), 3)))
    assert draw(tokens[:1], drawing=Drawing(upscale=1))[0].size == (256, 256)


def test_what_a_drawing_goes_through(model):
    draw = Reconstructor.from_folder(model)
    assert draw.settled(Drawing()) == Drawing(steps=0, upscale=4)
    assert draw.settled(Drawing(upscale=2)) == Drawing(steps=0, upscale=2)
    assert (
        draw.upscaler_of(Drawing()) == draw.upscaler_of(Drawing(upscale=2)) == fingerprint(model / "upscaler")
    )
    assert draw.upscaler_of(Drawing(upscale=1)) is None
    with pytest.raises(ValueError, match="upscale: 3 asked for; 1, 2, 4 fit this upscaler"):
        draw.settled(Drawing(upscale=3))


def test_a_model_without_one_refuses(model, tokens, tmp_path):
    for part in ("tokenizer", "preview"):
        shutil.copytree(model / part, tmp_path / part)
    draw = Reconstructor.from_folder(tmp_path)
    assert draw.settled(Drawing()) == Drawing(steps=0, upscale=1)
    with pytest.raises(ValueError, match="upscale: 4 asked for; this model has no upscaler, so only 1 fits"):
        draw(tokens, drawing=Drawing(upscale=4))
    whole = Reconstructor.from_folder(model)(tokens, 32, drawing=Drawing(upscale=1))
    for ours, theirs in zip(draw(tokens, 32), whole, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_the_starters_upscaler_sharpens_an_edge_where_it_is():
    folder = find_upscaler("starter")
    assert folder is not None
    upscaler = Upscaler.from_folder(folder)
    assert sum(each.numel() for each in upscaler.network.state_dict().values()) == 621_424
    assert (folder / LICENCE).is_file()
    picture = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    picture[:, :, :16] = torch.tensor([200, 30, 30], dtype=torch.uint8)
    picture[:, :, 16] = torch.tensor([228, 142, 142], dtype=torch.uint8)  # half of each
    enlarged = upscaler.enlarge(picture, 4)[0].float()
    middle = enlarged[32:96, :, 1].mean(dim=0)  # green along a row
    assert (middle[16:60] - 30).abs().max() < 12
    assert (middle[72:112] - 255).abs().max() < 12
    between = ((middle > 60) & (middle < 225)).sum()
    assert between <= 4, "a bilinear resize has 8"
    assert (enlarged[32:96, 16:60, 0].mean() - 200).abs() < 8, "red stays red"


def test_a_compact_network_has_the_official_form():
    network = CompactUpscaler(UpscalerConfig())
    kinds = [type(layer).__name__ for layer in network.body]
    assert kinds == ["Conv2d", "PReLU"] * 17 + ["Conv2d"]
    assert network.body[-1].weight.shape == (48, 64, 3, 3)
