"""Model folders put together from parts, and what is in one."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pictish.io.files import one_line, printable
from pictish.io.model_folder import (
    CONFIG,
    Part,
    fingerprint,
    locate_model,
    read_config,
    resolve_model,
    whole_folder,
)

PARTS: tuple[Part, ...] = ("tokenizer", "lm", "decoder", "preview", "decoder-lowres", "upscaler")
"""Folders of a model, in the order they are trained."""


@dataclass(frozen=True)
class PartInfo:
    """What the folder of a part holds."""

    folder: Path
    part: str  # as its settings say
    kind: str | None  # of a decoder
    fingerprint: str  # 12 hex digits
    tokenizer: str | None  # fingerprint of the tokenizer whose codes it reads; None: of any
    weights: int  # numbers
    bytes: int


def part_info(folder: Path) -> PartInfo:
    """What a part's folder holds, its weights unread; ValueError when it is none, or damaged."""
    config = read_config(folder)
    part, kind = config.get("part"), config.get("kind")
    if not isinstance(part, str):
        raise ValueError(f"{folder}: not a part of a model, its {CONFIG} names no part")
    name = fingerprint(folder)
    tokens = config.get("image_tokens")
    tokenizer = tokens.get("fingerprint") if isinstance(tokens, Mapping) else config.get("tokenizer")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return PartInfo(
        folder,
        part,
        kind if isinstance(kind, str) else None,
        name,
        tokenizer if isinstance(tokenizer, str) else None,
        sum(map(_numbers, (path for path in files if path.suffix == ".safetensors"))),
        sum(path.stat().st_size for path in files),
    )


def parts_of(model: str | Path) -> dict[Part, PartInfo]:
    """The parts of a model that are whole, by the name that `resolve_model` takes; ValueError without any."""
    found: dict[Part, PartInfo] = {}
    root = resolve_model(model)
    for part in PARTS:
        with contextlib.suppress(ValueError, FileNotFoundError):
            found[part] = part_info(root / part)
    if not found:
        raise ValueError(f"{printable(model)}: not a model folder; it has none of {', '.join(PARTS)}")
    return found


def misfits(parts: Mapping[Part, PartInfo]) -> list[str]:
    """Why parts do not belong together, a line each: those made for another tokenizer, and strange ones."""
    lines = []
    own = parts.get("tokenizer")
    for name, part in parts.items():
        wanted = "decoder" if name in ("preview", "decoder-lowres") else name
        if part.part != wanted:
            lines.append(f"{part.folder}: a {name} was asked for, this folder holds part {part.part!r}")
        elif own is not None and part.tokenizer not in (None, own.fingerprint) and part is not own:
            lines.append(
                f"{part.folder}: reads codes of tokenizer {part.tokenizer}, not of {own.fingerprint} "
                f"({own.folder})"
            )
    return lines


def assemble(out: Path, parts: Mapping[Part, str | Path], *, overwrite: bool = False) -> dict[Part, PartInfo]:
    """Copy parts into the model folder `out`; what they are. Parts that are there already stay.

    Each may be given as its folder, as a run folder that holds `model`, or as a whole model's folder.
    ValueError, before anything is copied, where one is missing, exists and `overwrite` is False, or does not
    belong to the tokenizer.
    """
    given = {name: part_info(_folder_of(folder, name)) for name, folder in parts.items()}
    with contextlib.suppress(ValueError):
        given = {**parts_of(out), **given}
    if lines := misfits(given):
        raise ValueError("; ".join(lines))
    todo = {name: given[name] for name in parts if not _is_there(given[name], out / name)}
    taken = [name for name in todo if (out / name).exists()]
    if taken and not overwrite:
        raise ValueError(f"{out / taken[0]}: exists already; choose another folder, or overwrite it")
    for name, part in todo.items():
        copy_part(part.folder, out / name, overwrite=overwrite)
    return given


def copy_part(source: Path, target: Path, *, overwrite: bool = False) -> None:
    """Copy a part's folder as a whole; ValueError where `target` is there and is no part, or must stay."""
    part_of_a_model = (target / CONFIG).is_file()
    with whole_folder(target, overwrite, lambda name: part_of_a_model) as temp:
        shutil.copytree(source, temp, dirs_exist_ok=True)


@contextlib.contextmanager
def with_parts(model: str | Path, parts: Mapping[Part, str | Path]) -> Iterator[Path]:
    """A model folder with other `parts` than its own, for as long as the block lasts; nothing is copied."""
    given = {name: part_info(_folder_of(folder, name)) for name, folder in parts.items()}
    own = parts_of(model)
    if lines := misfits({name: part for name, part in own.items() if name == "tokenizer"} | given):
        raise ValueError("; ".join(lines))
    beside = next(iter(own.values())).folder.parent
    folders = {path.name: path for path in beside.iterdir() if path.is_dir()}
    folders |= {name: part.folder for name, part in given.items()}
    with tempfile.TemporaryDirectory(prefix="pictish-") as temp:
        for name, folder in folders.items():
            (Path(temp) / name).symlink_to(folder.resolve(), target_is_directory=True)
        yield Path(temp)


def _folder_of(folder: str | Path, part: Part) -> Path:
    """The folder of a part, given by itself, by its run or by its model."""
    inside = Path(folder) / "model"
    return inside if (inside / CONFIG).is_file() else locate_model(folder, part)


def _is_there(part: PartInfo, target: Path) -> bool:
    return (target / CONFIG).is_file() and fingerprint(target) == part.fingerprint


def _numbers(path: Path) -> int:
    """How many numbers a safetensors file holds."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except Exception as error:  # safetensors has its own exception type, no subclass of ValueError
        raise ValueError(f"{path}: not a safetensors file, or a damaged one ({one_line(error)})") from None
    return sum(map(math.prod, shapes))
