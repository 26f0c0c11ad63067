"""Rules for every test: no network, and a `gpu` test is skipped where there is no CUDA device.

Slow tests run first, so that the short ones level out what each process of pytest-xdist has left.
"""

import os
import socket
from pathlib import Path

import pytest

# Before torch is imported: waiting threads are ten times slower beside another program.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
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


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory) -> Path:
    """A model folder with tokenizer/, lm/, decoder/ and preview/, of tiny width and random weights."""
    from tests.whole import save_whole_model

    folder = tmp_path_factory.mktemp("whole") / "model"
    save_whole_model(folder)
    return folder


@pytest.fixture(scope="session")
def masked_model(tmp_path_factory) -> Path:
    """A model folder with tokenizer/, a masked lm/ and decoder/, of tiny width and random weights."""
    from tests.whole import save_masked_model

    folder = tmp_path_factory.mktemp("masked") / "model"
    save_masked_model(folder)
    return folder


def save_tiny_models(folder: Path, seed: int) -> None:
    """Write folder/tokenizer and folder/decoder; another seed makes another tokenizer."""
    import torch

    from pictish.decoder.config import PreviewConfig
    from pictish.decoder.preview import build_preview, save_preview
    from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
    from tests.tokenizer.conftest import tiny_network

    encoder = {"kind": "conv", "image_size": 64, "grid": 8, "blocks": 1, "micro_batch": 4}
    reconstructor = {"kind": "grid", "patch": 8, "blocks": 2, "attention": 1}
    save_tokenizer(folder / "tokenizer", tiny_network(seed, encoder=encoder, reconstructor=reconstructor))
    tokenizer = Tokenizer.from_folder(folder)
    settings = PreviewConfig(width=16, blocks=1, smallest=8)
    head = build_preview(settings, tokenizer)
    torch.nn.init.normal_(head.leave[0].weight, std=0.05)
    save_preview(folder / "decoder", head, settings, tokenizer.fingerprint)
