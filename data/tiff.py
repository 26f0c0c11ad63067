"""TIFF images whose samples Pillow misreads or cannot hold: other depths, numbers and meanings of black.

Pillow opens what its own table lists, and hands out samples of more than 8 bits as they are stored, whatever
their depth and whether 0 means white. Here its copy of libtiff undoes the compression alone: it is shown the
rows as plain bytes, in a TIFF of 8-bit grey, and the samples are interpreted as TIFF 6.0 defines them.
"""

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 317, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339

_USED = {
    *(
        _WIDTH,
        _HEIGHT,
        _BITS,
        _COMPRESSION,
        _PHOTOMETRIC,
        _FILL_ORDER,
        _STRIP_OFFSETS,
        _ORIENTATION,
        _SAMPLES,
    ),
    *(_STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES),
    *(_EXTRA_SAMPLES, _SAMPLE_FORMAT),
}

_SHORT, _LONG = 3, 4  # types of a tag's values
_NUMBERS = {1: "u1", _SHORT: "u2", _LONG: "u4", 16: "u8"}  # types of whole numbers
_OF_BYTES = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})  # compressions that give back bytes, not samples
_COLOURS = {0: 1, 1: 1, 2: 3}  # photometric interpretation: its samples; white is 0, black is 0, RGB
_UNSIGNED = 1
_SIGNED = 2
_FLOAT = 3
_FORMATS = {_UNSIGNED: _UNSIGNED, _SIGNED: _SIGNED, _FLOAT: _FLOAT, 4: _UNSIGNED}  # 4: not said
_MOST_ENTRIES = 65_535  # of a directory; BigTIFF can count further
_BYTES_A_PIXEL = 4  # what `max_pixels` counts with
_BAND = 1 << 20  # samples that are interpreted at a time
_OVERSHOOT = 0.1  # beyond [0, 1], as resampling leaves it


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the samples of a TIFF's first image lie in the file."""

    order: str  # of bytes, as numpy says it
    width: int
    height: int
    bits: int
    number: int  # _UNSIGNED, _SIGNED, _FLOAT
    photometric: int
    samples: int
    alpha: int  # 0: none, 1: colours are multiplied by it, 2: they are not
    planes: int  # 1, or one a sample
    compression: int
    predictor: int
    fill_order: int
    orientation: int
    block: tuple[int, int]  # width and height of a tile, or of a strip
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return math.ceil(self.width / self.block[0])

    @property
    def block_samples(self) -> int:
        """Samples in a row of a block."""
        return self.block[0] * (self.samples if self.planes == 1 else 1)

    @property
    def block_bytes(self) -> int:
        """Bytes of a row of a block."""
        return (self.block_samples * self.bits + 7) // 8


def read_deep(blob: bytes, max_pixels: int) -> tuple[Image.Image, int] | None:
    """A TIFF as RGB over white and the orientation still to be applied; None when Pillow reads it rightly.

    The samples may take four bytes for each of `max_pixels`, which Pillow's own limit must let pass.
    ValueError with the reason for one that is not read; damaged files may raise anything.
    """
    tags = _first_directory(blob)
    compression = _number(tags, _COMPRESSION, 1)
    if compression not in COMPRESSION_INFO:
        raise ValueError(f"TIFF of compression {compression}, which is not read")
    samples = _number(tags, _SAMPLES, 1)
    bits = (tags.get(_BITS) or (1,))[:samples]
    number = _FORMATS.get(_number(tags, _SAMPLE_FORMAT, _UNSIGNED))
    photometric = _number(tags, _PHOTOMETRIC, 0)
    if _pillow_is_right(blob, bits, number, photometric, _number(tags, _PLANAR, 1)):
        return None
    kind = f"TIFF of {bits[0]}-bit samples"
    if len(set(bits)) > 1:
        raise ValueError(
            f"TIFF of samples of different depth ({', '.join(map(str, bits))} bits), which is not read"
        )
    if photometric not in _COLOURS:
        raise ValueError(f"{kind} and photometric interpretation {photometric}, which is not read")
    if number not in (_UNSIGNED, _FLOAT):
        raise ValueError(f"{kind} that are signed or complex; their black and white are not defined")
    if compression not in _OF_BYTES:
        raise ValueError(f"{kind} under {COMPRESSION_INFO[compression]} compression, which is not read")
    if bits[0] not in ({16, 32, 64} if number == _FLOAT else {*range(1, 17), 32, 64}):
        raise ValueError(
            f"{kind} as {'floating point' if number == _FLOAT else 'whole'} numbers, which is not read"
        )
    layout = _layout(blob, tags, bits[0], number, photometric, samples, compression)
    _check_size(layout, max_pixels)
    return _to_rgb(layout, [_rows(layout, blob, plane) for plane in range(layout.planes)]), layout.orientation


def _pillow_is_right(
    blob: bytes, bits: tuple[int, ...], number: int | None, photometric: int, planar: int
) -> bool:
    """Whether Pillow opens such samples and takes them for what they are."""
    try:
        with Image.open(io.BytesIO(blob), formats=("TIFF",)):
            pass
    except Image.UnidentifiedImageError:
        return False
    grey = photometric in (0, 1)
    if number == _SIGNED:  # as Pillow itself writes its mode I
        return grey and set(bits) == {32}
    return number == _UNSIGNED and (max(bits) <= 8 or (set(bits) == {16} and not grey and planar == 1))


def _first_directory(blob: bytes) -> dict[int, tuple[int, ...]]:
    """The tags of the first image that hold whole numbers and are used here."""
    order = ">" if blob[:1] == b"M" else "<"
    if 43 in blob[2:4]:  # BigTIFF
        entry, inline, start = struct.Struct(f"{order}HHQ"), 8, f"{order}Q"
        (at,) = struct.unpack_from(f"{order}Q", blob, 8)
    else:
        entry, inline, start = struct.Struct(f"{order}HHI"), 4, f"{order}H"
        (at,) = struct.unpack_from(f"{order}I", blob, 4)
    (entries,) = struct.unpack_from(start, blob, at)
    at += struct.calcsize(start)
    if entries > _MOST_ENTRIES:
        raise ValueError(f"TIFF of {entries:,} tags")
    found: dict[int, tuple[int, ...]] = {}
    for _ in range(entries):
        tag, kind, count = entry.unpack_from(blob, at)
        place = at + entry.size
        at = place + inline
        if tag in _USED and tag not in found and kind in _NUMBERS:
            number = np.dtype(f"{order}{_NUMBERS[kind]}")
            if count * number.itemsize > inline:
                (place,) = struct.unpack_from(f"{order}Q" if inline == 8 else f"{order}I", blob, place)
            found[tag] = tuple(np.frombuffer(blob, number, count, place).tolist())
    return found


def _number(tags: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    return (tags.get(tag) or (default,))[0]


def _layout(
    blob: bytes,
    tags: dict[int, tuple[int, ...]],
    bits: int,
    number: int,
    photometric: int,
    samples: int,
    compression: int,
) -> _Layout:
    width, height = _number(tags, _WIDTH, 0), _number(tags, _HEIGHT, 0)
    colours = _COLOURS[photometric]
    extra = _number(tags, _EXTRA_SAMPLES, 2 if samples == colours + 1 else 0)
    tiled = _TILE_OFFSETS in tags
    offsets = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ())
    rows = min(_number(tags, _STRIP_ROWS, height), height)
    block = (_number(tags, _TILE_WIDTH, 0), _number(tags, _TILE_HEIGHT, 0)) if tiled else (width, rows)
    if samples < colours or 0 in (width, height, *block):
        raise ValueError(f"TIFF of {width} x {height} pixels of {samples} samples in blocks of {block}")
    planes = samples if _number(tags, _PLANAR, 1) == 2 else 1
    row = (block[0] * (samples // planes) * bits + 7) // 8  # bytes
    plain = (row * block[1],) * len(offsets)
    layout = _Layout(
        order=">" if blob[:1] == b"M" else "<",
        width=width,
        height=height,
        bits=bits,
        number=number,
        photometric=photometric,
        samples=samples,
        alpha=extra if samples > colours and extra in (1, 2) else 0,
        planes=planes,
        compression=compression,
        predictor=_number(tags, _PREDICTOR, 1) if compression not in (1, 32773) else 1,
        fill_order=_number(tags, _FILL_ORDER, 1),
        orientation=_number(tags, _ORIENTATION, 1),
        block=block,
        tiled=tiled,
        offsets=offsets,
        counts=plain if compression == 1 else tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ()),
    )
    blocks = layout.planes * layout.across * math.ceil(height / block[1])
    if (found := min(len(layout.offsets), len(layout.counts))) < blocks:
        raise ValueError(f"TIFF of {blocks} strips or tiles that has {found}")
    if layout.predictor not in (1, 2, 3) or (layout.predictor > 1 and bits not in (8, 16, 32, 64)):
        raise ValueError(f"TIFF of {bits}-bit samples under predictor {layout.predictor}, which is not read")
    return layout


def _check_size(layout: _Layout, max_pixels: int) -> None:
    """ValueError when more bytes would be decoded than pixels of `_BYTES_A_PIXEL` bytes may have."""
    rows = math.ceil(layout.height / layout.block[1]) * layout.block[1]
    total = layout.planes * layout.across * layout.block_bytes * rows
    if total > _BYTES_A_PIXEL * max_pixels:
        raise ValueError(
            f"{layout.width * layout.height:,} pixels that take {total:,} bytes; at most {max_pixels:,} "
            f"pixels of {_BYTES_A_PIXEL} bytes are decoded (max_pixels)"
        )


def _rows(layout: _Layout, blob: bytes, plane: int) -> npt.NDArray[np.uint8]:
    """Bytes of a plane's rows without compression, (height, blocks side by side, bytes of a block's row)."""
    count = layout.across * math.ceil(layout.height / layout.block[1])
    chosen = slice(plane * count, (plane + 1) * count)
    blocks = [
        blob[offset : offset + length]
        for offset, length in zip(layout.offsets[chosen], layout.counts[chosen], strict=True)
    ]
    as_bytes = _grey_tiff(layout, blocks)
    with Image.open(io.BytesIO(as_bytes), formats=("TIFF",)) as image:
        rows = np.asarray(image)
    return rows.reshape(layout.height, layout.across, layout.block_bytes)


def _grey_tiff(layout: _Layout, blocks: list[bytes]) -> bytes:
    """A TIFF of 8-bit grey whose pixels are the bytes of the rows."""
    start = 8 + 2 + 12 * 11 + 4
    counts = [len(block) for block in blocks]
    places = start + 8 * len(blocks) + np.cumsum([0, *counts[:-1]])
    lists = struct.pack(f"<{2 * len(blocks)}I", *map(int, places), *counts)
    tags = {
        _WIDTH: layout.across * layout.block_bytes,
        _HEIGHT: layout.height,
        _BITS: 8,
        _COMPRESSION: layout.compression,
        _PHOTOMETRIC: 1,
        _FILL_ORDER: layout.fill_order,
        _SAMPLES: 1,
    }
    if layout.tiled:
        offsets, lengths = _TILE_OFFSETS, _TILE_BYTES
        tags |= {_TILE_WIDTH: layout.block_bytes, _TILE_HEIGHT: layout.block[1]}
    else:
        offsets, lengths = _STRIP_OFFSETS, _STRIP_BYTES
        tags |= {_STRIP_ROWS: layout.block[1], _PLANAR: 1}
    listed = {offsets: (start, places[0]), lengths: (start + 4 * len(blocks), counts[0])}
    entries = {
        tag: struct.pack("<HHII", tag, _LONG if value > 0xFFFF else _SHORT, 1, value)
        for tag, value in tags.items()
    }
    for tag, (place, first) in listed.items():
        value = place if len(blocks) > 1 else int(first)
        entries[tag] = struct.pack("<HHII", tag, _LONG, len(blocks), int(value))
    directory = b"".join(entries[tag] for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    return head + lists + b"".join(blocks)


def _to_rgb(layout: _Layout, planes: list[npt.NDArray[np.uint8]]) -> Image.Image:
    """RGB over white from the bytes of each plane's rows."""
    colours = _COLOURS[layout.photometric]
    result = np.empty((layout.height, layout.width, 3), np.uint8)
    band = max(1, _BAND // (layout.across * layout.block[0] * layout.samples))
    for top in range(0, layout.height, band):
        parts = [_values(layout, rows[top : top + band]) for rows in planes]
        values = np.concatenate(parts, axis=2)  # (rows, width, samples) in [0, 1]
        colour = values[..., :colours]
        if layout.photometric == 0:
            colour = 1 - colour
        if layout.alpha:
            alpha = values[..., colours : colours + 1]
            colour = (colour if layout.alpha == 1 else colour * alpha) + (1 - alpha)
        result[top : top + band] = np.rint(colour.clip(0, 1) * 255)
    return Image.fromarray(result)


def _values(layout: _Layout, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Samples of some rows, (rows, width, samples of the plane), 1 where they are at their highest."""
    count, (width, _) = layout.samples if layout.planes == 1 else 1, layout.block
    height = len(rows)
    numbers: npt.NDArray[Any]
    if layout.bits in (8, 16, 32, 64):
        numbers = _undo_predictor(layout, np.ascontiguousarray(rows), count)
    else:
        bits = np.unpackbits(rows, axis=2)[:, :, : layout.block_samples * layout.bits]
        weights = 1 << np.arange(layout.bits - 1, -1, -1, dtype=np.uint32)
        numbers = bits.reshape(height, layout.across, -1, layout.bits) @ weights
    whole = numbers.reshape(height, layout.across * width, count)[:, : layout.width].astype(np.float64)
    if layout.number == _FLOAT:
        return unit_floats(whole)
    scaled: npt.NDArray[np.float64] = whole / (2**layout.bits - 1)
    return scaled


def _undo_predictor(layout: _Layout, rows: npt.NDArray[np.uint8], count: int) -> npt.NDArray[Any]:
    """Numbers of the file's byte order from bytes, (rows, blocks, samples), differences added up."""
    size = layout.bits // 8
    letter = "f" if layout.number == _FLOAT else "u"
    if layout.predictor == 3:  # bytes of equal weight lie together, the highest first, as differences
        height, across, length = rows.shape
        added = rows.reshape(height, across, -1, count).cumsum(axis=2, dtype=np.uint8)
        apart = added.reshape(height, across, size, length // size).swapaxes(2, 3)
        return np.ascontiguousarray(apart).view(f">{letter}{size}")[..., 0]
    if layout.predictor == 2:
        plain = rows.view(f"{layout.order}u{size}").astype(f"u{size}")
        plain = plain.reshape(*plain.shape[:2], -1, count).cumsum(axis=2, dtype=plain.dtype)
        return plain.reshape(*plain.shape[:2], -1).view(f"{letter}{size}")
    return rows.view(f"{layout.order}{letter}{size}")


def unit_floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Floating point samples as they are; ValueError unless they lie in [0, 1], but for a small overshoot."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):  # not: of no number either
        raise ValueError(f"floating point pixels from {low:.4g} to {high:.4g}; 0 is black and 1 is white")
    return values.astype(np.float64)
