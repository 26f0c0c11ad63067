"""Folders of transformers as we read and write them: safetensors only, no code of others, and its quirks."""

import contextlib
import copy
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from pictish.io.budget import sized_like
from pictish.io.files import one_line
from pictish.io.model_folder import refuse_foreign_code, storage_dtype

_LOG = logging.getLogger(__name__)


def read_pretrained(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal language model and its text tokenizer from a local folder: safetensors only, no remote code.

    Raises ValueError for anything else, and for weights that are missing, too many, misshapen or no numbers.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no folder of a transformers model, it has no config.json")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    lenient: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded: Any
    text_tokenizer: Any
    try:
        refuse_foreign_code(folder)
        with quietly(), sized_like(folder, str(folder)):
            loaded = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, **safe, **lenient
            )
        text_tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except Exception as error:  # transformers and tokenizers raise many kinds for a folder that is not whole
        raise ValueError(
            f"{folder}: cannot be loaded as a causal language model ({one_line(error)})"
        ) from error
    language, report = loaded
    wrong = {kind: report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):  # transformers fills gaps with random numbers
        counts = ", ".join(f"{len(keys)} {kind} {sorted(map(str, keys))[:2]}" for kind, keys in wrong.items())
        raise ValueError(f"{folder}: weights do not fit config.json: {counts}")
    check_finite(language.named_parameters(), folder)
    _settle_tying(language)
    return language, text_tokenizer


def width_of(language: PreTrainedModel) -> int:
    """The width of its embeddings."""
    weight = language.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers draws progress bars across ours, and prints tables of what our errors say in a line."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def type_to_store(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, folder: Path) -> torch.dtype:
    """`dtype`, or float32 with a warning where one of the named weights lies beyond its range.

    ValueError for weights that are no finite numbers.
    """
    tensors = dict(weights)
    check_finite(tensors.items(), folder)
    stored = storage_dtype(tensors.values(), dtype)
    if stored != dtype:
        _LOG.warning("%s: weights lie beyond the range of %s; stored as %s", folder, dtype, stored)
    return stored


def save_text_tokenizer(text_tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a text tokenizer into a folder, without where its files lay when it was read."""
    text_tokenizer.save_pretrained(folder)
    _forget_paths(folder / "tokenizer_config.json")


def check_finite(weights: Iterable[tuple[str, Tensor]], source: Path) -> None:
    for name, parameter in weights:
        if not parameter.isfinite().all():
            raise ValueError(
                f"{source}: {name} holds values that are no finite numbers; did training diverge?"
            )


def _settle_tying(language: PreTrainedModel) -> None:
    """Have the config say of the head what the weights do.

    transformers reads a separate head beside a config that says tied, and would tie the two when it widens.
    """
    head, embedding = language.get_output_embeddings(), language.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is embedding.get_parameter("weight"):
        return
    for config in (language.config, language.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _forget_paths(file: Path) -> None:
    """Leave out of a tokenizer's settings where its files lay when it was read; they lie beside it now."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if not _is_place(name)}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_place(name: str) -> bool:
    return name.endswith(("_file", "name_or_path")) or name in ("is_local", "local_files_only")


def on_the_cpu(language: PreTrainedModel) -> Any:
    """A copy of the model in the CPU's memory, made without a second one where the model is."""
    ready: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=False)
        for p in language.parameters()
    }
    ready |= {id(b): b.detach().to("cpu", copy=True) for b in language.buffers()}
    return copy.deepcopy(language, ready)
