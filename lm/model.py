"""The unified model: a transformers causal LM whose vocabulary holds picture codes, and a projector.

On disk it is a plain Hugging Face folder, which `AutoModelForCausalLM` and `AutoTokenizer` load, beside
`config.yaml` and, for pictures as continuous features, `projector.safetensors`.

Legend: B rows, L tokens, D width of the language model, M embedded features, F feature channels.
"""

import contextlib
import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from pictish.configs import Config, parse
from pictish.io.budget import sized_like
from pictish.io.files import one_line
from pictish.io.model_folder import (
    CONFIG,
    SHARDS,
    locate_model,
    read_config,
    refuse_foreign_code,
    storage_dtype,
    whole_folder,
)
from pictish.io.plain_yaml import to_yaml
from pictish.lm.alignment import Alignment
from pictish.lm.captions import CAPTIONS, to_bytes
from pictish.lm.config import DefaultsConfig, NewModel, PretrainedModel
from pictish.lm.packing import Packed, attention_mask, pack
from pictish.lm.sequence import Document
from pictish.lm.vocabulary import Vocabulary, vocabulary_of, widen
from pictish.training.isolation import loading

_LOG = logging.getLogger(__name__)
PROJECTOR = "projector.safetensors"
TEXT_FILES = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ImageTokens:
    """The image tokenizer whose codes a language model reads and writes."""

    fingerprint: str  # 12 hex digits
    codes: int
    max_tokens: int  # of one image
    features: int  # channels of the merger's rows
    cells: int | None = None  # of the grid, which codes are written with; None: in their order only

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, raw: Any) -> Any:
        """`max_tokens` was `most` in earlier model folders."""
        if isinstance(raw, Mapping) and "most" in raw and "max_tokens" not in raw:
            return {"max_tokens" if key == "most" else key: value for key, value in raw.items()}
        return raw


class FolderConfig(Config):
    """`config.yaml` of a language model's folder."""

    part: Literal["lm"] = "lm"
    format: Literal[1] = 1
    image_tokens: ImageTokens
    projector: bool | Literal["linear"]  # true: two layers
    defaults: DefaultsConfig = DefaultsConfig()


class Output(NamedTuple):
    """What a model says of packed rows."""

    logits: Tensor  # (B, L, V)
    alignment: Tensor | None = None  # (2,) of the heads of alignment.py, in training


class Projector(nn.Module):
    """Rows of the tokenizer's merger to embeddings."""

    def __init__(self, features: int, width: int, *, linear: bool = False):
        super().__init__()
        self.linear = linear  # LaVIT's
        if linear:
            self.body: nn.Module = nn.Linear(features, width)
        else:
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
        defaults: DefaultsConfig | None = None,
    ):
        super().__init__()
        self.language = language
        self.text_tokenizer = text_tokenizer
        self.vocabulary: Vocabulary = vocabulary_of(text_tokenizer)
        self.image_tokens = image_tokens
        self.projector = projector
        self.defaults = defaults or DefaultsConfig()
        self.alignment: Alignment | None = None  # for training alone: checkpoints have it, model folders not
        self.embedding_dropout = 0.0  # in training

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

    def forward(self, packed: Packed, causal: bool = True) -> Output:
        """Logits of packed rows; no document sees another, nor what comes later when `causal`."""
        embedded = self.embed(packed.ids, packed.features, packed.places)
        embedded = F.dropout(embedded, self.embedding_dropout, self.training)
        heads = self.alignment if self.training else None
        # Only sdpa reads a bool mask as one; eager attention would add it to the scores, as 0 and 1.
        sdpa = self.language.config._attn_implementation == "sdpa"
        output = self.language(
            inputs_embeds=embedded,
            attention_mask=attention_mask(packed.documents, torch.bool if sdpa else embedded.dtype, causal),
            position_ids=packed.positions,
            use_cache=False,
            output_hidden_states=heads is not None,
        )
        if heads is None:
            return Output(output.logits)
        return Output(output.logits, heads(embedded, output.hidden_states[heads.depth], packed))

    @classmethod
    @loading
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "UnifiedModel":
        """Load a model folder, or the shipped `"starter"`; ValueError when it holds something else."""
        path = locate_model(folder, "lm")
        config = _folder_config(path)
        language, text_tokenizer = read_pretrained(path, dtype)
        projector = None
        if config.projector:
            projector = _read_projector(path, config, width_of(language))
        model = cls(language, text_tokenizer, config.image_tokens, projector, config.defaults)
        expected = config.image_tokens.codes, config.image_tokens.cells
        if (found := (model.vocabulary.codes, model.vocabulary.cells)) != expected:
            raise ValueError(
                f"{path}: {CONFIG} speaks of {codes_in_words(*expected)}, "
                f"the text tokenizer has {codes_in_words(*found)}"
            )
        return model.to(device=device).eval()

    def save(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float16,
        overwrite: bool = False,
        captions: Sequence[str] = (),
    ) -> None:
        """Write a model folder as a whole, weights as `dtype`; LoRA adapters become part of them.

        Where a weight lies beyond the range of `dtype`, all are written in float32, and the log says so.
        `captions` are those of the training data, as `known_captions` gives them. ValueError for weights that
        are no finite numbers.
        """
        from safetensors.torch import save_file

        projector: bool | Literal["linear"] = self.projector is not None
        if self.projector is not None and self.projector.linear:
            projector = "linear"
        config = FolderConfig(image_tokens=self.image_tokens, projector=projector, defaults=self.defaults)
        with whole_folder(folder, overwrite, _belongs) as temp:
            plain = _on_the_cpu(self.language)
            if hasattr(plain, "merge_and_unload"):  # of peft's LoRA
                plain = plain.merge_and_unload()
            _check_finite(plain, folder)
            stored = storage_dtype(plain.parameters(), dtype)
            if stored != dtype:
                _LOG.warning("%s: weights lie beyond the range of %s; stored as %s", folder, dtype, stored)
            with _quietly():
                try:
                    plain.generation_config.save_pretrained(temp)
                except ValueError as error:  # transformers reads contradictions but refuses to write them
                    _LOG.warning("%s: settings of generate() are left out: %s", folder, one_line(error)[:200])
                    plain.generation_config = GenerationConfig.from_model_config(plain.config)
                plain.to(stored).save_pretrained(temp, max_shard_size="1TB")
            self.text_tokenizer.save_pretrained(temp)
            _forget_paths(temp / "tokenizer_config.json")
            (temp / CONFIG).write_text(to_yaml(config), encoding="utf-8")
            if captions:
                (temp / CAPTIONS).write_bytes(to_bytes(captions))
            if self.projector is not None:
                weights = {n: t.detach().cpu().contiguous() for n, t in self.projector.state_dict().items()}
                save_file(weights, temp / PROJECTOR)


@torch.no_grad()
def check_packing(model: UnifiedModel, length: int) -> None:
    """ValueError naming the architecture when rows of `length` packed documents would be learned wrongly.

    Two short documents in a row must get the logits that each gets alone, and an id must not change those
    before it. Linear attention carries what it saw into the next document; others refuse the mask.
    """
    config = model.language.config.get_text_config()
    name = config.model_type
    windows = (getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None))
    window = min((size for size in windows if size), default=length)
    if length > window and set(getattr(config, "layer_types", None) or ["?"]) != {"full_attention"}:
        raise ValueError(  # given a whole mask, transformers applies none of its own
            f"data.length {length} is more than {name}'s attention window of {window}, "
            f"which packed rows do not keep; {window} would fit"
        )
    training = model.training
    device = next(model.parameters()).device
    documents = [_made_up(model.vocabulary, start, size) for start, size in ((0, 7), (5, 6))]
    packed = pack([documents], 16).to(device)
    changed = pack([documents], 16).to(device)
    changed.ids[0, 12] = packed.ids[0, 0]
    model.eval()
    try:
        together, other = model(packed).logits[0, :13], model(changed).logits[0, :12]
        ids = [torch.from_numpy(document.ids)[None].to(device) for document in documents]
        embedded = [model.embed(row) for row in ids]
        alone = torch.cat([model.language(inputs_embeds=e, use_cache=False).logits[0] for e in embedded])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be trained on packed rows ({one_line(error)})") from error
    finally:
        model.train(training)
    most = 1e-4 * alone.abs().max()
    if not ((together - alone).abs().max() <= most and (together[:12] - other).abs().max() <= most):
        raise ValueError(
            f"{name} cannot be trained on packed rows: its documents would see each other, or what follows"
        )


def _made_up(vocabulary: Vocabulary, start: int, size: int) -> Document:
    ids = (start + np.arange(size) * 7) % vocabulary.size
    return Document("text", ids, np.ones(size, bool), np.zeros(0, np.int64), None)


def _on_the_cpu(language: PreTrainedModel) -> Any:
    """A copy of the model in the CPU's memory, made without a second one where the model is."""
    ready: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=False)
        for p in language.parameters()
    }
    ready |= {id(b): b.detach().to("cpu", copy=True) for b in language.buffers()}
    return copy.deepcopy(language, ready)


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
    code_vectors: Tensor | None = None,
) -> UnifiedModel:
    """A model to be trained: random, or a pretrained one with new rows for pictures.

    `text_tokenizer` is for a random one; a pretrained one brings its own; `code_vectors` as for `widen`. A
    model folder of ours is taken as it is, with its projector. Raises ValueError for an unknown architecture,
    settings that it does not know, a folder that holds no causal language model, and a model of ours for
    another image tokenizer.
    """
    projector, defaults = None, None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = _ours(base.folder, image_tokens) if isinstance(base, PretrainedModel) else None
        if ours is not None:
            language, text_tokenizer = ours.language, ours.text_tokenizer
            projector, defaults = ours.projector, ours.defaults
        elif isinstance(base, PretrainedModel):
            language, text_tokenizer = read_pretrained(Path(base.folder).expanduser(), torch.float32)
        else:
            assert text_tokenizer is not None
            language = _random_model(base, len(text_tokenizer), text_tokenizer.eos_token_id)
        if text_tokenizer.eos_token_id is None:
            raise ValueError("the text tokenizer has no end-of-text token; one is needed to end documents")
        if ours is None:
            widen(
                language,
                text_tokenizer,
                image_tokens.codes,
                cells=image_tokens.cells,
                code_vectors=code_vectors,
                generator=generator,
            )
        if features and projector is None:
            projector = Projector(image_tokens.features, width_of(language))
        if isinstance(base, PretrainedModel) and base.lora is not None:
            language = _with_lora(language, base.lora)
    return UnifiedModel(language, text_tokenizer, image_tokens, projector, defaults)


def _ours(folder: str, image_tokens: ImageTokens) -> UnifiedModel | None:
    """The model in a folder of our own; None when it is no such folder, ValueError for other image tokens."""
    try:
        path = locate_model(folder, "lm")
    except ValueError:
        return None
    if read_config(path).get("part") != "lm":
        return None
    model = UnifiedModel.from_folder(path)
    found = model.image_tokens
    wanted = image_tokens.fingerprint, image_tokens.codes, image_tokens.cells
    if (found.fingerprint, found.codes, found.cells) != wanted:
        raise ValueError(
            f"{folder}: reads and writes the {codes_in_words(found.codes, found.cells)} of tokenizer "
            f"{found.fingerprint}, not the {codes_in_words(*wanted[1:])} of {image_tokens.fingerprint}"
        )
    return model


def codes_in_words(codes: int, cells: int | None) -> str:
    """For messages: how many codes, and on how many cells if these are written."""
    return f"{codes} codes" if cells is None else f"{codes} codes on {cells} cells"


def _folder_config(path: Path) -> FolderConfig:
    raw = read_config(path)
    if raw.get("part") != "lm":
        raise ValueError(
            f"{path}: a language model was asked for, this folder holds part {raw.get('part')!r}"
        )
    if "stages" in raw:
        raise ValueError(f"{path}: the folder of a training run; when it is done, {path / 'model'} would fit")
    return parse(FolderConfig, raw, str(path / CONFIG))


def _read_projector(folder: Path, config: FolderConfig, width: int) -> Projector:
    from safetensors.torch import load_file

    with sized_like(folder, str(folder)):
        projector = Projector(config.image_tokens.features, width, linear=config.projector == "linear")
    try:
        projector.load_state_dict(load_file(folder / PROJECTOR))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder / PROJECTOR}: damaged, or not a projector's ({one_line(error)})"
        ) from error
    _check_finite(projector, folder / PROJECTOR)
    return projector


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
        with _quietly(), sized_like(folder, str(folder)):
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
    _check_finite(language, folder)
    _settle_tying(language)
    return language, text_tokenizer


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


def _check_finite(module: nn.Module, source: Path) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(
                f"{source}: {name} holds values that are no finite numbers; did training diverge?"
            )


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
def _quietly() -> Iterator[None]:
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


def _belongs(name: str) -> bool:
    """Whether a file is part of a saved language model."""
    ours = {CONFIG, PROJECTOR, CAPTIONS, SHARDS, "config.json", "generation_config.json", "model.safetensors"}
    return name in ours or name.startswith((*TEXT_FILES, "model-0"))
