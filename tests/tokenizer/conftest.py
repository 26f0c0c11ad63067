"""A tiny tokenizer with random weights, and images of the right size."""

import pytest
import torch

from pictish.configs import load, parse
from pictish.tokenizer.config import TokenizerConfig
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.network import DynamicTokenizer
from pictish.tokenizer.selector import ErrorSelector

ORDERED = {
    "encoder": {
        "model": "test_efficientnet",
        "weights": {"kind": "random", "seed": 0},
        "image_size": 32,
        "grid": 4,
        "levels": [2, 3],
        "level_weights": [0.5, 0.5],
        "pixels": 4,
        "micro_batch": 4,
    },
    "selector": {"kind": "score"},
    "reconstructor": {"kind": "sequence", "layers": 1},
}
"""What makes the tiny tokenizer one whose codes are decoded in their order, as those of LaVIT are."""


def tiny_config(**changes) -> TokenizerConfig:
    raw = load("tiny/tokenizer")["model"]
    return parse(TokenizerConfig, {**raw, **changes}, "test")


def tiny_network(seed: int = 0, spread: bool = True, **changes) -> DynamicTokenizer:
    """Random weights; without `spread` the untrained selector keeps its own, whose scores hardly differ."""
    torch.manual_seed(seed)
    network = DynamicTokenizer(tiny_config(**changes))
    pictures = random_pixels(16, network.config.encoder.image_size)
    if isinstance(network.encoder, Encoder):
        network.encoder.fit_to(pictures)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "second.weight" in name:  # of residual blocks: it starts at zero
                parameter.normal_(std=0.05)
        if spread:
            spread_scores(network, pictures)
    network.quantizer.start(torch.randn(256, network.quantizer.dim))
    return network


def spread_scores(network: DynamicTokenizer, pictures: torch.Tensor) -> None:
    """Put the scores of an untrained selector on both sides of the threshold, half of them kept."""
    last = network.selector.score[-1]
    outputs = network.selector.outputs(network.embed(pictures))
    last.weight.mul_(1.5 / outputs.std(dim=(0, 1))[:, None])
    last.bias.zero_()
    last.bias.sub_(network.selector.outputs(network.embed(pictures)).mean(dim=(0, 1)))
    if isinstance(network.selector, ErrorSelector):
        last.weight[1].zero_()  # a kept patch has no error to speak of
        last.bias[1] = -6.0
    network.selector.logit_bias.sub_(network.selector(network.embed(pictures)).median())


def random_pixels(count: int, side: int, seed: int = 1) -> torch.Tensor:
    """Noise of three grains, so that images and cells differ: uint8 (count, side, side, 3)."""
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


@pytest.fixture(scope="session")
def ordered() -> Tokenizer:
    """A tokenizer whose codes are decoded in their order."""
    return Tokenizer(tiny_network(**ORDERED), "ba9876543210")
