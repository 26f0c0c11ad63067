"""A model before training: random weights, or a pretrained one with rows for images, a vision tower, LoRA."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from pictish.io.files import one_line
from pictish.io.model_folder import locate_model, read_config
from pictish.lm.config import MaskedForm, NewModel, PretrainedModel
from pictish.lm.model import ImageTokens, Projector, UnifiedModel, codes_in_words
from pictish.lm.pretrained import read_pretrained, width_of
from pictish.lm.vision.config import VisionConfig
from pictish.lm.vision.model import Vision
from pictish.lm.vocabulary import add_drop, widen


def new_model(
    base: NewModel | PretrainedModel,
    text_tokenizer: PreTrainedTokenizerFast | None,
    image_tokens: ImageTokens | None,
    *,
    features: bool,
    seed: int,
    masked: MaskedForm | None = None,
    vision: VisionConfig | None = None,
    code_vectors: Tensor | None = None,
    cell_positions: bool | None = None,
) -> UnifiedModel:
    """A model to be trained: random, or a pretrained one with new rows for images.

    `text_tokenizer` is for a random one; a pretrained one brings its own; `code_vectors` as for `widen`. A
    model folder of ours is taken as it is, with its projector and vision tower; one that was autoregressive
    can become `masked`. With `cell_positions` None positions are counted as that one counts them, else by
    cells where there are any. Raises ValueError for an unknown architecture, settings that it does not know,
    a folder that holds no causal language model, and a model of ours for another image tokenizer.
    """
    projector, defaults, sight, mask = None, None, None, None
    own_positions = image_tokens is not None and image_tokens.cells is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = _ours(base.folder, image_tokens) if isinstance(base, PretrainedModel) else None
        if ours is not None:
            assert isinstance(base, PretrainedModel)
            language, text_tokenizer = ours.language, ours.text_tokenizer
            projector, defaults, sight = ours.projector, ours.defaults, ours.vision
            mask, own_positions = ours.vocabulary.text_mask, ours.vocabulary.cell_positions
            if vision is not None and sight is not None:
                raise ValueError(f"{base.folder}: sees through a tower already; model.vision: null would fit")
            if masked is None and ours.masked is not None:
                raise ValueError(f"{base.folder}: holds a masked model; only objective.kind masked trains it")
            if masked is not None and image_tokens is None and ours.vocabulary.mask is None:
                raise ValueError(f"{base.folder}: a model without a mask, and objective.kind is masked")
            if masked is not None and image_tokens is not None and not ours.vocabulary.has_drop:
                add_drop(language, text_tokenizer, generator=generator)
        elif isinstance(base, PretrainedModel):
            language, text_tokenizer = read_pretrained(Path(base.folder).expanduser(), torch.float32)
        else:
            assert text_tokenizer is not None
            language = _random_model(base, len(text_tokenizer), text_tokenizer.eos_token_id)
        if text_tokenizer.eos_token_id is None:
            raise ValueError("the text tokenizer has no end-of-text token; one is needed to end documents")
        if ours is None and image_tokens is None:
            widen(language, text_tokenizer, 0, masked is not None, generator=generator)
        elif ours is None:
            assert image_tokens is not None
            widen(
                language,
                text_tokenizer,
                image_tokens.codes,
                cells=image_tokens.cells,
                dense=masked is not None,
                code_vectors=code_vectors,
                generator=generator,
            )
        if vision is not None:
            sight = Vision(vision, width_of(language))
        if features and projector is None:
            assert image_tokens is not None
            projector = Projector(image_tokens.features, width_of(language))
        if isinstance(base, PretrainedModel) and base.lora is not None:
            language = _with_lora(language, base.lora)
    return UnifiedModel(
        language,
        text_tokenizer,
        image_tokens,
        projector,
        defaults,
        masked,
        vision=sight,
        mask=mask,
        cell_positions=own_positions if cell_positions is None else cell_positions,
    )


def _ours(folder: str, image_tokens: ImageTokens | None) -> UnifiedModel | None:
    """The model in a folder of our own; None when it is no such folder, ValueError for other image tokens."""
    try:
        path = locate_model(folder, "lm")
    except ValueError:
        return None
    if read_config(path).get("part") != "lm":
        return None
    model = UnifiedModel.from_folder(path)
    found = model.image_tokens
    if found is None and image_tokens is None:
        return model
    if found is None or image_tokens is None:
        if found is None:
            raise ValueError(f"{folder}: reads and writes no codes; tokenizer: null would fit")
        raise ValueError(
            f"{folder}: reads and writes codes; tokenizer: that of {found.fingerprint} would fit"
        )
    wanted = image_tokens.fingerprint, image_tokens.codes, image_tokens.cells
    if (found.fingerprint, found.codes, found.cells) != wanted:
        raise ValueError(
            f"{folder}: reads and writes the {codes_in_words(found.codes, found.cells)} of tokenizer "
            f"{found.fingerprint}, not the {codes_in_words(*wanted[1:])} of {image_tokens.fingerprint}"
        )
    return model


def _random_model(base: NewModel, text: int, eos: int) -> PreTrainedModel:
    try:
        config = AutoConfig.for_model(base.architecture)
        strange = sorted(name for name in base.settings if not hasattr(config, name))
        if strange:
            raise ValueError(f"{base.architecture} has no setting {strange[0]!r}")
        ends = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": None}
        config = AutoConfig.for_model(base.architecture, vocab_size=text, **ends, **base.settings)
        return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers has many ways to refuse settings, among them a division by zero
        raise ValueError(f"model.base: {one_line(error)}") from None


def _with_lora(language: PreTrainedModel, rank: int) -> Any:
    """Adapters beside all linear layers but the head; the images' rows are trained by `new rows`."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("lora needs peft, which is not installed: pip install 'pictish[lora]'") from None
    return get_peft_model(language, LoraConfig(r=rank, target_modules="all-linear"))
