"""The tensors of a checkpoint on disk: one safetensors file, or one a process and an index of their rows.

Read when they are asked for, whole or some rows of them, so that each process reads what it needs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pictish.training.sharding import local_rows, sharded_like

METADATA = "pictish"  # the one entry of a shard's header
SINGLE_FILE = "tensors.safetensors"


class Entry(NamedTuple):
    """Where a tensor lies."""

    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    parts: tuple[tuple[int, int, int], ...]  # number of a file, first of the rows there, how many


def shard_name(number: int, count: int) -> str:
    """The name of one of `count` files, from 0."""
    return f"tensors-{number:05d}-of-{count:05d}.safetensors"


def shard_metadata(step: int, number: int, count: int) -> dict[str, str]:
    """What a shard's header says of itself, so that it is taken for no other one."""
    return {METADATA: json.dumps({"file": number, "of": count, "step": step}, sort_keys=True)}


def index_of(folder: Path, count: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The JSON index of `count` shards just written: `bytes` of each file, and of each of the tensors, of
    these `shapes`, its `dtype`, `shape` and `parts`, each `[file, first row, rows]`."""
    files = [folder / shard_name(number, count) for number in range(count)]
    tensors = {
        name: Entry(entry.dtype, tuple(shapes[name]), entry.parts)._asdict()
        for name, entry in _joined([_open(file) for file in files]).items()
    }
    assert tensors.keys() == shapes.keys(), "a shard lacks tensors"
    for name, entry in tensors.items():
        held, rows = sum(part[2] for part in entry["parts"]), (*shapes[name], 1)[0]
        assert held == rows, f"{held} of the {rows} rows of {name} are in the shards"
    return {"bytes": [file.stat().st_size for file in files], "tensors": tensors}


class Stored(Mapping[str, Tensor]):
    """Tensors by name, on the CPU; each is read whenever it is asked for."""

    def __init__(self, folder: Path, step: int, index: Mapping[str, Any] | None) -> None:
        """Of a single file, or of several by their index, all of whose headers are looked at.

        ValueError, naming the file, when one is missing, cut, another's, or not as the index says.
        """
        if index is None:
            self._files = [_open(folder / SINGLE_FILE)]
            self._entries = _joined(self._files)
            return
        sizes = [_count(size) for size in index["bytes"]]
        self._entries = {name: _entry(name, raw, len(sizes)) for name, raw in index["tensors"].items()}
        self._files = []
        for number, size in enumerate(sizes):
            path = folder / shard_name(number, len(sizes))
            came = path.stat().st_size if path.is_file() else None
            if came != size:
                problem = "is missing" if came is None else f"has {came} bytes, its index says {size}"
                raise ValueError(f"{path.name} {problem}")
            file = _open(path)
            if (file.metadata() or {}) != shard_metadata(step, number, len(sizes)):
                raise ValueError(f"{path.name} is a file of another place or checkpoint")
            self._files.append(file)
            self._check(number, path.name)

    def __getitem__(self, name: str) -> Tensor:
        parts = self._entries[name].parts
        pieces = [self._files[file].get_tensor(name) for file, _, _ in parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its whole shape, without reading it."""
        return self._entries[name].shape

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """`count` rows of a tensor from `first` on, reading no others."""
        pieces = []
        for file, begin, held in self._entries[name].parts:
            start, stop = max(first - begin, 0), min(first + count - begin, held)
            if start < stop:
                pieces.append(self._files[file].get_slice(name)[start:stop])
        return torch.cat(pieces) if pieces else self[name][:0]

    def _check(self, number: int, name: str) -> None:
        """That a file holds what the index says, and nothing else."""
        file = self._files[number]
        expected = {
            tensor: (entry.dtype, [rows, *entry.shape[1:]] if entry.shape else [])
            for tensor, entry in self._entries.items()
            for place, _, rows in entry.parts
            if place == number
        }
        held = {tensor: _header(file, tensor) for tensor in file.keys()}  # noqa: SIM118 (no mapping)
        if held != expected:
            wrong = sorted(
                {tensor for tensor in held if held[tensor] != expected.get(tensor)}
                | (expected.keys() - held.keys())
            )
            raise ValueError(f"{name} does not hold the rows of {wrong[0]} that its index says")


def read_like(tensors: Mapping[str, Tensor], name: str, place: Tensor | None) -> Tensor:
    """A stored tensor for `place`: where that is sharded, sharded as it is; ValueError for another shape."""
    if not isinstance(place, DTensor):
        return tensors[name]
    shape = tensors.shape(name) if isinstance(tensors, Stored) else tuple(tensors[name].shape)
    if shape != tuple(place.shape):
        raise ValueError(f"checkpoint: {name} has shape {shape}, the model {tuple(place.shape)}")
    first, count = local_rows(place)
    if isinstance(tensors, Stored):
        return sharded_like(tensors.rows(name, first, count), place)
    return sharded_like(tensors[name][first : first + count], place)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _header(file: Any, name: str) -> tuple[str, list[int]]:
    piece = file.get_slice(name)
    return piece.get_dtype(), piece.get_shape()


def _joined(files: Sequence[Any]) -> dict[str, Entry]:
    """The tensors of all files, whose rows follow one another in the order of the files."""
    found: dict[str, Entry] = {}
    for number, file in enumerate(files):
        for name in file.keys():  # noqa: SIM118
            dtype, shape = _header(file, name)
            before = found.get(name, Entry(dtype, tuple(shape), ()))
            first = sum(rows for _, _, rows in before.parts)
            part = number, first, shape[0] if shape else 1
            found[name] = before._replace(parts=(*before.parts, part))
    return found


def _entry(name: str, raw: Mapping[str, Any], files: int) -> Entry:
    """One entry of an index; its parts must be all of its rows, in order."""
    shape = tuple(_count(size) for size in raw["shape"])
    reached = 0
    parts: list[tuple[int, int, int]] = []
    for file, first, rows in raw["parts"]:
        follows = not parts or file > parts[-1][0]  # as they were written
        if _count(file) >= files or _count(first) != reached or not follows:
            raise ValueError(f"its index has {name} in file {file} from row {first} on, not from {reached}")
        reached += _count(rows)
        parts.append((file, first, rows))
    if not parts or reached != (*shape, 1)[0]:
        raise ValueError(f"its index has {reached} rows of {name}, whose shape is {shape}")
    return Entry(str(raw["dtype"]), shape, tuple(parts))


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"its index has {number!r} for a count")
    return number
