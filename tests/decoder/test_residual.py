"""What is denoised: the image, or what it has beyond the pixels that its codes tell."""

import pytest
import torch

from pictish.decoder.diffusion import DiffusionDecoder
from pictish.decoder.pixel import sample
from pictish.tokenizer.dynamic import Tokenizer
from tests.decoder.tiny import conditioning_of, config, decoder_of, save_autoencoder
from tests.tokenizer.conftest import ORDERED, tiny_network

SHUFFLE = {"kind": "shuffle", "block": 2}


@pytest.fixture(params=[None, SHUFFLE], ids=["pixels", "shuffled"])
def autoencoder(request):
    return request.param


@pytest.mark.parametrize("residual", [None, 0.1, 1.0])
def test_a_picture_goes_there_and_back(tokenizer, autoencoder, residual):
    model = decoder_of(tokenizer, config(residual=residual, autoencoder=autoencoder))
    prior = model.prior(conditioning_of(tokenizer, 2))
    pictures = conditioning_of(tokenizer, 2, seed=5).pixels
    x = model.encode(pictures, prior)
    assert x.shape == (2, model.channels, model.sample_size, model.sample_size)
    assert torch.allclose(model.decode(x, prior), pictures, atol=1e-6)
    assert torch.allclose(model.within(x, prior), x, atol=1e-5)


def test_a_residual_is_in_units_of_its_deviation_from_what_codes_tell(tokenizer, autoencoder):
    model = decoder_of(tokenizer, config(residual=0.4, autoencoder=autoencoder))
    conditioning = conditioning_of(tokenizer, 2)
    prior = model.prior(conditioning)
    x = model.encode(conditioning.pixels + 0.1, prior)  # 0.2 from -1 to 1
    assert torch.allclose(x, torch.full_like(x, 0.5), atol=1e-6)
    assert torch.equal(model.encode(conditioning.pixels, prior), torch.zeros_like(x))


class Silent(torch.nn.Module):
    """Says that there is nothing beyond what the codes tell."""

    def forward(self, noisy, times, conditions, prior, source) -> torch.Tensor:
        return torch.zeros_like(noisy)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nothing_beyond_what_codes_tell_draws_what_they_tell(tokenizer, autoencoder, guidance):
    model = decoder_of(tokenizer, config(residual=0.3, autoencoder=autoencoder))
    model.denoiser = Silent()
    conditioning = conditioning_of(tokenizer, 2)
    noise = torch.randn(2, model.channels, model.sample_size, model.sample_size)
    drawing = {"steps": 4, "guidance": guidance, "scheduler": model.config.sampling.scheduler}
    with torch.inference_mode():
        drawn = sample(model, conditioning, noise, [torch.Generator(), torch.Generator()], **drawing)
    assert torch.allclose(drawn, conditioning.pixels, atol=1e-4)


@pytest.mark.parametrize("residual", [None, 0.3])
def test_what_is_said_stays_within_pictures(tokenizer, autoencoder, residual):
    model = decoder_of(tokenizer, config(residual=residual, autoencoder=autoencoder))
    prior = model.prior(conditioning_of(tokenizer, 2))
    x = 9 * torch.randn(2, model.channels, model.sample_size, model.sample_size)
    found, free = model.decode(model.within(x, prior), prior), model.decode(x, prior)
    assert torch.allclose(found, free.clamp(0, 1), atol=1e-6)
    assert (free != found).any()


def test_latents_have_no_bounds_and_no_residual(tokenizer, tmp_path):
    autoencoder = {"kind": "tiny", "folder": str(save_autoencoder(tmp_path, "tiny"))}
    model = decoder_of(tokenizer, config(autoencoder=autoencoder))
    x = 9 * torch.randn(1, 4, 8, 8)
    assert model.prior(conditioning_of(tokenizer, 1)) is None
    assert torch.equal(model.within(x, None), x)
    with pytest.raises(ValueError, match="residual: it is about the pixels"):
        DiffusionDecoder(config(autoencoder=autoencoder, residual=0.3), tokenizer)


def test_codes_that_tell_no_pixels_leave_no_residual():
    encoder = {**ORDERED["encoder"], "pixels": 0}
    tokenizer = Tokenizer(tiny_network(**{**ORDERED, "encoder": encoder}), "0" * 12)
    DiffusionDecoder(config(), tokenizer)
    with pytest.raises(ValueError, match="residual: it is about the pixels that a tokenizer reconstructs"):
        DiffusionDecoder(config(residual=0.3), tokenizer)
