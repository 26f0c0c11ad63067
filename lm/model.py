"""The unified model: a transformers causal LM whose vocabulary holds picture codes, and a projector.

On disk it is a plain Hugging Face folder, which `AutoModelForCausalLM` and `AutoTokenizer` load, beside
`config.yaml` and, for pictures as continuous features, `projector.safetensors`; a vision tower, with the
projector behind it, lies in `vision.safetensors`.

Legend: B rows, L tokens, D width of the language model, M embedded features, F feature channels, T targets.
"""

import contextlib
import copy
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from pictish.lm.config import DefaultsConfig, MaskedForm, NewModel, PretrainedModel
from pictish.lm.packing import IGNORED, Packed, attention_mask, pack
from pictish.lm.sequence import Document
from pictish.lm.vision.config import VisionConfig
from pictish.lm.vision.model import Placed, Vision, places_of
from pictish.lm.vision.projectors import mlp
from pictish.lm.vocabulary import Vocabulary, add_drop, text_vocabulary, vocabulary_of, widen
from pictish.training.isolation import loading

_LOG = logging.getLogger(__name__)
PROJECTOR, VISION = "projector.safetensors", "vision.safetensors"
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
    image_tokens: ImageTokens | None  # none: it reads pictures through a vision tower alone
    projector: bool | Literal["linear", "mlp"]  # true: two layers behind a norm; mlp: without it
    vision: VisionConfig | None = None
    mask: int | None = None  # the text tokenizer's own id that stands for what is to be filled in
    masked: MaskedForm | None = None  # none: autoregressive
    defaults: DefaultsConfig = DefaultsConfig()


class Output(NamedTuple):
    """What a model says of packed rows."""

    logits: Tensor  # (B, L, V), or (T, V) of targets alone
    alignment: Tensor | None = None  # (2,) of the heads of alignment.py, in training


class Projector(nn.Module):
    """Rows of the tokenizer's merger, or of a vision tower, to embeddings."""

    def __init__(self, features: int, width: int, *, linear: bool = False, normed: bool = True):
        super().__init__()
        self.linear, self.normed = linear, normed
        if linear:  # LaVIT's
            self.body: nn.Module = nn.Linear(features, width)
        else:  # without the norm it is LLaVA's and IAA's
            norm = [nn.LayerNorm(features)] if normed else []
            self.body = nn.Sequential(*norm, *mlp(features, width))

    @property
    def kind(self) -> Literal[True, "linear", "mlp"]:
        """What a folder's settings call it."""
        return "linear" if self.linear else True if self.normed else "mlp"

    @classmethod
    def of_kind(cls, kind: Literal[True, "linear", "mlp"], features: int, width: int) -> "Projector":
        """With random weights."""
        return cls(features, width, linear=kind == "linear", normed=kind != "mlp")

    def forward(self, rows: Tensor) -> Tensor:
        """(..., F) to (..., D)."""
        return self.body(rows)


class UnifiedModel(nn.Module):
    """Language model, text tokenizer, vocabulary and projector as one."""

    def __init__(
        self,
        language: PreTrainedModel,
        text_tokenizer: PreTrainedTokenizerFast,
        image_tokens: ImageTokens | None,
        projector: Projector | None,
        defaults: DefaultsConfig | None = None,
        masked: MaskedForm | None = None,
        *,
        vision: Vision | None = None,
        mask: int | None = None,
    ):
        super().__init__()
        self.language = language
        self.text_tokenizer = text_tokenizer
        self.vocabulary: Vocabulary = (
            text_vocabulary(text_tokenizer, mask) if image_tokens is None else vocabulary_of(text_tokenizer)
        )
        self.image_tokens = image_tokens
        self.projector = projector
        self.vision = vision
        self.defaults = defaults or DefaultsConfig()
        self.masked = masked  # None: autoregressive
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

    def embed(
        self,
        ids: Tensor,
        features: Tensor | None = None,
        places: Tensor | None = None,
        pictures: Sequence[Placed] = (),
    ) -> Tensor:
        """Embeddings (B, L, D) of ids (B, L), with projected `features` (M, F) at `places` (2, M).

        Rows of `pictures`, which the vision tower looks at, stand where these are placed.
        """
        embedded = self.language.get_input_embeddings()(ids)
        if self.vision is not None:
            if (
                self.training
            ):  # every process must give each a gradient, also those that this step has no use for
                embedded = embedded + 0 * sum(p.sum() for p in self.vision.parameters() if p.requires_grad)
            if pictures:
                rows = self.vision(pictures).to(embedded.dtype)
                where = places_of(pictures).to(rows.device)
                embedded = embedded.index_put((where[0], where[1]), rows)
        elif pictures:
            raise ValueError("pictures were given to a language model without a vision tower (model.vision)")
        if features is None:
            if self.projector is not None and self.training:  # every process must give it a gradient
                embedded = embedded + 0 * sum(p.sum() for p in self.projector.parameters())
            return embedded
        if self.projector is None:
            raise ValueError("continuous features were given to a model without a projector (features: true)")
        assert places is not None
        projected = self.projector(features).to(embedded.dtype)
        return embedded.index_put((places[0], places[1]), projected)

    def forward(self, packed: Packed, at_targets: bool = False) -> Output:
        """Logits of packed rows, everywhere or `at_targets` alone; no document sees another."""
        embedded = self.embed(packed.ids, packed.features, packed.places, packed.pictures)
        embedded = F.dropout(embedded, self.embedding_dropout, self.training)
        heads = self.alignment if self.training else None
        # Only sdpa reads a bool mask as one; eager attention would add it to the scores, as 0 and 1.
        sdpa = self.language.config._attn_implementation == "sdpa"
        dtype = torch.bool if sdpa else embedded.dtype
        with head_at(self.language, packed.targets != IGNORED if at_targets else None):
            output = self.language(
                inputs_embeds=embedded,
                attention_mask=attention_mask(packed.documents, dtype, packed.blocks, packed.noisy),
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
        model = cls(
            language,
            text_tokenizer,
            config.image_tokens,
            projector,
            config.defaults,
            config.masked,
            vision=_read_vision(path, config, width_of(language)),
            mask=config.mask,
        )
        _check_vocabulary(path, model)
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

        config = FolderConfig(
            image_tokens=self.image_tokens,
            projector=False if self.projector is None else self.projector.kind,
            vision=None if self.vision is None else self.vision.config,
            mask=self.vocabulary.text_mask,
            masked=self.masked,
            defaults=self.defaults,
        )
        with whole_folder(folder, overwrite, _belongs) as temp:
            plain = _on_the_cpu(self.language)
            if hasattr(plain, "merge_and_unload"):  # of peft's LoRA
                plain = plain.merge_and_unload()
            stored = type_to_store(plain.named_parameters(), dtype, folder)
            with quietly():
                try:
                    plain.generation_config.save_pretrained(temp)
                except ValueError as error:  # transformers reads contradictions but refuses to write them
                    _LOG.warning("%s: settings of generate() are left out: %s", folder, one_line(error)[:200])
                    plain.generation_config = GenerationConfig.from_model_config(plain.config)
                plain.to(stored).save_pretrained(temp, max_shard_size="1TB")
            save_text_tokenizer(self.text_tokenizer, temp)
            (temp / CONFIG).write_text(to_yaml(config), encoding="utf-8")
            if captions:
                (temp / CAPTIONS).write_bytes(to_bytes(captions))
            for module, name in ((self.projector, PROJECTOR), (self.vision, VISION)):
                if module is not None:
                    weights = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
                    save_file(weights, temp / name)


@contextlib.contextmanager
def head_at(language: PreTrainedModel, places: Tensor | None) -> Iterator[None]:
    """Have the language model's head give logits (T, V) `places` (B, L) alone; None: everywhere.

    Of a large vocabulary the logits of all tokens take more memory than all else together.
    """
    head = language.get_output_embeddings()
    if places is None or not isinstance(head, nn.Module):
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, given: (given[0][places], *given[1:]))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def check_packing(model: UnifiedModel, length: int) -> None:
    """ValueError naming the architecture when rows of `length` packed documents would be learned wrongly.

    Two short documents in a row must get the logits that each gets alone, and an id must not change those
    before it; in a masked model it must, those of its own document. Linear attention carries what it saw into
    the next document; others refuse the mask.
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
    if model.masked is not None:
        packed = replace(packed, blocks=packed.documents)
    changed = replace(packed, ids=packed.ids.clone())
    changed.ids[0, 12] = packed.ids[0, 0]
    model.eval()
    try:
        together, other = model(packed).logits[0, :13], model(changed).logits[0, :12]
        alone = torch.cat([_alone(model, document, device) for document in documents])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be trained on packed rows ({one_line(error)})") from error
    finally:
        model.train(training)
    most = 1e-4 * alone.abs().max()
    kept = 12 if model.masked is None else 7  # ids before the one that was changed, or before its document
    if not ((together - alone).abs().max() <= most and (together[:kept] - other[:kept]).abs().max() <= most):
        raise ValueError(
            f"{name} cannot be trained on packed rows: its documents would see each other, or what follows"
        )
    if model.masked is not None and not ((together[7:12] - other[7:]).abs().amax(dim=1) > most).all():
        raise ValueError(f"{name} is causal whatever the mask says; a masked model needs one that is not")


def _alone(model: UnifiedModel, document: Document, device: torch.device) -> Tensor:
    """Logits (L, V) of one document in a row of its own."""
    embedded = model.embed(torch.from_numpy(document.ids)[None].to(device))
    if model.masked is None:
        return model.language(inputs_embeds=embedded, use_cache=False).logits[0]
    packed = pack([[document]], len(document)).to(device)
    return model(replace(packed, blocks=packed.documents)).logits[0]


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
    image_tokens: ImageTokens | None,
    *,
    features: bool,
    seed: int,
    masked: MaskedForm | None = None,
    vision: VisionConfig | None = None,
    code_vectors: Tensor | None = None,
) -> UnifiedModel:
    """A model to be trained: random, or a pretrained one with new rows for pictures.

    `text_tokenizer` is for a random one; a pretrained one brings its own; `code_vectors` as for `widen`. A
    model folder of ours is taken as it is, with its projector and vision tower; one that was autoregressive
    can become `masked`. Raises ValueError for an unknown architecture, settings that it does not know, a
    folder that holds no causal language model, and a model of ours for another image tokenizer.
    """
    projector, defaults, sight, mask = None, None, None, None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = _ours(base.folder, image_tokens) if isinstance(base, PretrainedModel) else None
        if ours is not None:
            assert isinstance(base, PretrainedModel)
            language, text_tokenizer = ours.language, ours.text_tokenizer
            projector, defaults, sight = ours.projector, ours.defaults, ours.vision
            mask = ours.vocabulary.text_mask
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
        language, text_tokenizer, image_tokens, projector, defaults, masked, vision=sight, mask=mask
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


def _check_vocabulary(path: Path, model: UnifiedModel) -> None:
    """ValueError where the text tokenizer, the weights and the config speak of different ids."""
    tokens, vocabulary = model.image_tokens, model.vocabulary
    rows = model.language.get_input_embeddings().get_parameter("weight").shape[0]
    if model.masked is not None and vocabulary.mask is None:
        raise ValueError(f"{path}: a masked model without [MASK] in its vocabulary")
    if tokens is None:
        if vocabulary.text_mask is not None and vocabulary.text_mask >= rows:
            raise ValueError(
                f"{path}: {CONFIG} has the mask {vocabulary.text_mask}, the model has {rows} ids"
            )
        return
    expected = tokens.codes, tokens.cells
    if (found := (vocabulary.codes, vocabulary.cells)) != expected:
        raise ValueError(
            f"{path}: {CONFIG} speaks of {codes_in_words(*expected)}, "
            f"the text tokenizer has {codes_in_words(*found)}"
        )


def _read_vision(folder: Path, config: FolderConfig, width: int) -> Vision | None:
    if config.vision is None:
        return None
    if config.vision.tower.weights is not None:
        raise ValueError(
            f"{folder / CONFIG}: vision.tower.weights leads out of the folder; copy the folder again"
        )
    with sized_like(folder, str(folder)):
        vision = Vision(config.vision, width)
    _load(vision, folder / VISION, "of another tower")
    return vision


def _read_projector(folder: Path, config: FolderConfig, width: int) -> Projector:
    if config.image_tokens is None:
        raise ValueError(f"{folder / CONFIG}: a projector without image_tokens, whose features it reads")
    with sized_like(folder, str(folder)):
        assert config.projector is not False
        projector = Projector.of_kind(config.projector, config.image_tokens.features, width)
    _load(projector, folder / PROJECTOR, "not a projector's")
    return projector


def _load(module: nn.Module, path: Path, otherwise: str) -> None:
    """Load weights from a file; ValueError for one that is damaged, or `otherwise` no file of this module."""
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: damaged, or {otherwise} ({one_line(error)[:300]})") from error
    _check_finite(module.named_parameters(), path)


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
    _check_finite(language.named_parameters(), folder)
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


def type_to_store(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, folder: Path) -> torch.dtype:
    """`dtype`, or float32 with a warning where one of the named weights lies beyond its range.

    ValueError for weights that are no finite numbers.
    """
    tensors = dict(weights)
    _check_finite(tensors.items(), folder)
    stored = storage_dtype(tensors.values(), dtype)
    if stored != dtype:
        _LOG.warning("%s: weights lie beyond the range of %s; stored as %s", folder, dtype, stored)
    return stored


def save_text_tokenizer(text_tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a text tokenizer into a folder, without where its files lay when it was read."""
    text_tokenizer.save_pretrained(folder)
    _forget_paths(folder / "tokenizer_config.json")


def _check_finite(weights: Iterable[tuple[str, Tensor]], source: Path) -> None:
    for name, parameter in weights:
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


def _belongs(name: str) -> bool:
    """Whether a file is part of a saved language model."""
    ours = {
        CONFIG,
        PROJECTOR,
        VISION,
        CAPTIONS,
        SHARDS,
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    return name in ours or name.startswith((*TEXT_FILES, "model-0"))
