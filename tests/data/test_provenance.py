import base64
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pictish.data.provenance import LIMIT, Origin, digest_of, png_with_origin, read_origin
from pictish.data.tokens import TokenizedImage

TOKENS = TokenizedImage([3, 1, 2], None, (4, 4), (64, 64), "0123456789ab", 64)
FACTS = {
    "command": "generate",
    "prompt": "a naïve 🍎\n\x1b[31mred",
    "style": "noto",
    "pictures": ["5" * 64],
    "seed": 7,
    "guidance": 2.5,
    "image_guidance": 1.5,
    "temperature": 0.8,
    "top_k": None,
    "top_p": 0.95,
    "min_p": None,
    "best_of": 4,
    "min_tokens": 1,
    "max_tokens": None,
    "steps": 4,
    "pixel_guidance": 1.25,
    "scheduler": "DDIMScheduler",
    "size": 32,
    "pictish": "0.1.0",
    "tokenizer": "0123456789ab",
    "lm": "1" * 12,
    "decoder": "2" * 12,
    "tokens": base64.b64encode(TOKENS.to_bytes()).decode(),
}
PICTURE = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def itxt(text: bytes, packed: bool = False, key: bytes = b"pictish") -> bytes:
    text = zlib.compress(text) if packed else text
    return chunk(b"iTXt", key + b"\0" + bytes([packed, 0]) + b"\0\0" + text)


def png(*chunks: bytes) -> bytes:
    """A PNG of no pixels, which a reader of the chunk alone does not miss."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def facts(**changes) -> bytes:
    usual = {
        "format": 2,
        "keep": None,
        "region": None,
        "aspect": None,
        "official_quirks": False,
        "lowres": False,
    }
    usual |= {"precision": "float32", "upscale": 1, "upscaler": None}
    usual |= dict.fromkeys(("adaptor", "adaptor_weights", "quantize"))
    return json.dumps({**usual, **FACTS, **changes}).encode()


@pytest.fixture
def read(tmp_path):
    def read(blob: bytes) -> Origin:
        (tmp_path / "a.png").write_bytes(blob)
        return read_origin(tmp_path / "a.png")

    return read


@pytest.fixture
def refused(read):
    def refused(blob: bytes) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011  (the callers look at the message)
            read(blob)
        line = str(caught.value)
        assert line.isprintable()
        assert len(line) < 600
        assert "a.png: " in line
        return line

    return refused


def test_an_origin_comes_back_as_it_was_and_the_picture_too(tmp_path, read):
    origin = Origin(**FACTS)
    blob = png_with_origin(PICTURE, origin)
    assert blob == png_with_origin(PICTURE.copy(), Origin(**FACTS))
    found = read(blob)
    assert found == origin
    assert found.image() == TOKENS
    assert found.words == "a naïve 🍎\n\x1b[31mred, noto style"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.tobytes() == PICTURE.tobytes()
        (text,) = picture.text.values()
    assert json.loads(text) == json.loads(facts())


def test_an_image_from_before_upscalers_and_candidates_has_neither(read, refused):
    old = json.loads(facts())
    del old["upscale"], old["upscaler"], old["best_of"]
    found = read(png(itxt(json.dumps(old).encode())))
    assert (found.upscale, found.upscaler, found.best_of) == (1, None, 1)
    assert read(png(itxt(facts(upscale=4, upscaler="3" * 12)))).upscaler == "3" * 12
    for changes in ({"upscale": 3}, {"upscale": None}, {"upscaler": "x"}):
        assert "upscale" in refused(png(itxt(facts(**changes))))
    assert "best_of" in refused(png(itxt(facts(best_of=None))))


def test_it_is_found_packed_behind_the_pixels_and_after_other_texts(read):
    others = [
        chunk(b"IHDR", b"x" * 13),
        itxt(b"no JSON", key=b"XML:com.adobe.xmp"),
        chunk(b"IDAT", b"1" * 99),
    ]
    assert read(png(*others, itxt(facts(), packed=True))) == Origin(**FACTS)


def test_what_decides_the_tokens():
    origin = Origin(**FACTS)
    for name, value in {
        "steps": 0,
        "size": 64,
        "scheduler": None,
        "pixel_guidance": 3,
        "keep": True,
        "upscale": 4,
    }.items():
        assert origin.same_tokens(Origin(**{**FACTS, name: value})), name
    changes = {
        "prompt": "a pear",
        "style": None,
        "seed": 8,
        "guidance": 1,
        "top_k": 5,
        "best_of": 1,
        "pictures": (),
    }
    for name, value in changes.items():
        assert not origin.same_tokens(Origin(**{**FACTS, name: value})), name


def test_the_digest_is_of_pixels_and_shape_not_of_the_file():
    white = Image.new("L", (8, 2), 255)
    assert digest_of(white) == digest_of(white.convert("RGB"))
    assert digest_of(white) != digest_of(white.resize((2, 8)))
    assert digest_of(PICTURE) != digest_of(PICTURE.rotate(180))


@pytest.mark.parametrize(
    ("blob", "line"),
    [
        (b"", "not a PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "not a PNG"),
        (png(chunk(b"IHDR", b"x" * 13)), "does not say how it was drawn"),
        (png(chunk(b"tEXt", b"pictish\0{}")), "does not say how it was drawn"),
        (png(itxt(facts(), key=b"pictish2")), "does not say how it was drawn"),
        (png()[:8] + b"\xff\xff\xff\xffIDAT", "does not say how it was drawn"),
        (png(itxt(facts()))[:200], "checksum"),
        (png(itxt(facts())).replace(b"noto", b"nato"), "checksum"),
        (png()[:8] + b"\xff\xff\xff\xffiTXtpictish\0", "at most 1,048,576 are read"),
        (png(chunk(b"iTXt", b"pictish\0")), "damaged"),
        (png(chunk(b"iTXt", b"pictish\0\0\0en")), "damaged"),
        (png(chunk(b"iTXt", b"pictish\0\1\0\0\0nothing packed")), "Error -3"),
        (png(itxt(b"\xff\xfe")), "damaged"),
        (png(itxt(b"{")), "damaged"),
        (png(itxt(b"[" * 500_000)), "damaged"),
        (png(itxt(b"9" * 500_000)), "damaged"),
        (png(itxt(b"[]")), "origin of format version None; this program reads version 2"),
        (png(itxt(facts(format=3))), "origin of format version 3; this program reads version 2"),
        (png(itxt(facts(format=1))), "reads version 2: draw the image again with this version"),
        (png(itxt(facts(format="\x1b[2J" * 999))), "origin of format version"),
        (png(itxt(facts(command="rm"))), "command: got 'rm'"),
        (png(itxt(facts(seed=-1))), "seed: got -1"),
        (png(itxt(facts(size=10**9))), "size: got 1000000000"),
        (png(itxt(facts(guidance=float("nan")))), "guidance: got nan"),
        (png(itxt(facts(lm="../../etc/pw"))), "lm: got"),
        (png(itxt(facts(**{"\x1b[2J" * 9999: 1}))), "unknown key"),
        (png(itxt(facts(prompt=["a"] * 9999))), "prompt: got"),
        (png(itxt(facts(tokens="@@"))), "base64"),
        (png(itxt(facts(tokens=base64.b64encode(b"x" * 99).decode()))), "not a token file"),
        (png(itxt(facts(tokenizer="f" * 12))), "tokens of tokenizer 0123456789ab"),
        (png(itxt(b"{}")), "version None"),
        (png(itxt(b'{"format": 2}')), "command is missing"),
    ],
)
def test_hostile_and_damaged_chunks_are_one_line(refused, blob, line):
    assert line in refused(blob)


def test_a_packed_bomb_is_not_unpacked(refused):
    assert "no more are read" in refused(png(itxt(b" " * 200 * LIMIT, packed=True)))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        read_origin(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such file"):
        read_origin(tmp_path / "none")
