"""Rules for every test: no network, and a `gpu` test is skipped where there is no CUDA device."""

import os
import socket
from pathlib import Path

import pytest

# Before torch is imported: waiting threads are ten times slower beside another program.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """A test that wants the network fails; loopback and unix sockets are allowed."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address):
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", local_only)
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A model folder with tokenizer/ and decoder/: real ones of tiny width, random weights, 64 codes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_models(folder, seed=0)
    return folder


def save_tiny_models(folder: Path, seed: int) -> None:
    """Write folder/tokenizer and folder/decoder; another seed makes another tokenizer."""
    import torch

    from pictish.configs import parse
    from pictish.decoder.config import PreviewConfig
    from pictish.decoder.preview import build_preview, save_preview
    from pictish.tokenizer.config import TokenizerConfig
    from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
    from pictish.tokenizer.network import DynamicTokenizer

    config = {
        "encoder": {
            "weights": {"kind": "random", "seed": 0},
            "image_size": 64,
            "levels": [2],
            "level_weights": [0.5],
            "micro_batch": 4,
        },
        "width": 32,
        "heads": 2,
        "merger": {"layers": 1},
        "quantizer": {"kind": "cosine", "codes": 64, "dim": 8},
        "reconstructor": {"layers": 1},
    }
    torch.manual_seed(seed)
    network = DynamicTokenizer(parse(TokenizerConfig, config, "tiny"))
    pixels = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8)
    raw = network.encoder.raw(pixels)
    network.encoder.fit(raw.mean((0, 1)), raw.std((0, 1)))
    with torch.no_grad():  # an untrained selector is nearly constant: spread its scores around the threshold
        network.selector.score[-1].weight.mul_(400)
        logits = network.selector(network.embed(network.encoder.standardise(raw)))
        network.selector.score[-1].bias.sub_(logits.median())
    network(raw, torch.Generator().manual_seed(seed), quantize=True)  # the codebook starts from data
    save_tokenizer(folder / "tokenizer", network)
    tokenizer = Tokenizer.from_folder(folder)
    settings = PreviewConfig(width=16, blocks=1, smallest=8)
    head = build_preview(settings, tokenizer)
    torch.nn.init.normal_(head.leave[0].weight, std=0.05)
    save_preview(folder / "decoder", head, settings, tokenizer.fingerprint)
