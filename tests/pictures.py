"""Image files made by byte from their formats' definitions, so that no library decides what is right."""

import struct
import zlib

import numpy as np

PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(kind, body, crc=None):
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(rows, width, depth, colour, before=b"", after=b"", end=True):
    """A PNG of packed rows (bytes without the filter); `before` and `after` are chunks around the pixels."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    blob = PNG_START + chunk(b"IHDR", head) + before + chunk(b"IDAT", pixels) + after
    return blob + chunk(b"IEND", b"") if end else blob


def tiff(
    width,
    height,
    bits,
    photometric,
    data,
    *,
    samples=1,
    order="<",
    big=False,
    compression=1,
    rows=None,
    tile=None,
    extra=(),
):
    """A TIFF of one image; `data` is one block or a list of strips or tiles, `extra` has (tag, values).

    All values are written as SHORT (or LONG where they do not fit), as TIFF 6.0 allows.
    """
    blocks = [data] if isinstance(data, bytes) else data
    tags = {256: [width], 257: [height], 258: [bits] * samples, 259: [compression], 262: [photometric]}
    tags |= {277: [samples]} | {tag: list(values) for tag, values in extra}
    if tile:
        tags |= {
            322: [tile[0]],
            323: [tile[1]],
            324: [0] * len(blocks),
            325: [len(block) for block in blocks],
        }
    else:
        tags |= {278: [rows or height], 273: [0] * len(blocks), 279: [len(block) for block in blocks]}
    head, entry, inline, count = (16, "HHQ", 8, "Q") if big else (8, "HHI", 4, "H")
    place_letter = "Q" if big else "I"
    directory = struct.calcsize("<" + count) + len(tags) * (struct.calcsize("<" + entry) + inline) + inline
    at = head + directory

    def packed(tag, values):
        wide = tag in (273, 324) or max(values) > 65_535
        return 4 if wide else 3, struct.pack(f"{order}{len(values)}{'I' if wide else 'H'}", *values)

    outside = sum(
        len(packed(tag, values)[1]) for tag, values in tags.items() if len(packed(tag, values)[1]) > inline
    )
    places = (at + outside + np.cumsum([0, *map(len, blocks)])[:-1]).tolist()
    tags[324 if tile else 273] = places
    entries, values_behind = b"", b""
    for tag, values in sorted(tags.items()):
        kind, blob = packed(tag, values)
        entries += struct.pack(order + entry, tag, kind, len(values))
        if len(blob) > inline:
            entries += struct.pack(order + place_letter, at + len(values_behind))
            values_behind += blob
        else:
            entries += blob.ljust(inline, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    start += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    return (
        start
        + struct.pack(order + count, len(tags))
        + entries
        + bytes(inline)
        + values_behind
        + b"".join(blocks)
    )
