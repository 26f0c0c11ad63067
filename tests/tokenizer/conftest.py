"""A tiny tokenizer with random weights, and pictures of the right size."""

import pytest
import torch

from pictish.configs import load, parse
from pictish.tokenizer.config import TokenizerConfig
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.network import DynamicTokenizer


def tiny_config(**changes) -> TokenizerConfig:
    raw = load("tiny/tokenizer")["model"]
    return parse(TokenizerConfig, {**raw, **changes}, "test")


def tiny_network(seed: int = 0, spread: float = 400, **changes) -> DynamicTokenizer:
    torch.manual_seed(seed)
    network = DynamicTokenizer(tiny_config(**changes))
    pictures = random_pixels(16, network.config.encoder.image_size)
    raw = network.encoder.raw(pictures)
    network.encoder.fit(raw.mean((0, 1)), raw.std((0, 1)))
    # the untrained selector is nearly constant: `spread` puts its scores on both sides of the threshold
    with torch.no_grad():
        network.selector.score[-1].weight.mul_(spread)
        network.selector.score[-1].bias.zero_()
        logits = network.selector(network.embed(network.encoder.standardise(raw)))
        network.selector.score[-1].bias.sub_(logits.median())
    network.quantizer.start(torch.randn(256, network.quantizer.dim))
    return network


def random_pixels(count: int, side: int, seed: int = 1) -> torch.Tensor:
    """Noise of three grains, so that pictures and cells differ: uint8 (count, side, side, 3)."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.rand(count, 3, side // grain, side // grain, generator=generator).repeat_interleave(grain, 2)
        for grain in (1, 4, 8)
    ]
    mixed = sum(layer.repeat_interleave(grain, 3) for layer, grain in zip(layers, (1, 4, 8), strict=True)) / 3
    return (mixed * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="session")
def network() -> DynamicTokenizer:
    return tiny_network().eval()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_network(), "0123456789ab")


@pytest.fixture(scope="session")
def pixels(tokenizer) -> torch.Tensor:
    return random_pixels(11, tokenizer.image_size)
