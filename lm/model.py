"""The unified model: a transformers causal LM whose vocabulary holds image codes, and a projector.

On disk it is a plain Hugging Face folder, which `AutoModelForCausalLM` and `AutoTokenizer` load, beside
`config.yaml` and, for images as continuous features, `projector.safetensors`; a vision tower, with the
projector behind it, lies in `vision.safetensors`.

Legend: B rows, L tokens, D width of the language model, M embedded features, F feature channels, T targets.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pictish.configs import Config, parse
from pictish.io.budget import sized_like
from pictish.io.files import one_line
from pictish.io.model_folder import (
    CONFIG,
    SHARDS,
    locate_model,
    read_config,
    whole_folder,
)
from pictish.io.plain_yaml import to_yaml
from pictish.lm.alignment import Alignment
from pictish.lm.captions import CAPTIONS, to_bytes
from pictish.lm.config import DefaultsConfig, MaskedForm
from pictish.lm.packing import IGNORED, Packed, attention_mask
from pictish.lm.pretrained import (
    check_finite,
    on_the_cpu,
    quietly,
    read_pretrained,
    save_text_tokenizer,
    type_to_store,
    width_of,
)
from pictish.lm.vision.config import VisionConfig
from pictish.lm.vision.model import Placed, Vision, places_of
from pictish.lm.vision.projectors import mlp
from pictish.lm.vocabulary import Vocabulary, text_vocabulary, vocabulary_of
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
    image_tokens: ImageTokens | None  # none: it reads images through a vision tower alone
    projector: bool | Literal["linear", "mlp"]  # true: two layers behind a norm; mlp: without it
    vision: VisionConfig | None = None
    mask: int | None = None  # the text tokenizer's own id that stands for what is to be filled in
    masked: MaskedForm | None = None  # none: autoregressive
    cell_positions: bool = False  # see `Vocabulary.strides`
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
        cell_positions: bool = False,
    ):
        super().__init__()
        self.language = language
        self.text_tokenizer = text_tokenizer
        self.vocabulary: Vocabulary = (
            text_vocabulary(text_tokenizer, mask)
            if image_tokens is None
            else replace(vocabulary_of(text_tokenizer), cell_positions=cell_positions)
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
            raise ValueError("images were given to a language model without a vision tower (model.vision)")
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
            cell_positions=config.cell_positions,
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
            cell_positions=self.vocabulary.cell_positions,
            defaults=self.defaults,
        )
        with whole_folder(folder, overwrite, _belongs) as temp:
            plain = on_the_cpu(self.language)
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
    check_finite(module.named_parameters(), path)


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
