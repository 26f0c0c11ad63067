"""How a drawn image came about, inside its PNG: one iTXt chunk `pictish`, enough to draw the image again.

See docs/formats.md for the JSON in it. It is found by walking the file's chunks: no pixel is decoded, and no
more than a chunk of `LIMIT` bytes is held.
"""

import base64
import hashlib
import json
import stat
import zlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field

from pictish.configs import Config, parse
from pictish.data.images import png_bytes
from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line, printable
from pictish.io.signatures import PNG

FORMAT_VERSION: Final = 2  # tokens as token files of version 2
KEY = "pictish"
LIMIT = 1 << 20  # bytes of the text; a prompt is one word of a command line, which Linux limits to 128 KiB
_MOST_CHUNKS = 100_000
_SAID = 300  # letters of an error, which may quote the file

Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Request(Config):
    """One image as it was asked for; a number that is None was left to the model."""

    command: Literal["generate", "edit"]
    prompt: str | None = None  # of an edit: the instruction
    style: str | None = None
    pictures: tuple[Digest, ...] = ()  # `digest_of` what was given before the words
    seed: int = Field(ge=0, lt=2**64)
    guidance: float | None
    image_guidance: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    best_of: int | None = Field(1, ge=1)  # candidates; of an edit always 1, which needs not say so
    min_tokens: int | None
    max_tokens: int | None
    adaptor: str | None = None  # name of the inner adaptor that the language model was read through
    official_quirks: bool = False
    aspect: str | None = Field(None, pattern=r"^[1-9]\d{0,4}:[1-9]\d{0,4}$")  # width:height
    steps: int | None = Field(ge=0, le=1000)  # 0: the preview
    pixel_guidance: float | None
    scheduler: str | None
    keep: bool | None = None  # of an edit: whether pixels of the source stay
    region: str | None = Field(None, pattern=r"^\d{1,6}(,\d{1,6}){3}$")  # of an edit: x,y,width,height
    lowres: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    quantize: Literal["int8", "int4"] | None = None  # weights of the language model
    upscale: Literal[1, 2, 4] | None = None
    size: int | None = Field(ge=1, le=16_384)

    @property
    def words(self) -> str | None:
        """The prompt as the model reads it, with its style in the form of the training captions."""
        return self.prompt if self.style is None else f"{self.prompt}, {self.style} style"

    def same_tokens(self, other: "Request") -> bool:
        """Whether both ask for the same tokens; what remains are settings of the pixels."""
        pixels = {"steps", "pixel_guidance", "scheduler", "keep", "lowres", "upscale", "size"}
        tokens = set(Request.model_fields) - pixels
        return self.model_dump(include=tokens) == other.model_dump(include=tokens)


class Origin(Request):
    """A request and what came of it: settings as they were used, the models, and the image's tokens."""

    format: Literal[2] = FORMAT_VERSION
    best_of: int = Field(1, ge=1)  # this and the next are missing in images of earlier versions
    upscale: Literal[1, 2, 4] = 1
    pictish: str  # version
    tokenizer: Fingerprint
    lm: Fingerprint
    adaptor_weights: Fingerprint | None = None
    decoder: Fingerprint
    upscaler: Fingerprint | None = None
    tokens: str  # base64 of the bytes of a token file

    def image(self) -> TokenizedImage:
        """The tokens; ValueError as `TokenizedImage.from_bytes`."""
        return TokenizedImage.from_bytes(base64.b64decode(self.tokens, validate=True), self.tokenizer)


def digest_of(picture: Image.Image) -> str:
    """sha256 of an image's pixels, whatever file they came from: of the image as a binary PPM file."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(b"P6\n%d %d\n255\n" % rgb.size + rgb.tobytes()).hexdigest()


def png_with_origin(picture: Image.Image, origin: Origin) -> bytes:
    """The image as PNG, its origin inside; equal origins and pixels give equal bytes."""
    info = PngInfo()
    facts = origin.model_dump(mode="json")
    info.add_itxt(KEY, json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    return png_bytes(picture, info)


def read_origin(path: Path) -> Origin:
    """How the image in a file was drawn.

    ValueError (one line) for everything that does not say so in full and soundly, OSError when the file
    cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could block for ever
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            text = _text(file)
        if text is None:
            raise ValueError("does not say how it was drawn; images of pictish generate and edit do")
        origin = parse(Origin, _facts(text), "origin")
        origin.image()
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{printable(path)}: {printable(one_line(error))[:_SAID]}") from error
    return origin


def _facts(text: bytes) -> dict[str, Any]:
    """The JSON object of a chunk, when its format version is ours."""
    try:
        facts = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its origin is damaged ({one_line(error)})") from error
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT_VERSION or not isinstance(facts, dict):
        old = isinstance(found, int) and found < FORMAT_VERSION
        raise ValueError(
            f"origin of format version {str(found)[:20]}; this program reads version {FORMAT_VERSION}"
            + (": draw the image again with this version" if old else "")
        )
    return facts


def _text(file: BinaryIO) -> bytes | None:
    """The text of the chunk, at most LIMIT bytes; None where a PNG has none, ValueError for a damaged one."""
    if file.read(len(PNG)) != PNG:
        raise ValueError("not a PNG, so it does not say how it was drawn")
    key = KEY.encode() + b"\0"
    for _ in range(_MOST_CHUNKS):
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if len(kind) < 4 or kind == b"IEND":
            return None
        start = file.read(min(length, len(key))) if kind == b"iTXt" else b""
        if start != key:
            file.seek(length - len(start) + 4, 1)  # and the checksum
            continue
        if length > LIMIT:
            raise ValueError(f"its origin is {length:,} bytes long; at most {LIMIT:,} are read")
        body = file.read(length - len(start))
        if zlib.crc32(kind + start + body) != int.from_bytes(file.read(4), "big"):
            raise ValueError("its origin is damaged: the bytes do not match their checksum")
        return _unpacked(body)
    raise ValueError(f"more than {_MOST_CHUNKS:,} chunks are no image of ours")


def _unpacked(body: bytes) -> bytes:
    """The text of an iTXt chunk, from what follows its key: flag, method, two words ended by zeros, text."""
    pieces = body[2:].split(b"\0", 2)
    if len(pieces) < 3:
        raise ValueError("its origin is damaged: no text in it")
    if body[0] == 0:
        return pieces[2]
    text = zlib.decompressobj().decompress(pieces[2], LIMIT + 1)  # other programs may have packed it
    if len(text) > LIMIT:
        raise ValueError(f"its origin is packed and over {LIMIT:,} bytes long; no more are read")
    return text
