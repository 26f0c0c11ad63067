"""A whole model of tiny width and random weights: everything that commands and the API can do."""

from pathlib import Path

import torch

from pictish.decoder.config import PreviewConfig
from pictish.decoder.diffusion import save_diffusion
from pictish.decoder.preview import build_preview, save_preview
from pictish.lm.adapted import adapt
from pictish.lm.config import AdaptorConfig, DefaultsConfig, FillingConfig, MaskedDefaults, MaskedForm
from pictish.lm.model import UnifiedModel
from pictish.lm.vocabulary import widen
from pictish.pipelines.lm_training import image_tokens_of
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from tests.decoder.tiny import config, decoder_of
from tests.lm.tiny import tiny_model, tiny_tokenizer
from tests.tokenizer.conftest import tiny_network


def speaking_model(tokenizer: Tokenizer, seed: int = 0) -> UnifiedModel:
    """A tiny Llama that writes the codes of `tokenizer`, and their cells where it places them."""
    text = tiny_tokenizer()
    language = tiny_model("llama", len(text), seed=seed, dtype=torch.float32)
    tokens = image_tokens_of(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    widen(language, text, tokenizer.codebook_size, cells=tokens.cells, generator=generator)
    return UnifiedModel(language, text, tokens, None, cell_positions=tokens.cells is not None)


def save_whole_model(folder: Path) -> None:
    """Tokenizer, language model and both decoders; the diffusion one may be shown parts of an image."""
    save_tokenizer(folder / "tokenizer", tiny_network())
    tokenizer = Tokenizer.from_folder(folder)
    speaking_model(tokenizer).save(folder / "lm", dtype=torch.float32)
    settings = config(condition={"channels": 2, "width": 16, "source": True})
    save_diffusion(folder / "decoder", decoder_of(tokenizer, settings), tokenizer.fingerprint)
    save_feed_forward(folder / "preview", tokenizer)


def save_masked_model(folder: Path) -> None:
    """Tokenizer, masked language model, and a feed-forward decoder."""
    save_tokenizer(folder / "tokenizer", tiny_network())
    tokenizer = Tokenizer.from_folder(folder)
    text = tiny_tokenizer()
    language = tiny_model("llama", len(text), dtype=torch.float32)
    language.config.max_position_embeddings = 512
    tokens = image_tokens_of(tokenizer)
    generator = torch.Generator().manual_seed(0)
    widen(language, text, tokenizer.codebook_size, cells=tokens.cells, dense=True, generator=generator)
    defaults = DefaultsConfig(masked=MaskedDefaults(pictures=FillingConfig(steps=3)))
    model = UnifiedModel(language, text, tokens, None, defaults, MaskedForm())
    model.save(folder / "lm", dtype=torch.float32)
    save_feed_forward(folder / "decoder", tokenizer)


def save_feed_forward(folder: Path, tokenizer: Tokenizer) -> None:
    """A feed-forward decoder whose images differ."""
    settings = PreviewConfig(width=16, blocks=1, smallest=8)
    head = build_preview(settings, tokenizer)
    torch.nn.init.normal_(head.leave[0].weight, std=0.05)
    save_preview(folder, head, settings, tokenizer.fingerprint)


def write_adaptor(model: Path, folder: Path, seed: int) -> Path:
    """An adaptor of the model's language model that has moved away from its start."""
    adapted = adapt(UnifiedModel.from_folder(model), AdaptorConfig(), model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.adaptor.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save(folder, dtype=torch.float32)
    return folder
