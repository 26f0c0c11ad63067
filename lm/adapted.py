"""A frozen language model with an inner adaptor, as one of ours; and the adaptor's own folder.

An adaptor's folder holds `config.yaml`, `model.safetensors` (its layers and ends, and the projector of its
images) and, where the base knows no images, the text tokenizer with its image tokens. It has none of
the base's weights, only their fingerprint; it is of no use beside others.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from pictish.configs import Config, parse
from pictish.io.budget import sized_like
from pictish.io.files import one_line
from pictish.io.model_folder import (
    CONFIG,
    WEIGHTS,
    load_strictly,
    locate_model,
    read_config,
    read_model_folder,
    whole_folder,
)
from pictish.io.plain_yaml import to_yaml
from pictish.lm.adaptors import Adaptor, End, adapted, default_points, new_adaptor
from pictish.lm.config import AdaptorConfig, DefaultsConfig, MaskedForm
from pictish.lm.model import PROJECTOR, TEXT_FILES, ImageTokens, Projector, UnifiedModel
from pictish.lm.pretrained import read_pretrained, save_text_tokenizer, type_to_store, width_of
from pictish.training.isolation import loading

_LOG = logging.getLogger(__name__)
BASE = "language."  # how the names of the weights begin that are not an adaptor's


class AdaptorFolder(Config):
    """`config.yaml` of an adaptor's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    part: Literal["adaptor"] = "adaptor"
    format: Literal[1] = 1
    kind: str  # what it is for: general, grounding, code, ...
    base: str  # fingerprint of the base's weights, as `weights_fingerprint` gives it
    base_layers: int
    points: tuple[int, ...]
    table: End = "own"
    norm: End = "own"
    head: End = "own"
    image_tokens: ImageTokens | None = None  # none: its images are features of a vision tower
    features: int = 0  # channels that its projector reads
    projector: bool | Literal["linear", "mlp"] = False
    masked: MaskedForm | None = None  # none: autoregressive
    cell_positions: bool = False  # see `Vocabulary.strides`
    defaults: DefaultsConfig = DefaultsConfig()


class Base(NamedTuple):
    """A language model that adaptors are loaded beside."""

    language: PreTrainedModel
    text_tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    knows_pictures: bool  # a model folder of ours, whose vocabulary has codes


class AdaptedModel(UnifiedModel):
    """A frozen base read through an adaptor. Its state dict is the adaptor's alone."""

    def __init__(
        self,
        base: Base,
        adaptor: Adaptor,
        kind: str,
        text_tokenizer: PreTrainedTokenizerFast,
        image_tokens: ImageTokens,
        projector: Projector | None,
        defaults: DefaultsConfig | None = None,
        masked: MaskedForm | None = None,
        *,
        cell_positions: bool = False,
    ) -> None:
        base.language.requires_grad_(False)
        super().__init__(
            adapted(base.language, adaptor),
            text_tokenizer,
            image_tokens,
            projector,
            defaults,
            masked,
            cell_positions=cell_positions,
        )
        self.adaptor, self.kind, self.base_fingerprint = adaptor, kind, base.fingerprint
        self.base_knows_pictures = base.knows_pictures
        # its weights are also the language model's; the first name is the one they go by
        self._modules = {"adaptor": adaptor, **self._modules}

    @property
    def base_layers(self) -> int:
        """How many decoder layers the base has."""
        return self.language.config.get_text_config().num_hidden_layers - len(self.adaptor.points)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without the base's weights: those have a folder of their own and never change."""
        return {
            name: tensor
            for name, tensor in super().state_dict(*args, **kwargs).items()
            if not name.startswith(BASE)
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """What `state_dict` gave; the base stays as it is."""
        whole = {n: t for n, t in super().state_dict().items() if n.startswith(BASE)}
        return super().load_state_dict({**whole, **state_dict}, *args, **kwargs)

    def base_digest(self) -> str:
        """sha256 over all weights of the base, to show that training has left them alone."""
        own = {id(parameter) for parameter in self.adaptor.parameters()}
        digest = hashlib.sha256()
        for name, tensor in self.language.named_parameters():
            if id(tensor) not in own:
                digest.update(name.encode())
                blob = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                digest.update(blob.data)
        return digest.hexdigest()

    def save(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float16,
        overwrite: bool = False,
        captions: Sequence[str] = (),
    ) -> None:
        """Write the adaptor's folder as a whole, weights as `dtype` where all fit it; ValueError for weights
        that are no finite numbers. `captions` stay with the data: an adaptor's model is not drawn by."""
        from safetensors.torch import save_file

        tensors = {n.removeprefix("adaptor."): t.detach().cpu() for n, t in self.state_dict().items()}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("alignment.")}
        stored = type_to_store(tensors.items(), dtype, folder)
        adaptor = self.adaptor
        assert self.image_tokens is not None
        config = AdaptorFolder(
            kind=self.kind,
            base=self.base_fingerprint,
            base_layers=self.base_layers,
            points=adaptor.points,
            table="tied" if adaptor.table is None else "own",
            norm="tied" if adaptor.norm is None else "own",
            head="tied" if adaptor.head is None else "own",
            image_tokens=self.image_tokens,
            features=self.image_tokens.features,
            projector=False if self.projector is None else self.projector.kind,
            masked=self.masked,
            cell_positions=self.vocabulary.cell_positions,
            defaults=self.defaults,
        )
        with whole_folder(folder, overwrite, belongs) as temp:
            (temp / CONFIG).write_text(to_yaml(config), encoding="utf-8")
            save_file({n: t.to(stored).contiguous() for n, t in tensors.items()}, temp / WEIGHTS)
            if not self.base_knows_pictures:
                save_text_tokenizer(self.text_tokenizer, temp)


def belongs(name: str) -> bool:
    """Whether a file is part of an adaptor's folder."""
    return name in (CONFIG, WEIGHTS) or name.startswith(TEXT_FILES)


def weights_fingerprint(folder: Path) -> str:
    """First 12 hex digits of sha256 over the language model's safetensors files in a folder, by name."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != PROJECTOR)
    if not files:
        raise ValueError(f"{folder}: no language model, it has no safetensors file")
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:12]


@loading
def read_base(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Base:
    """A base from a model folder of ours or from a transformers folder; ValueError for anything else."""
    path = locate_base(folder)
    loaded, text_tokenizer = read_pretrained(path, dtype)
    language: Any = loaded  # whose `to` transformers wraps without its types
    return Base(
        language.to(device).eval().requires_grad_(False),
        text_tokenizer,
        weights_fingerprint(path),
        (path / CONFIG).is_file(),
    )


def locate_base(folder: str | Path) -> Path:
    """The folder of a language model: one of ours by the rules of model folders, else a transformers one."""
    try:
        path = locate_model(folder, "lm")
    except ValueError:
        path = Path(folder).expanduser()
        if not (path / "config.json").is_file():
            raise
        return path
    if read_config(path).get("part") == "adaptor":
        raise ValueError(f"{path}: an adaptor; the language model that it belongs to was asked for")
    return path


def adapt(model: UnifiedModel, config: AdaptorConfig, base: str | Path) -> AdaptedModel:
    """`model`, whose language model came from the folder `base`, with a new adaptor to be trained.

    ValueError where the base knows no images, so that their rows must be the adaptor's, and its table or
    head is tied; and for a model with a vision tower, or without an image tokenizer.
    """
    if model.image_tokens is None or model.vision is not None:
        raise ValueError(
            "adaptor: only those that read the codes of an image tokenizer are trained; without model.vision "
            "and with a tokenizer they would fit"
        )
    folder = locate_base(base)
    knows_pictures = (folder / CONFIG).is_file()
    language = model.language
    layers = language.config.get_text_config().num_hidden_layers
    if not knows_pictures and "tied" in (config.table, config.head):
        raise ValueError(
            f"adaptor: table {config.table} and head {config.head}, but {folder} knows no images, so the "
            "rows of [IMG] and [/IMG] must be the adaptor's; own would fit"
        )
    adaptor = new_adaptor(
        language,
        default_points(layers) if config.points is None else config.points,
        table=config.table,
        norm=config.norm,
        head=config.head,
        start=config.start,
    )
    found = Base(language, model.text_tokenizer, weights_fingerprint(folder), knows_pictures)
    # as it will be trained: images enter as features where there is a projector for them
    defaults = model.defaults.model_copy(update={"continuous": model.projector is not None})
    return AdaptedModel(
        found,
        adaptor,
        config.kind,
        model.text_tokenizer,
        model.image_tokens,
        model.projector,
        defaults,
        model.masked,
        cell_positions=model.vocabulary.cell_positions,
    )


@loading
def load_adaptor(folder: str | Path, base: Base) -> AdaptedModel:
    """The adaptor in a folder beside its base, in eval mode, on the base's device and of its type.

    Any number of them share the base. ValueError as `read_adaptor`, and for one of a vision tower.
    """
    path = Path(folder).expanduser()
    config, adaptor, projector = read_adaptor(path, base)
    if config.image_tokens is None:
        raise ValueError(
            f"{path}: an adaptor whose images are features of a vision tower, not of a tokenizer"
        )
    text_tokenizer = base.text_tokenizer if base.knows_pictures else _text_tokenizer(path)
    model = AdaptedModel(
        base,
        adaptor,
        config.kind,
        text_tokenizer,
        config.image_tokens,
        projector,
        config.defaults,
        config.masked,
        cell_positions=config.cell_positions,
    )
    return model.eval()


class ReadAdaptor(NamedTuple):
    """What an adaptor's folder holds, in eval mode."""

    config: AdaptorFolder
    adaptor: Adaptor
    projector: Projector | None


def read_adaptor(path: Path, base: Base) -> ReadAdaptor:
    """The weights of an adaptor, on its base's device and of its type.

    ValueError for a folder that is none, or is damaged, and for another base than the one that it was trained
    beside.
    """
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path}: no adaptor, it has no {CONFIG}")
    raw = read_config(path)
    if raw.get("part") != "adaptor":
        raise ValueError(f"{path}: an adaptor was asked for, this folder holds part {raw.get('part')!r}")
    config = parse(AdaptorFolder, raw, str(path / CONFIG))
    if config.base != base.fingerprint:
        raise ValueError(
            f"{path}: an adaptor of the language model {config.base}, not of {base.fingerprint}; "
            "give the one that it was trained beside"
        )
    tensors = read_model_folder(path).tensors
    with sized_like(path, str(path)):
        ends: dict[str, Any] = {"table": config.table, "norm": config.norm, "head": config.head}
        adaptor = new_adaptor(base.language, config.points, **ends, start="copy")
        for end, module in (("table", adaptor.table), ("head", adaptor.head)):
            if module is not None and f"{end}.weight" in tensors:
                _give_rows(module, len(tensors[f"{end}.weight"]))
        projector = None
        if config.projector:
            projector = Projector.of_kind(config.projector, config.features, width_of(base.language))
    for prefix, module in (("", adaptor), ("projector.", projector)):
        if module is not None:
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith("projector.") == bool(prefix)
            }
            load_strictly(module, own, str(path / WEIGHTS))
            weight = base.language.get_input_embeddings().get_parameter("weight")
            module.to(device=weight.device, dtype=weight.dtype).eval().requires_grad_(False)
    return ReadAdaptor(config, adaptor, projector)


def _text_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises many kinds
        raise ValueError(f"{folder}: its text tokenizer cannot be loaded ({one_line(error)})") from error
    return loaded


def _give_rows(module: nn.Module, rows: int) -> None:
    """Resize a table or head to `rows`: the adaptor's vocabulary may be larger than its base's."""
    for name, parameter in list(module.named_parameters()):
        if len(parameter) != rows:
            setattr(module, name, nn.Parameter(parameter.new_zeros(rows, *parameter.shape[1:])))
    for count in ("num_embeddings", "out_features"):
        if hasattr(module, count):
            setattr(module, count, rows)


@contextmanager
def base_unchanged(model: UnifiedModel) -> Iterator[None]:
    """Check that what happens inside leaves the base of an adapted model as it was, to the bit."""
    before = model.base_digest() if isinstance(model, AdaptedModel) else ""
    yield
    if isinstance(model, AdaptedModel):
        assert model.base_digest() == before, "training an adaptor has changed its base"
        _LOG.info("the base's weights are unchanged (sha256 %s)", before[:12])
