"""Model folders: `config.yaml` and `model.safetensors`, named by the fingerprint of their bytes."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pictish.io import hub
from pictish.io.files import one_line, read_regular_file, shown, sync, temp_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"  # where a language model's weights lie in several files
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_LARGEST_SETTINGS = 1 << 22  # bytes of a config.json
_LARGEST_INDEX = 1 << 26  # bytes of an index of weights
Part = Literal["tokenizer", "lm", "decoder", "preview", "decoder-lowres", "upscaler"]


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds."""

    config: dict[str, Any]
    tensors: "dict[str, Tensor]"
    fingerprint: str  # 12 hex digits


def write_model_folder(
    folder: Path, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]", overwrite: bool = False
) -> None:
    """Write a model folder as a whole: it is made beside its place and renamed.

    ValueError when `folder` exists and `overwrite` is False, or when it holds anything that is not a model's.
    """
    from safetensors.torch import save_file

    from pictish.io.plain_yaml import to_yaml

    with whole_folder(folder, overwrite, lambda name: name in (CONFIG, WEIGHTS)) as temp:
        (temp / CONFIG).write_text(to_yaml(config), encoding="utf-8")
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temp / WEIGHTS
        )


@contextlib.contextmanager
def whole_folder(folder: Path, overwrite: bool, belongs: Callable[[str], bool]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends well.

    ValueError when `folder` exists and `overwrite` is False, or when it holds a name that does not belong.
    """
    if folder.exists():
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
        strangers = [name for name in names if not (folder.is_dir() and belongs(name))]
        if strangers:
            raise ValueError(
                f"{folder}: not replaced, it holds {min(strangers)}, which is no part of a model"
            )
        if not overwrite:
            raise ValueError(f"{folder}: exists already; choose another folder or overwrite it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_path(folder)
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    try:
        yield temp
    except BaseException as error:
        shutil.rmtree(temp, ignore_errors=True)
        if found := _OS_ERROR.search(str(error)):  # safetensors and tokenizers have errors of their own
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(folder)) from error
        raise
    for path in filter(Path.is_file, temp.rglob("*")):
        path.chmod(0o644)  # safetensors writes for the owner alone
        with path.open("rb") as file:
            sync(file.fileno())
    if folder.exists():
        old = temp_path(folder.with_name(f"{folder.name}.old"))
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temp.rename(folder)
        shutil.rmtree(old)
    else:
        temp.rename(folder)


def storage_dtype(tensors: "Iterable[Tensor]", dtype: "torch.dtype") -> "torch.dtype":
    """`dtype`, or float32 where a value lies beyond its range: bfloat16 reaches further than float16."""
    import torch

    largest = torch.finfo(dtype).max
    fits = all(
        float(tensor.detach().abs().max()) <= largest
        for tensor in tensors
        if tensor.is_floating_point() and tensor.numel()
    )
    return dtype if fits else torch.float32


def read_model_folder(folder: Path) -> ModelFolder:
    """Read a model folder, tensors on the CPU; ValueError when it is not one, or is damaged."""
    from safetensors.torch import load_file

    name = fingerprint(folder)
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors has its own exception type, no subclass of ValueError
        raise ValueError(
            f"{folder / WEIGHTS}: not a safetensors file, or a damaged one ({one_line(error)})"
        ) from error
    return ModelFolder(config, tensors, name)


def need(config: Mapping[str, Any], keys: Sequence[str], folder: Path | str) -> None:
    """ValueError naming those of `keys` that a model folder's settings lack, or that are no text where one is
    due (all but `model` and `sha256`, which are mappings)."""
    for key in keys:
        fitting = dict if key in ("model", "sha256") else str
        if not isinstance(config.get(key), fitting):
            came = "nothing" if key not in config else type(config[key]).__name__
            raise ValueError(f"{folder}: damaged, {CONFIG} has {came} as {key}; copy it again")


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's settings; ValueError when they are not a YAML mapping."""
    from pictish.io.plain_yaml import read_yaml

    config = read_yaml(folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG}: holds {type(config).__name__}, not a mapping of settings")
    return config


def fingerprint(folder: Path) -> str:
    """First 12 hex digits of sha256 over the bytes of config.yaml and then of model.safetensors.

    Of weights in several files it is the index instead, which holds a sha256 of each.
    """
    digest = hashlib.sha256()
    sharded = (folder / SHARDS).is_file() and not (folder / WEIGHTS).is_file()
    for name in (CONFIG, SHARDS if sharded else WEIGHTS):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: not a model folder, it has no {name}")
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:12]


def resolve_model(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Folder of a model: `starter` is the one in the package, `user/repo` or `user/repo@revision` one of the
    Hugging Face Hub, which is downloaded; anything else is the path of a folder, which need not exist.

    A local folder called starter is reached as `./starter`; one called like a repository comes first. Errors
    are those of `hub.download`, and ValueError for a `revision` of anything but a repository.
    """
    name = str(name_or_path)
    if hub.is_repo(name):
        return hub.download(name, revision)
    if revision is not None:
        raise ValueError(f"revision: {shown(revision)} asked for, but {shown(name)} is not on the hub")
    if name == "starter":
        import pictish

        return Path(pictish.__file__).parent / "starter"
    return Path(name).expanduser()


def locate_model(name_or_path: str | Path, part: Part) -> Path:
    """Folder of a model's part: of a model as `resolve_model` finds it, or the folder of a part itself.

    ValueError saying where it was looked for.
    """
    root = resolve_model(name_or_path)
    candidates = [root / part] if str(name_or_path) == "starter" else [root, root / part]
    for candidate in candidates:
        if (candidate / CONFIG).is_file():
            return candidate
    looked = " and ".join(str(candidate / CONFIG) for candidate in candidates)
    raise ValueError(f"no {part} found for model {str(name_or_path)!r}; looked for {looked}")


def find_decoder(
    name_or_path: str | Path, kind: Literal["preview", "diffusion"], *, lowres: bool = False
) -> Path | None:
    """Folder of a model's decoder of this kind, or None.

    It lies in `decoder`, `preview` or `decoder-lowres` of the model's folder, or is the folder itself; with
    `lowres` the last of these alone.
    """
    parts: tuple[Part, ...] = ("decoder-lowres",) if lowres else ("decoder", "preview", "decoder-lowres")
    for part in parts:
        with contextlib.suppress(ValueError):
            folder = locate_model(name_or_path, part)
            config = read_config(folder)
            if (config.get("part"), config.get("kind")) == ("decoder", kind):
                return folder
    return None


def find_upscaler(name_or_path: str | Path) -> Path | None:
    """Folder `upscaler` beside a model's decoder, or None; one that is damaged is found too."""
    try:
        folder = locate_model(name_or_path, "upscaler")
    except ValueError:
        return None
    return (
        None if folder == Path(name_or_path).expanduser() else folder
    )  # the folder of one part has nothing beside it


def refuse_foreign_code(folder: Path) -> None:
    """ValueError where a transformers or diffusers folder would have them run other code, or read elsewhere.

    Both run with trust_remote_code=False; this is about what they do regardless of it.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError("adapters are not read; merge them into the weights")
    settings = json.loads(read_regular_file(folder / "config.json", _LARGEST_SETTINGS))
    if not isinstance(settings, dict):
        raise ValueError("config.json holds no settings")
    for name, value in settings.items():
        if name in ("auto_map", "quantization_config") and value:
            raise ValueError(f"config.json has {name}, which asks for code of others")
        if "implementation" in name and "/" in str(value):
            raise ValueError(f"config.json has {name} {shown(value)}, which would be downloaded and run")
    for index in sorted(folder.glob("*.index.json")):
        listed = json.loads(read_regular_file(index, _LARGEST_INDEX))
        places = listed.get("weight_map") if isinstance(listed, dict) else None
        for file in sorted(set(map(str, places.values()))) if isinstance(places, dict) else []:
            if Path(file).name != file:
                raise ValueError(f"{index.name} names {shown(file)}, which does not lie beside it")


def load_strictly(module: "nn.Module", tensors: "dict[str, Tensor]", source: str) -> None:
    """Fill `module` with `tensors`; ValueError names what is missing, unknown or misshapen."""
    own = module.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [n for n in sorted(set(own) & set(tensors)) if own[n].shape != tensors[n].shape]
    if missing or unknown or shapes:
        raise ValueError(
            f"{source}: weights do not fit the config: {len(missing)} missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(shapes)} of another shape {shapes[:2]}"
        )
    module.load_state_dict(tensors)  # which converts types, a tensor at a time
