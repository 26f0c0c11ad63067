"""A tiny tokenizer in a folder, and tokens of drawn images."""

from pathlib import Path

import pytest

from pictish.data.tokens import TokenizedImage
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from tests.shards import drawn_picture
from tests.tokenizer.conftest import ORDERED, tiny_network


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(folder / "tokenizer", tiny_network())
    return folder


@pytest.fixture(scope="package")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="package")
def tokens(tokenizer) -> list[TokenizedImage]:
    return tokenizer.tokenize([drawn_picture(seed).convert("RGB") for seed in range(7)])


@pytest.fixture(scope="package")
def ordered() -> Tokenizer:
    """A tokenizer whose codes are decoded in their order."""
    return Tokenizer(tiny_network(**ORDERED), "ba9876543210")
