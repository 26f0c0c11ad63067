"""Images whose pixels are whole in damaged files; and those that lack some, which stay refused."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data as photographs

from pictish.data.images import load_image
from tests.pictures import PNG_START, chunk, png

ROWS = [bytes(range(24 * y, 24 * y + 24)) for y in range(8)]  # 8 x 8 pixels of RGB
LONG_TEXT = zlib.compress(b"x" * (2 << 20))


def photograph(kind, **options):
    out = io.BytesIO()
    Image.fromarray(photographs.astronaut()[::8, ::8]).save(out, kind, **options)
    return out.getvalue()


def same(blob, whole):
    return np.array_equal(np.asarray(load_image(blob)), np.asarray(load_image(whole)))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}]
)
def test_a_jpeg_without_its_end_marker(options):
    whole = photograph("JPEG", quality=90, **options)
    for damaged in (whole[:-2], whole[:-1], whole[:-2] + bytes(100)):
        assert same(damaged, whole)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_lacks_pixels_is_refused(options):
    whole = photograph("JPEG", quality=90, **options)
    scans = [found.start() for found in re.finditer(rb"\xff[\xc4\xda]", whole)]
    for cut in (3, 4, 10, 50, len(whole) // 2):
        with pytest.raises(ValueError, match="cannot be decoded"):
            load_image(whole[:-cut])
    with pytest.raises(ValueError, match="cannot be decoded"):  # between two scans, or before the only one
        load_image(whole[: scans[-1]])


def test_a_jpeg_with_an_orientation_and_no_end_is_turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    whole = photograph("JPEG", exif=exif)
    assert same(whole[:-2], whole)


def test_a_png_without_its_end():
    whole = png(ROWS, 8, 8, 2)
    expected = np.frombuffer(b"".join(ROWS), np.uint8).reshape(8, 8, 3)
    for cut in range(1, 21):  # of IEND (12 bytes), the checksum of IDAT and that of its zlib stream
        assert np.array_equal(np.asarray(load_image(whole[:-cut])), expected), cut
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_image(whole[:-24])


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"iTXt", b"parameters\0\1\0\0\0" + LONG_TEXT),
        chunk(b"zTXt", b"workflow\0\0" + LONG_TEXT),
        chunk(b"iCCP", b"icc\0\0" + LONG_TEXT),
        chunk(b"tEXt", b"prompt\0" + b"x" * (2 << 20)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG_TEXT),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG_TEXT),
        chunk(b"tEXt", b"prompt\0a cat", crc=1),
        chunk(b"eXIf", b"II*\0", crc=1),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0\0"),
        chunk(b"iCCP", b"icc\0\7abc"),
        chunk(b"tRNS", b"\0"),
    ],
    ids=lambda text: f"{text[4:8].decode()} of {len(text)}",
)
def test_metadata_of_a_png_do_not_decide(text):
    expected = np.frombuffer(b"".join(ROWS), np.uint8).reshape(8, 8, 3)
    for blob in (png(ROWS, 8, 8, 2, before=text), png(ROWS, 8, 8, 2, after=text)):
        assert np.array_equal(np.asarray(load_image(blob)), expected)


def test_what_is_sound_beside_the_damage_is_kept():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    sound = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    damage = chunk(b"tEXt", b"prompt\0a cat", crc=1)
    key = chunk(b"tRNS", struct.pack(">3H", *ROWS[0][:3]))
    whole, damaged = (
        np.asarray(load_image(png(ROWS, 8, 8, 2, before=more + sound + key))) for more in (b"", damage)
    )
    assert whole[0, -1].tolist() == [255, 255, 255], "turned clockwise: the first pixel is at the top right"
    assert np.array_equal(whole, damaged)


def test_a_png_whose_pixels_are_in_doubt_is_refused():
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in ROWS))
    for blob in (
        PNG_START + chunk(b"IHDR", head, crc=1) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""),
        PNG_START + chunk(b"IHDR", head) + chunk(b"IDAT", pixels[:-4] + b"abcd") + chunk(b"IEND", b""),
        png(ROWS, 8, 8, 2, before=chunk(b"tEXt", b"a\0b", crc=1))[:-30],
    ):
        with pytest.raises(ValueError, match="cannot be decoded"):
            load_image(blob)


def test_a_bomb_behind_damage_is_refused_before_decoding():
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    damage = chunk(b"tEXt", b"prompt\0a cat", crc=1)
    blob = PNG_START + chunk(b"IHDR", head) + damage + chunk(b"IDAT", LONG_TEXT) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"900,000,000 pixels|cannot be decoded"):
        load_image(blob)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
def test_a_webp_whose_metadata_are_cut(options):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a cat" * 50
    whole = photograph("WEBP", exif=exif, **options)
    start = whole.rindex(b"EXIF")
    for length in (start, start + 4, start + 8, len(whole) - 5):
        assert same(whole[:length], whole)
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_image(whole[: start - 40])


def test_a_gif_without_its_trailer():
    whole = photograph("GIF")
    assert same(whole[:-1], whole)
    assert same(whole[:-2], whole)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (photograph("JPEG")[:200], "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        (photograph("JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "12-bit"),
        (b"II*\0" + bytes(20), "cannot be decoded"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC|cannot be decoded"),  # without and with pillow-heif
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL"),
        (b"8BPS\0\1" + bytes(20), "Photoshop"),
    ],
)
def test_a_picture_that_is_not_read_is_not_called_no_picture(blob, words):
    with pytest.raises(ValueError, match=words) as error:
        load_image(blob)
    assert "not an image" not in str(error.value)
    assert "\n" not in str(error.value)


def test_text_that_begins_like_a_bitmap_is_no_picture():
    with pytest.raises(ValueError, match="not an image"):
        load_image(b"BMW, a maker of cars, and some more of text\n" * 3)
