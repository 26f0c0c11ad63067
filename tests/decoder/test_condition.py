"""What a denoiser reads of codes: padding says nothing, order does, the null condition knows no codes."""

import pytest
import torch

from pictish.configs import parse
from pictish.decoder.condition import ConditionEncoder, Conditioning, EncodedConditions, hide
from pictish.decoder.config import ConditionConfig
from tests.decoder.tiny import TRANSFORMER, UNET, conditioning_of, config, decoder_of


def predictions(model, conditioning: Conditioning, drop: bool = False, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    count = len(conditioning.codes)
    noisy = torch.randn(count, 3, size, size, generator=generator)
    with torch.no_grad():
        prior = model.prior(conditioning, (size, size))
        return model(noisy, torch.full((count,), 400.0), conditioning, torch.full((count,), drop), prior)


@pytest.mark.parametrize("denoiser", [TRANSFORMER, UNET], ids=["transformer", "unet"])
@pytest.mark.parametrize("sequence", [["codes"], ["features", "codes"]])
def test_padding_says_nothing(tokenizer, denoiser, sequence):
    condition = {"channels": 0, "width": 16, "sequence": sequence}
    model = decoder_of(tokenizer, config(denoiser, condition=condition))
    conditioning = conditioning_of(tokenizer, 5)
    expected = predictions(model, conditioning)
    other = conditioning._replace(
        codes=torch.where(conditioning.real[..., None], conditioning.codes, torch.tensor(1e3))
    )
    assert (predictions(model, other) - expected).abs().max() < 1e-5
    longest = int(conditioning.real.sum(1).max())
    assert longest < tokenizer.cells
    short = conditioning._replace(codes=conditioning.codes[:, :longest], real=conditioning.real[:, :longest])
    assert (predictions(model, short) - expected).abs().max() < 1e-5
    changed = conditioning._replace(codes=conditioning.codes + 1)
    assert (predictions(model, changed) - expected).abs().max() > 1e-3, (
        "codes that are real must tell something"
    )


def test_the_order_of_codes_matters(tokenizer):
    model = decoder_of(tokenizer, config(condition={"channels": 0, "width": 16, "sequence": ["codes"]}))
    conditioning = conditioning_of(tokenizer, 2)
    full = conditioning._replace(real=torch.ones_like(conditioning.real))
    turned = full._replace(codes=full.codes.flip(1))
    assert (predictions(model, turned) - predictions(model, full)).abs().max() > 1e-4


@pytest.mark.parametrize("residual", [None, 0.3])
def test_the_null_condition_knows_no_codes(tokenizer, residual):
    model = decoder_of(tokenizer, config(UNET, residual=residual))
    one, moved = conditioning_of(tokenizer, 3, seed=3), conditioning_of(tokenizer, 3, seed=4)
    other = moved._replace(pixels=one.pixels)
    assert torch.allclose(predictions(model, one, drop=True), predictions(model, other, drop=True), atol=1e-6)
    assert not torch.allclose(predictions(model, one), predictions(model, other), atol=1e-3)
    conditions = model.condition(one, torch.tensor([True, False, True]))
    alone = model.condition(other, torch.ones(3, dtype=torch.bool))
    assert torch.equal(conditions.maps[0], alone.maps[0])
    assert not torch.equal(conditions.maps[1], alone.maps[1])
    dropped = [predictions(model, each, drop=True) for each in (moved, other)]
    assert torch.allclose(*dropped, atol=1e-3) == (residual is None), "a prior is told, whatever is dropped"


def test_pooled_is_the_mean_of_features_and_null_where_dropped(tokenizer):
    settings = parse(ConditionConfig, {"channels": 1, "width": 8, "pooled": 6}, "test")
    network = tokenizer.network
    condition = ConditionEncoder(settings, network.features, network.quantizer.dim, 16, 4)
    conditioning = conditioning_of(tokenizer, 2)
    found: EncodedConditions = condition(conditioning, torch.tensor([False, True]))
    mixed = conditioning._replace(features=conditioning.features.flip(1))
    again = condition(mixed, torch.tensor([False, True]))
    assert found.pooled.shape == (2, 6)
    assert torch.allclose(found.pooled, again.pooled, atol=1e-6)
    assert torch.equal(found.pooled[1], condition.no_pooled)
    assert not torch.equal(found.pooled[0], condition.no_pooled)


def test_maps_and_prior_follow_the_size(tokenizer):
    model = decoder_of(tokenizer, config(residual=0.3))
    conditioning = conditioning_of(tokenizer, 2)
    kept = torch.zeros(2, dtype=torch.bool)
    square = model.condition(conditioning, kept)
    prior = model.prior(conditioning)
    assert torch.equal(prior, conditioning.pixels * 2 - 1)
    wide = model.condition(conditioning, kept, (16, 32))
    assert wide.maps.shape == (2, 2, 16, 32)
    wide_prior = model.prior(conditioning, (16, 32))
    assert wide_prior.shape == (2, 3, 16, 32)
    # stretched, not cropped or moved: the left half of the wide map tells of the left half of the square one
    halves = torch.nn.functional.avg_pool2d(wide_prior, (16, 16)).squeeze(2)
    expected = torch.nn.functional.avg_pool2d(prior, (16, 8)).squeeze(2)
    assert torch.allclose(halves, expected, atol=0.05)
    assert torch.equal(model.condition(conditioning, kept, (16, 16)).maps, square.maps)


def test_cells_lie_where_they_are(tokenizer):
    model = decoder_of(tokenizer)
    conditioning = conditioning_of(tokenizer, 1)
    moved = conditioning.features.clone()
    moved[:, 6] += 1  # row 1, column 2 of 4 x 4 cells of 4 pixels
    kept = torch.zeros(1, dtype=torch.bool)
    there = (
        model.condition(conditioning._replace(features=moved), kept).maps
        != model.condition(conditioning, kept).maps
    )[0].any(0)
    assert there[4:8, 8:12].all()
    assert there.sum() == 16


def test_a_condition_must_tell_something():
    with pytest.raises(ValueError, match="no channels and no sequence"):
        parse(ConditionConfig, {"channels": 0, "sequence": []}, "test")


def test_a_unet_that_attends_needs_a_sequence(tokenizer):
    with pytest.raises(ValueError, match=r"condition\.sequence: empty"):
        decoder_of(tokenizer, config(UNET, condition={"channels": 3, "sequence": []}))
    # diffusers' own choice of middle block attends too
    plain = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    middle = {"kind": "unet", "settings": {**UNET["settings"], **plain}}
    with pytest.raises(ValueError, match=r"condition\.sequence: empty"):
        decoder_of(tokenizer, config(middle, condition={"channels": 3, "sequence": []}))
    settings = {**middle["settings"], "mid_block_type": "UNetMidBlock2D"}
    model = decoder_of(tokenizer, config({"kind": "unet", "settings": settings}, condition={"sequence": []}))
    assert predictions(model, conditioning_of(tokenizer, 2)).shape == (2, 3, 16, 16)


def test_a_transformer_may_do_without_a_sequence(tokenizer):
    model = decoder_of(tokenizer, config(condition={"channels": 3, "sequence": []}))
    one, other = (predictions(model, conditioning_of(tokenizer, 2, seed)) for seed in (3, 4))
    assert (one - other).abs().max() > 1e-3


def test_hide_shows_whole_cells_of_a_share_of_pictures():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(400, 3, 8, 8) + 0.1
    shown, seen = hide(pictures, generator, 0.25, grid=4)
    assert torch.equal(shown, pictures * seen)
    cells = seen.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)  # (B, 1, 4, 4, 4)
    assert torch.equal(cells.amin(-1), cells.amax(-1)), "a cell is seen as a whole or not at all"
    some = seen.flatten(1).any(1).float().mean()
    assert 0.15 < some < 0.3
    assert not hide(pictures, generator, 0.0, grid=4)[1].any()
