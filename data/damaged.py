"""Images whose pixels are whole in a file that is not.

Decoders refuse files whose end marker is missing, whose text is too long or whose metadata are damaged.
`completed` puts its pixels into a file that they take.
"""

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

from pictish.io.signatures import PNG

_TURNING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # PNG texts that may hold an orientation
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MOST_TEXTS = 4
_LONGEST_TEXT = 1 << 20  # bytes, unpacked: Pillow's bound
_BLOCK = 1 << 16
_PADDINGS = (b"\x00" * 512, b"\xaa" * 512, b"\x55" * 512)  # what might follow the last byte of a JPEG
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # ends the data of a JPEG's scan
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers of JPEG
_SCAN, _END = 0xDA, 0xD9
_METADATA_FLAGS = {b"EXIF": 0x08, b"XMP ": 0x04, b"ICCP": 0x20}  # of WebP's chunk VP8X


def completed(blob: bytes, kind: str, max_pixels: int) -> bytes | None:
    """A file of the same pixels without what is damaged beside them; None when pixels are missing.

    `kind` is Pillow's name of the format; None for those that have nothing to mend. Damaged files may
    raise anything. A JPEG is decoded on the way, within Pillow's limit.
    """
    if kind == "PNG":
        return _completed_png(blob, 9 * max_pixels)  # bytes: 16 bits of RGBA, and a filter a row
    mend: dict[str, Callable[[bytes], bytes | None]] = {"JPEG": _completed_jpeg, "WEBP": _completed_webp}
    return mend[kind](blob) if kind in mend else None


def png_chunks(blob: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Type, data and whether the checksum fits, of each chunk; the last one may be cut off."""
    at = len(PNG)
    while at + 8 <= len(blob):
        length, kind = struct.unpack_from(">I4s", blob, at)
        body = blob[at + 8 : at + 8 + length]
        at += 12 + length
        yield kind, body, blob[at - 4 : at] == zlib.crc32(kind + body).to_bytes(4, "big")


def _completed_png(blob: bytes, most: int) -> bytes | None:
    """Its critical chunks, colour key and orientation; None where header or palette are damaged."""
    kept: list[tuple[bytes, bytes]] = []
    pixels = bytearray()
    texts = 0
    for kind, body, sound in png_chunks(blob):
        if kind == b"IDAT":
            pixels += body
        elif kind in (b"IHDR", b"PLTE"):
            if not sound:
                return None
            kept.append((kind, body))
        elif sound and (kind == b"eXIf" or (kind == b"tRNS" and len(body) >= _key_length(kept))):
            kept.append((kind, body))
        elif sound and kind in _TEXTS and body.startswith(_TURNING) and texts < _MOST_TEXTS:
            texts += 1
            if _is_short(kind, body):
                kept.append((kind, body))
        elif kind == b"IEND":
            break
    kept += [(b"IDAT", _with_checksum(bytes(pixels), most)), (b"IEND", b"")]
    return PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in kept
    )


def _key_length(chunks: list[tuple[bytes, bytes]]) -> int:
    """Bytes of the colour key of a PNG whose first chunk is its header."""
    return {0: 2, 2: 6}.get(chunks[0][1][9], 1)


def _is_short(kind: bytes, body: bytes) -> bool:
    """Whether the text of a PNG's chunk is one that Pillow reads."""
    text = body.partition(b"\0")[2]
    if kind == b"zTXt":
        packed = text[1:]
    elif kind == b"iTXt" and text[:1] != b"\0":
        packed = text[2:].split(b"\0", 2)[-1]
    else:
        return len(text) <= _LONGEST_TEXT
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _LONGEST_TEXT)
    except zlib.error:
        return False
    return unpacker.eof


def _with_checksum(pixels: bytes, most: int) -> bytes:
    """A zlib stream with its checksum where that alone is cut off, if it unpacks to `most` bytes or fewer."""
    unpacker, checksum, total = zlib.decompressobj(-zlib.MAX_WBITS), 1, 0
    for start in range(2, len(pixels), _BLOCK):
        piece = unpacker.decompress(pixels[start : start + _BLOCK])
        checksum, total = zlib.adler32(piece, checksum), total + len(piece)
        if unpacker.eof:
            found = unpacker.unused_data + pixels[start + _BLOCK :]
            right = checksum.to_bytes(4, "big")
            return pixels + right[len(found) :] if right.startswith(found) else pixels
        if total > most:
            break
    return pixels


def _completed_jpeg(blob: bytes) -> bytes | None:
    """With an end marker, when the pixels are the same whatever the bytes before it are."""
    if not _has_all_scans(blob):
        return None
    stem = blob.rstrip(b"\xff")
    end = bytes((0xFF, _END))
    pixels = set()
    for padding in _PADDINGS:
        with Image.open(io.BytesIO(stem + padding + end), formats=("JPEG",)) as image:
            pixels.add(hashlib.sha256(image.tobytes()).digest())
    return stem + end if len(pixels) == 1 else None


def _has_all_scans(blob: bytes) -> bool:
    """Whether the scans of a JPEG give every coefficient of every component to its last bit."""
    missing: dict[int, set[int]] = {}  # component: coefficients
    at = 2
    while found := _MARKER.search(blob, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            break
        if marker == 0x01:  # stands alone
            continue
        length = int.from_bytes(blob[at : at + 2], "big")
        body = blob[at + 2 : at + length]
        at += length
        if marker in _FRAMES:
            missing = {body[6 + 3 * index]: set(range(64)) for index in range(body[5])}
        elif marker == _SCAN:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            if bits & 15 == 0:  # no lower bits are to come
                for index in range(count):
                    missing[body[1 + 2 * index]] -= set(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _completed_webp(blob: bytes) -> bytes | None:
    """Its whole chunks; None where none of them holds pixels."""
    chunks: list[tuple[bytes, bytearray]] = []
    at = 12
    while at + 8 <= len(blob):
        kind, length = struct.unpack_from("<4sI", blob, at)
        body = bytearray(blob[at + 8 : at + 8 + length])
        if len(body) == length:
            chunks.append((kind, body))
        at += 8 + length + length % 2
    kinds = {kind for kind, _ in chunks}
    if not kinds & {b"VP8 ", b"VP8L", b"ANMF"}:
        return None
    for kind, body in chunks:
        if kind == b"VP8X":
            body[0] &= ~sum(flag for name, flag in _METADATA_FLAGS.items() if name not in kinds)
    inner = b"WEBP" + b"".join(
        struct.pack("<4sI", kind, len(body)) + body + bytes(len(body) % 2) for kind, body in chunks
    )
    return b"RIFF" + struct.pack("<I", len(inner)) + inner
