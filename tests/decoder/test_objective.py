"""The perceptual loss: images are compared as a frozen network sees them."""

import pytest
import torch

from pictish.configs import parse
from pictish.decoder.config import ObjectiveConfig, TrainConfig
from pictish.decoder.objective import Batch, diffusion_losses
from tests.decoder.tiny import TEACHER, conditioning_of, config, decoder_of, save_autoencoder, teacher


def batch_of(tokenizer) -> Batch:
    """What codes tell of other images."""
    conditioning = conditioning_of(tokenizer, 4)
    return Batch(*conditioning[:3], conditioning_of(tokenizer, 4, seed=5).pixels, conditioning.pixels)


def losses_of(network, batch, perceptual: float, model=None) -> dict[str, torch.Tensor]:
    objective, generator = ObjectiveConfig(perceptual=perceptual), torch.Generator().manual_seed(0)
    return diffusion_losses(model or network, network, teacher(), batch, objective, generator)


@pytest.mark.parametrize("residual", [None, 0.3])
def test_it_is_nothing_for_equal_pictures(tokenizer, residual):
    network, batch = decoder_of(tokenizer, config(residual=residual)), batch_of(tokenizer)

    def knowing(noisy, times, conditioning, drop, prior, source) -> torch.Tensor:
        return network.encode(batch.target, prior)

    assert losses_of(network, batch, 1.0, knowing)["perceptual"] < 1e-5
    assert losses_of(network, batch, 1.0)["perceptual"] > 0.01


def test_it_adds_to_the_loss_by_its_weight(tokenizer):
    network, batch = decoder_of(tokenizer), batch_of(tokenizer)
    plain, heavy = (losses_of(network, batch, weight) for weight in (0.0, 3.0))
    assert "perceptual" not in plain
    assert torch.allclose(heavy["loss"], plain["loss"] + 3 * heavy["perceptual"])


@pytest.mark.parametrize("kind", ["pixels", "residual", "kl", "tiny"])
def test_it_teaches_the_denoiser_and_nothing_frozen(tokenizer, tmp_path, kind):
    match kind:
        case "pixels":
            settings = config()
        case "residual":
            settings = config(residual=0.3)
        case _:
            folder = str(save_autoencoder(tmp_path, kind))
            settings = config(
                {"kind": "transformer", "settings": {**config().denoiser.settings, "patch_size": 2}},
                autoencoder={"kind": kind, "folder": folder},
            )
    network = decoder_of(tokenizer, settings)
    losses_of(network, batch_of(tokenizer), 1.0)["perceptual"].backward()
    learnt = [p.grad is not None and bool(p.grad.any()) for p in network.denoiser.parameters()]
    assert sum(learnt) > 0.9 * len(learnt)
    assert not network.latents or all(p.grad is None for p in network.latents.parameters())


def test_a_perceptual_loss_needs_a_teacher():
    raw = {
        "model": config().model_dump(mode="json"),
        "data": {"train": ["a.tar"], "validation": ["b.tar"]},
        "steps": 1,
        "warmup": 0,
    }
    parse(TrainConfig, raw, "test")
    asked = raw | {"objective": {"perceptual": 0.5}}
    parse(TrainConfig, asked | {"teacher": TEACHER}, "test")
    with pytest.raises(ValueError, match=r"objective\.perceptual: needs a `teacher`, and none is given"):
        parse(TrainConfig, asked, "test")
