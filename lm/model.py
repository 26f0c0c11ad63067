"""The unified model: a transformers causal LM whose vocabulary holds picture codes, and a projector.

On disk it is a plain Hugging Face folder, which `AutoModelForCausalLM` and `AutoTokenizer` load, beside
`config.yaml` and, for pictures as continuous features, `projector.safetensors`.

Legend: B rows, L tokens, D width of the language model, M embedded features, F feature channels.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from pictish.configs import to_yaml
from pictish.data.files import one_line
from pictish.data.model_folder import CONFIG, locate_model, read_config, whole_folder
from pictish.lm.config import NewModel, PretrainedModel
from pictish.lm.packing import Packed, attention_mask
from pictish.lm.vocabulary import Vocabulary, vocabulary_of, widen

PROJECTOR = "projector.safetensors"
TEXT_FILES = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template")


@dataclass(frozen=True)
class ImageTokens:
    """The image tokenizer whose codes a language model reads and writes."""

    fingerprint: str  # 12 hex digits
    codes: int
    most: int  # tokens of one picture
    features: int  # channels of the merger's rows


class Projector(nn.Module):
    """Rows of the tokenizer's merger to embeddings."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """(..., F) to (..., D)."""
        return self.body(rows)


class UnifiedModel(nn.Module):
    """Language model, text tokenizer, vocabulary and projector as one."""

    def __init__(
        self,
        language: PreTrainedModel,
        text_tokenizer: PreTrainedTokenizerFast,
        image_tokens: ImageTokens,
        projector: Projector | None,
    ):
        super().__init__()
        self.language = language
        self.text_tokenizer = text_tokenizer
        self.vocabulary: Vocabulary = vocabulary_of(text_tokenizer)
        self.image_tokens = image_tokens
        self.projector = projector

    @property
    def eos(self) -> int:
        """The id that ends a document."""
        assert self.vocabulary.eos is not None
        return self.vocabulary.eos

    @property
    def context(self) -> int | None:
        """How many tokens the language model was made for, if it says so."""
        return getattr(self.language.config, "max_position_embeddings", None)

    def embed(self, ids: Tensor, features: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) of ids (B, L), with projected `features` (M, F) at `places` (2, M)."""
        embedded = self.language.get_input_embeddings()(ids)
        if features is None:
            if self.projector is not None and self.training:  # every process must give it a gradient
                embedded = embedded + 0 * sum(p.sum() for p in self.projector.parameters())
            return embedded
        if self.projector is None:
            raise ValueError("continuous features were given to a model without a projector (features: true)")
        assert places is not None
        projected = self.projector(features).to(embedded.dtype)
        return embedded.index_put((places[0], places[1]), projected)

    def forward(self, packed: Packed, causal: bool = True) -> Tensor:
        """Logits (B, L, V) of packed rows; no document sees another, nor what comes later when `causal`."""
        embedded = self.embed(packed.ids, packed.features, packed.places)
        # Only sdpa reads a bool mask as one; eager attention would add it to the scores, as 0 and 1.
        sdpa = self.language.config._attn_implementation == "sdpa"
        return self.language(
            inputs_embeds=embedded,
            attention_mask=attention_mask(packed.documents, torch.bool if sdpa else embedded.dtype, causal),
            position_ids=packed.positions,
            use_cache=False,
        ).logits

    @classmethod
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "UnifiedModel":
        """Load a model folder, or the shipped `"starter"`; ValueError when it holds something else."""
        from safetensors.torch import load_file

        path = locate_model(folder, "lm")
        config = read_config(path)
        if config.get("part") != "lm":
            raise ValueError(
                f"{folder}: a language model was asked for, this folder holds part {config.get('part')!r}"
            )
        image_tokens = ImageTokens(**config["image_tokens"])
        language, text_tokenizer = read_pretrained(path, dtype)
        projector = None
        if config["projector"]:
            projector = Projector(image_tokens.features, width_of(language))
            projector.load_state_dict(load_file(path / PROJECTOR))
        return cls(language, text_tokenizer, image_tokens, projector).to(device=device).eval()

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float16, overwrite: bool = False) -> None:
        """Write a model folder as a whole, weights as `dtype`; LoRA adapters become part of them."""
        from safetensors.torch import save_file

        config = {
            "part": "lm",
            "format": 1,
            "image_tokens": vars(self.image_tokens),
            "projector": self.projector is not None,
        }
        with whole_folder(folder, overwrite, _belongs) as temp:
            plain: Any = copy.deepcopy(self.language)
            plain = plain.to("cpu")
            if hasattr(plain, "merge_and_unload"):  # of peft's LoRA
                plain = plain.merge_and_unload()
            with _without_bars():
                plain.to(dtype).save_pretrained(temp, max_shard_size="1TB")
            self.text_tokenizer.save_pretrained(temp)
            (temp / CONFIG).write_text(to_yaml(config), encoding="utf-8")
            if self.projector is not None:
                weights = {n: t.detach().cpu().contiguous() for n, t in self.projector.state_dict().items()}
                save_file(weights, temp / PROJECTOR)


def width_of(language: PreTrainedModel) -> int:
    """The width of its embeddings."""
    weight = language.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def new_model(
    base: NewModel | PretrainedModel,
    text_tokenizer: PreTrainedTokenizerFast | None,
    image_tokens: ImageTokens,
    *,
    features: bool,
    seed: int,
) -> UnifiedModel:
    """A model to be trained: random, or a pretrained one with new rows for pictures.

    `text_tokenizer` is for a random one; a pretrained one brings its own. Raises ValueError for an unknown
    architecture, settings that it does not know, or a folder that holds no causal language model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(base, PretrainedModel):
            language, text_tokenizer = read_pretrained(Path(base.folder), torch.float32)
        else:
            assert text_tokenizer is not None
            language = _random_model(base, len(text_tokenizer), text_tokenizer.eos_token_id)
        if text_tokenizer.eos_token_id is None:
            raise ValueError("the text tokenizer has no end-of-text token; one is needed to end documents")
        widen(language, text_tokenizer, image_tokens.codes, generator=generator)
        projector = Projector(image_tokens.features, width_of(language)) if features else None
        if isinstance(base, PretrainedModel) and base.lora is not None:
            language = _with_lora(language, base.lora)
    return UnifiedModel(language, text_tokenizer, image_tokens, projector)


def read_pretrained(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal language model and its text tokenizer from a local folder: safetensors only, no remote code.

    Raises ValueError for anything else.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no folder of a transformers model, it has no config.json")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    language: Any
    text_tokenizer: Any
    try:
        with _without_bars():
            language = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safe)
        text_tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: cannot be loaded as a causal language model ({one_line(error)})"
        ) from error
    return language, text_tokenizer


def _with_lora(language: PreTrainedModel, rank: int) -> Any:
    """Adapters beside all linear layers but the head; the pictures' rows are trained by `new rows`."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("lora needs peft, which is not installed: pip install 'pictish[lora]'") from None
    return get_peft_model(language, LoraConfig(r=rank, target_modules="all-linear"))


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


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws progress bars of its own, across ours."""
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def _belongs(name: str) -> bool:
    """Whether a file is part of a saved language model."""
    ours = {CONFIG, PROJECTOR, "config.json", "generation_config.json", "model.safetensors"}
    return name in ours or name.startswith(TEXT_FILES)
