"""What training starts from: a pretrained model, or random weights and a text tokenizer of the data's own."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pictish.data.files import matching
from pictish.data.mixture import Mixture, Source
from pictish.data.model_folder import whole_folder
from pictish.lm.config import NewModel, TrainConfig
from pictish.lm.documents import texts
from pictish.lm.model import ImageTokens, UnifiedModel, new_model
from pictish.lm.text import train_text_tokenizer

TEXTS = 200_000  # samples of a source that the text tokenizer is trained on, at most


def starting_model(config: TrainConfig, image_tokens: ImageTokens, run: Path) -> UnifiedModel:
    """The model before its first step; a text tokenizer is trained once and kept in `run/text_tokenizer`."""
    base = config.model.base
    text_tokenizer = None
    if isinstance(base, NewModel):
        folder = run / "text_tokenizer"
        if not folder.is_dir():
            trained = train_text_tokenizer(_texts(config, run), base.pieces)
            with whole_folder(folder, False, lambda name: False) as temp:
                trained.save_pretrained(temp)
        text_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return new_model(base, text_tokenizer, image_tokens, features=config.model.features, seed=config.seed)


def _texts(config: TrainConfig, run: Path) -> list[str]:
    """Texts of the training sources, each once; samples are read whole, but no picture is decoded."""
    found: set[str] = set()
    for name, source in config.data.train.items():
        mixture = Mixture([Source(name, tuple(matching(source.paths)))], config.seed, cache=run / "cache")
        for _, drawn in zip(range(min(TEXTS, sum(mixture.sizes.values()))), mixture, strict=False):
            found.update(texts(drawn.sample))
    return sorted(found)
