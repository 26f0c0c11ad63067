"""Importing a foreign checkpoint: every key accounted for, then streamed tensor by tensor.

A `Source` is read twice: first its tables of contents, which are compared with what each part expects, so
that all problems are reported together, before anything is written; then its tensors, one file after the
other. A `Part` is a plan of one folder of the model that comes out.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pictish.io.files import one_line, read_regular_file, sync, temp_path
from pictish.io.torch_files import open_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, ...]
Advance = Callable[[int], None]  # called with the number of bytes just written
LARGEST_INDEX = 1 << 26  # bytes of an index of weights
NAMED = 6  # keys of a kind that a report names


class Meta(NamedTuple):
    """What a table of contents says of a tensor."""

    shape: Shape
    dtype: "torch.dtype"


class Piece(NamedTuple):
    """One tensor to be written: `make` of the tensors `keys` of the file `source`, or its one tensor itself.

    `shape` and `dtype` are those of the result.
    """

    name: str
    source: Path
    keys: tuple[str, ...]
    shape: Shape
    dtype: "torch.dtype"
    make: "Callable[..., Tensor] | None" = None

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for n in self.shape:
            count *= n
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class Part:
    """A folder of the model: safetensors files below it, and what else is written once they are there."""

    name: str
    weights: Mapping[str, Sequence[Piece]]  # path below the folder -> its tensors
    finish: Callable[[Path, str], None]  # (the folder, the tokenizer's fingerprint)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(piece.size for pieces in self.weights.values() for piece in pieces)


@dataclass
class Source:
    """A checkpoint folder, and all that was found wrong with it."""

    folder: Path
    wrong: list[str] = field(default_factory=list)
    _tables: dict[str, dict[str, Meta] | None] = field(default_factory=dict)

    def table(self, file: str, needed_by: str) -> dict[str, Meta] | None:
        """Names, shapes and types of a weights file; None, and the fault is noted, when it cannot be read."""
        if file not in self._tables:
            self._tables[file] = None
            path = self.folder / file
            if not path.is_file():
                self.lacks(file, needed_by)
            else:
                try:
                    found = open_tensors(path)
                    _check_numbers(path, found)
                    self._tables[file] = {n: Meta(tuple(t.shape), t.dtype) for n, t in found.items()}
                except ValueError as error:
                    self.wrong.append(str(error))
        return self._tables[file]

    def lacks(self, file: str, needed_by: str) -> None:
        """Note that a file is missing."""
        self.wrong.append(f"{self.folder / file}: missing; {needed_by} needs it")

    def expect(self, file: str, shapes: Mapping[str, Shape], beside: tuple[str, ...] = ()) -> None:
        """Compare a file that could be read with the tensors it should hold; note every difference.

        Names that begin with one of `beside` are somebody else's to account for.
        """
        found = self._tables[file]
        assert found is not None, file
        missing = [name for name in shapes if name not in found]
        extra = [name for name in found if name not in shapes and not name.startswith(beside)]
        unexpected = [f"{name} {_by(found[name].shape)}" for name in extra]
        misshapen = [
            f"{name} {_by(found[name].shape)} instead of {_by(shape)}"
            for name, shape in shapes.items()
            if name in found and found[name].shape != shape
        ]
        kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
        for kind, names in kinds.items():
            if names:
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                self.wrong.append(
                    f"{self.folder / file}: {len(names)} {kind}: {', '.join(names[:NAMED])}{more}"
                )


def weight_files(source: Source, folder: str, needed_by: str) -> dict[str, list[str] | None] | None:
    """Files of weights in `folder` ("": the checkpoint's own) and the names that the index says each holds.

    None as names: there is no index. None: nothing is known, which is noted.
    """
    kinds = ("model.safetensors", "pytorch_model.bin")
    within = source.folder / folder if folder else source.folder
    start = f"{folder}/" if folder else ""
    index = next(
        (within / f"{kind}.index.json" for kind in kinds if (within / f"{kind}.index.json").is_file()), None
    )
    if index is None:
        single = next((kind for kind in kinds if (within / kind).is_file()), None)
        if single is None:
            source.lacks(f"{start}{kinds[-1]}.index.json", needed_by)
            return None
        return {start + single: None}
    try:
        places = json.loads(read_regular_file(index, LARGEST_INDEX))["weight_map"]
        files: dict[str, list[str] | None] = {}
        for name, file in places.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is not the name of a file beside it")
            names = files.setdefault(start + file, [])
            assert names is not None
            names.append(name)
        return files
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        source.wrong.append(f"{index}: not the index of a model's files ({one_line(error)}); copy it again")
        return None


def _check_numbers(path: Path, found: "Mapping[str, Tensor]") -> None:
    for name, tensor in found.items():
        if tensor.is_sparse or tensor.is_quantized or not tensor.dtype.is_floating_point:
            raise ValueError(f"{path}: {name} holds {tensor.dtype}; dense floating point numbers would fit")


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def digest(source: Source, parts: Iterable[Part], settings: Mapping[str, object]) -> str:
    """Of the files' names, sizes and times and of what is made of them: an interrupted import resumes when it
    is the same."""
    files = {}
    for path in sorted({p.source for part in parts for pieces in part.weights.values() for p in pieces}):
        stat = path.stat()
        files[str(path.resolve())] = [stat.st_size, stat.st_mtime_ns]
    plan = [(part.name, sorted(part.weights)) for part in parts]
    return hashlib.sha256(json.dumps([files, plan, dict(settings)], sort_keys=True).encode()).hexdigest()


def write_pieces(path: Path, pieces: Sequence[Piece], advance: Advance) -> None:
    """Write a safetensors file of `pieces`, holding one of them in memory at a time.

    A file that is there is complete, since it is written beside and renamed, and is left as it is. Raises
    ValueError for a tensor with values that are no finite numbers.
    """
    total = sum(piece.size for piece in pieces)
    if path.exists():
        advance(total)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # larger types first keep all of them aligned; then one source file after the other
    order = sorted(pieces, key=lambda piece: (-piece.dtype.itemsize, str(piece.source)))
    temp = temp_path(path)
    try:
        with temp.open("wb") as file:
            file.write(_header(order))
            opened: tuple[Path, dict[str, Tensor]] | None = None
            for piece in order:
                if opened is None or opened[0] != piece.source:
                    opened = None  # unmaps the last file before the next one is mapped
                    opened = (piece.source, open_tensors(piece.source))
                file.write(_bytes_of(piece, [opened[1][key] for key in piece.keys]))
                advance(piece.size)
            file.flush()
            sync(file.fileno())
        temp.chmod(0o644)
        temp.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise


def _bytes_of(piece: Piece, tensors: "list[Tensor]") -> memoryview:
    import torch

    if piece.make is None:
        (made,) = tensors
    else:
        made = piece.make(*tensors)
    assert tuple(made.shape) == piece.shape, (piece.name, made.shape, piece.shape)
    made = made.detach().to(piece.dtype).contiguous()
    if not made.isfinite().all():
        raise ValueError(
            f"{piece.source}: {', '.join(piece.keys)} holds values that are no finite numbers; copy it again"
        )
    plain: Any = made.flatten().view(torch.uint8).numpy()
    return memoryview(plain)


def _header(pieces: Sequence[Piece]) -> bytes:
    """The head of a safetensors file: its length, and names, types, shapes and places as JSON."""
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in pieces:
        assert piece.name not in table, piece.name
        table[piece.name] = {
            "dtype": names[piece.dtype],
            "shape": list(piece.shape),
            "data_offsets": [place, place + piece.size],
        }
        place += piece.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def free_bytes(folder: Path) -> int:
    """Free space where `folder`, or the nearest folder above it that exists, lies."""
    import shutil

    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.fspath(folder)).free
