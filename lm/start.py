"""What training starts from: a pretrained model, or random weights and a text tokenizer of the data's own."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pictish.data.mixture import Mixture, Source
from pictish.io.files import matching, one_line
from pictish.io.model_folder import whole_folder
from pictish.lm.adapted import adapt
from pictish.lm.alignment import Alignment
from pictish.lm.config import Autoregressive, Masked, NewModel, PretrainedModel, TrainConfig
from pictish.lm.dialogue import add_turns
from pictish.lm.documents import texts
from pictish.lm.dropout import add_hidden_dropout, set_attention_dropout
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.pretrained import width_of
from pictish.lm.text import train_text_tokenizer

TEXTS = 200_000  # samples of a source that the text tokenizer is trained on, at most


def starting_model(
    config: TrainConfig, image_tokens: ImageTokens | None, run: Path, code_vectors: Tensor | None = None
) -> UnifiedModel:
    """The model before its first step; a text tokenizer is trained once and kept in `run/text_tokenizer`.

    With its dropout and heads of alignment, which are for training alone; those need `code_vectors` (C, W),
    by which the rows of codes are drawn, too (`widen`).
    """
    base = config.model.base
    text_tokenizer = None
    if isinstance(base, NewModel):
        folder = run / "text_tokenizer"
        if not folder.is_dir():
            trained = train_text_tokenizer(_texts(config, run), base.vocab_size)
            if base.chat:
                add_turns(trained)
            with whole_folder(folder, False, lambda name: False) as temp:
                trained.save_pretrained(temp)
        text_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    features, seed = config.model.features, config.seed
    masked = config.objective.form if isinstance(config.objective, Masked) else None
    model = new_model(
        base,
        text_tokenizer,
        image_tokens,
        features=features,
        seed=seed,
        masked=masked,
        vision=config.model.vision,
        code_vectors=code_vectors,
        cell_positions=config.model.cell_positions,
    )
    language = model.language
    if config.model.attn_implementation is not None:
        try:
            language.set_attn_implementation(config.model.attn_implementation)
        except ValueError as error:
            raise ValueError(f"model.attn_implementation: {one_line(error)}") from None
    if config.adaptor is not None:
        assert isinstance(base, PretrainedModel)  # the config has seen to it
        model = adapt(model, config.adaptor, base.folder)
        language = model.language
    if config.attention_dropout:
        set_attention_dropout(language, config.attention_dropout)
    if config.hidden_dropout:
        add_hidden_dropout(language, config.hidden_dropout)
        model.embedding_dropout = config.hidden_dropout
    if isinstance(config.objective, Autoregressive) and config.objective.alignment:
        assert code_vectors is not None, "alignment is to code vectors"
        layers = language.config.get_text_config().num_hidden_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.alignment = Alignment(width_of(language), layers, code_vectors, model.vocabulary)
    return model


def _texts(config: TrainConfig, run: Path) -> list[str]:
    """Texts of the training sources, each once; samples are read whole, but no image is decoded."""
    found: set[str] = set()
    for name, source in config.data.train.items():
        read = Source(name, tuple(matching(source.paths)), caption_key=source.caption_key)
        mixture = Mixture([read], config.seed, cache=run / "cache")
        for _, drawn in zip(range(min(TEXTS, sum(mixture.sizes.values()))), mixture, strict=False):
            found.update(texts(drawn.sample))
    return sorted(found)
