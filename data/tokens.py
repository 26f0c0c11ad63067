"""TokenizedImage: one image as discrete codes, and its bytes.

K: kept patches, the number of tokens. See docs/formats.md for the layout of the bytes.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from pictish.io.files import shown

FORMAT_VERSION = 2
LARGEST = 1 << 24  # bytes of a token file: two million tokens
_LONGEST_HEADER = 1 << 12  # bytes; a true one has a tenth
_NO_DIGEST = "0" * 64
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_UINT16_VALUES = 1 << 16
_UINT32_VALUES = 1 << 32
_FIELDS = {"codebook_size", "format", "grid", "sha256", "size", "tokenizer"}


@dataclass(frozen=True, eq=False)
class TokenizedImage:
    """The codes of one image, where they lie, and who wrote them; ValueError when the parts disagree.

    Only images drawn by a language model whose tokenizer reads codes in their order alone (LaVIT's) have no
    cells.
    """

    ids: npt.NDArray[np.int64]  # (K,) codebook entries, 0 <= id < codebook_size, no vocabulary offset
    cells: npt.NDArray[np.int64] | None  # (K,) raster position of each code, rising; None: order only
    grid: tuple[int, int]  # rows, columns
    size: tuple[int, int]  # height, width of the original in pixels
    tokenizer: str  # fingerprint of the model folder that wrote the ids, 12 hex digits
    codebook_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _pair(self.grid, "grid"))
        object.__setattr__(self, "size", _pair(self.size, "size"))
        if not _is_count(self.codebook_size) or self.codebook_size > _UINT32_VALUES:
            raise ValueError(f"codebook_size must be 1 to 2**32, not {shown(self.codebook_size)}")
        if not isinstance(self.tokenizer, str) or not _FINGERPRINT.fullmatch(self.tokenizer):
            raise ValueError(f"tokenizer must be a fingerprint of 12 hex digits, not {shown(self.tokenizer)}")
        ids = _vector(self.ids, "ids", self.codebook_size)
        if len(ids) == 0:
            raise ValueError("ids is empty; an image has at least one token")
        object.__setattr__(self, "ids", ids)
        if self.cells is not None:
            cells = _vector(self.cells, "cells", self.grid[0] * self.grid[1])
            if len(cells) != len(ids):
                raise ValueError(f"cells has {len(cells)} entries for {len(ids)} ids")
            if np.any(np.diff(cells) <= 0):
                raise ValueError("cells must rise from token to token")
            object.__setattr__(self, "cells", cells)

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizedImage):
            return NotImplemented
        if self._facts() != other._facts() or (self.cells is None) != (other.cells is None):
            return False
        same_cells = self.cells is None or other.cells is None or np.array_equal(self.cells, other.cells)
        return np.array_equal(self.ids, other.ids) and same_cells

    def __hash__(self) -> int:
        return hash((self.ids.tobytes(), self.tokenizer))

    @property
    def bits(self) -> float:
        """Information in the ids, K log2(codebook size), and in the cells, log2 C(N, K) of N in the grid."""
        bits = len(self) * math.log2(self.codebook_size)
        if self.cells is None:
            return bits
        cells = self.grid[0] * self.grid[1]
        choices = math.lgamma(cells + 1) - math.lgamma(len(self) + 1) - math.lgamma(cells - len(self) + 1)
        return bits + choices / math.log(2)

    @property
    def bits_per_pixel(self) -> float:
        """Bits per pixel of the original image."""
        return self.bits / (self.size[0] * self.size[1])

    def to_bytes(self) -> bytes:
        """One safetensors blob; equal images give equal bytes."""
        tensors = {"ids": self.ids.astype(_narrowest(self.codebook_size))}
        if self.cells is not None:
            tensors["cells"] = self.cells.astype(_narrowest(self.grid[0] * self.grid[1]))
        facts = json.dumps({**self._facts(), "sha256": _NO_DIGEST}, sort_keys=True, separators=(",", ":"))
        blank = safetensors.numpy.save(tensors, {"pictish": facts})
        return blank.replace(_NO_DIGEST.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)

    @classmethod
    def from_bytes(cls, blob: bytes, expect_tokenizer: str | None = None) -> "TokenizedImage":
        """Read what `to_bytes` wrote.

        ValueError (one line) for anything else: damaged or foreign bytes, another format version, or, when
        `expect_tokenizer` is given, tokens of another tokenizer.
        """
        tensors, facts = _open(blob)
        if set(facts) != _FIELDS or not set(tensors) <= {"ids", "cells"} or "ids" not in tensors:
            raise ValueError("damaged token file: fields are missing or unknown")
        digest = facts["sha256"]
        if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST) or blob.count(digest.encode()) != 1:
            raise ValueError("damaged token file: its checksum is not readable")
        if hashlib.sha256(blob.replace(digest.encode(), _NO_DIGEST.encode())).hexdigest() != digest:
            raise ValueError("damaged token file: its bytes do not match its checksum")
        ids, cells = tensors["ids"], tensors.get("cells")
        image = cls(ids, cells, facts["grid"], facts["size"], facts["tokenizer"], facts["codebook_size"])
        if ids.dtype != _narrowest(image.codebook_size):
            raise ValueError(
                f"token file with ids as {ids.dtype}; {image.codebook_size} codes need another type"
            )
        if cells is not None and cells.dtype != _narrowest(image.grid[0] * image.grid[1]):
            raise ValueError(f"token file with cells as {cells.dtype}; grid {image.grid} needs another type")
        if expect_tokenizer is not None and image.tokenizer != expect_tokenizer:
            raise ValueError(
                f"tokens of tokenizer {image.tokenizer}, but this model reads those of {expect_tokenizer}"
            )
        return image

    def _facts(self) -> dict[str, Any]:
        return {
            "codebook_size": self.codebook_size,
            "format": FORMAT_VERSION,
            "grid": list(self.grid),
            "size": list(self.size),
            "tokenizer": self.tokenizer,
        }


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as `Tokenizer.encode` returns it: its tokens and, if asked for, features (K, D)."""

    tokens: TokenizedImage
    features: npt.NDArray[np.float32] | None = None  # of the kept patches, in the order of the tokens


def _open(blob: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Tensors and facts of a blob whose format version is ours."""
    if len(blob) > LARGEST:
        raise ValueError(f"a token file of {len(blob):,} bytes; at most {LARGEST:,} are read")
    try:
        if int.from_bytes(blob[:8], "little") > _LONGEST_HEADER:
            raise ValueError("too long a header")
        tensors = safetensors.numpy.load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        (entry,) = header["__metadata__"].items()
        facts = json.loads(entry[1])
        if entry[0] != "pictish" or not isinstance(facts, dict) or "format" not in facts:
            raise ValueError("no pictish entry")
    except Exception as error:  # whatever the readers raise on hostile bytes, the file is not ours
        raise ValueError("not a token file, or a damaged one") from error
    if facts["format"] != FORMAT_VERSION:
        old = isinstance(facts["format"], int) and facts["format"] < FORMAT_VERSION
        raise ValueError(
            f"token file of format version {shown(facts['format'])}; "
            f"this program reads version {FORMAT_VERSION}"
            + (": tokenize the images again with this version" if old else "")
        )
    return tensors, facts


def _narrowest(values: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if values <= _UINT16_VALUES else np.uint32)


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _pair(value: Any, name: str) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_count, value)):
        raise ValueError(f"{name} must be two positive whole numbers, not {shown(value)}")
    pair = (int(value[0]), int(value[1]))
    if pair[0] * pair[1] > _UINT32_VALUES:
        raise ValueError(f"{name} {pair} is larger than 2**32")
    return pair


def _vector(value: Any, name: str, limit: int) -> npt.NDArray[np.int64]:
    """A read-only int64 copy of a vector of whole numbers below `limit`."""
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"{name} must be a vector of whole numbers, not {array.dtype} of shape {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() >= limit):
        raise ValueError(f"{name} must be 0 to {limit - 1}; found {array.min()} to {array.max()}")
    vector = array.astype(np.int64)
    vector.flags.writeable = False
    return vector
