"""TIFFs whose samples Pillow misreads or cannot hold; what is right follows from TIFF 6.0 alone."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from pictish.data.images import find_images, load_image
from tests.pictures import tiff

FLOAT, SIGNED = (339, (3,)), (339, (2,))
UNASSOCIATED, ASSOCIATED = (338, (2,)), (338, (1,))


def grey(source):
    """The pixels of a grey image, flat."""
    pixels = np.asarray(load_image(source))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].ravel().tolist()


def bits(values, depth):
    """Whole numbers packed without gaps, the highest bit first."""
    text = "".join(f"{value:0{depth}b}" for value in values)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 32])
def test_the_highest_number_of_a_depth_is_white_or_black(depth, photometric):
    top = 2**depth - 1
    values = [0, top // 4, top // 2, top]
    data = (
        bits(values, depth)
        if depth not in (16, 32)
        else struct.pack(f"<4{'H' if depth == 16 else 'I'}", *values)
    )
    expected = [value / top * 255 for value in values]
    expected = [255 - level for level in expected] if photometric == 0 else expected
    found = grey(tiff(4, 1, depth, photometric, data))
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 0.5


def test_dark_whole_numbers_of_32_bits_stay_dark():
    assert grey(tiff(3, 1, 32, 1, struct.pack("<3I", 0, 65_535, 2**31))) == [0, 0, 128]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("letter", "depth"), [("e", 16), ("f", 32), ("d", 64)])
def test_floating_point_goes_from_0_to_1(letter, depth, order, big):
    data = struct.pack(f"{order}5{letter}", 0, 0.25, 0.5, 1, 1.05)
    assert grey(tiff(5, 1, depth, 1, data, order=order, big=big, extra=[FLOAT])) == [0, 64, 128, 255, 255]


def test_a_bigtiff_is_found_whatever_it_is_called(tmp_path):
    (tmp_path / "scan").write_bytes(tiff(2, 1, 8, 1, b"\0\xff", big=True))
    (found,) = find_images([tmp_path])
    assert grey(found.path) == [0, 255]


@pytest.mark.parametrize("values", [(0, 255), (-1, 1), (0, float("nan")), (0, float("inf"))])
def test_floating_point_without_a_known_white_is_refused(values):
    with pytest.raises(ValueError, match=r"floating point pixels from .*; 0 is black and 1 is white"):
        load_image(tiff(2, 1, 32, 1, struct.pack("<2f", *values), extra=[FLOAT]))


def test_float_colours_with_alpha_lie_over_white():
    data = struct.pack("<8f", 1, 0, 0.5, 1, 1, 0, 0.5, 0.5)
    pixels = np.asarray(load_image(tiff(2, 1, 32, 2, data, samples=4, extra=[FLOAT, UNASSOCIATED])))
    assert pixels[0].tolist() == [[255, 0, 128], [255, 128, 191]]


def test_deep_grey_with_alpha():
    data = struct.pack("<8H", 0, 65_535, 0, 32_768, 65_535, 0, 30_000, 65_535)
    assert grey(tiff(4, 1, 16, 1, data, samples=2, extra=[UNASSOCIATED])) == [0, 127, 255, 117]
    assert grey(tiff(4, 1, 16, 1, data, samples=2)) == [0, 127, 255, 117], "a second sample is alpha"
    assert grey(tiff(4, 1, 16, 1, data, samples=2, extra=[(338, (0,))])) == [0, 0, 255, 117], (
        "unless it says so"
    )
    inverted = struct.pack("<4H", 0, 65_535, 65_535, 32_768)
    assert grey(tiff(2, 1, 16, 0, inverted, samples=2, extra=[UNASSOCIATED])) == [255, 127]


def test_colours_multiplied_by_alpha():
    data = struct.pack("<4H", 32_768, 32_768, 0, 32_768)  # white and black, each half transparent
    assert grey(tiff(2, 1, 16, 1, data, samples=2, extra=[ASSOCIATED])) == [255, 127]


def noise(shape, number):
    levels = np.random.default_rng(0).random(shape)
    return (
        levels.astype(number)
        if number[1] == "f"
        else (levels * (2.0 ** (8 * int(number[2:])) - 1)).astype(number)
    )


def test_compression_differences_tiles_and_planes():
    """19 x 21 pixels of three samples, in tiles and strips, compressed, with either predictor."""
    number, (height, width, samples) = ">u2", (19, 21, 3)
    levels = noise((height, width, samples), ">f4")
    expected = np.rint(levels.astype(np.float64) * 255)

    def check(blob):
        assert np.abs(np.asarray(load_image(blob)).astype(int) - expected).max() <= 1

    whole = (levels * 65_535).astype(number)
    planes = [
        zlib.compress(np.ascontiguousarray(whole[top : top + 8, :, n]).tobytes())
        for n in range(3)
        for top in (0, 8, 16)
    ]
    check(
        tiff(width, height, 16, 2, planes, samples=3, order=">", compression=8, rows=8, extra=[(284, (2,))])
    )

    padded = np.zeros((32, 32, samples), number)
    padded[:height, :width] = whole
    tiles = []
    for top, left in ((0, 0), (0, 16), (16, 0), (16, 16)):
        tile = padded[top : top + 16, left : left + 16].astype(np.uint16)
        tile[:, 1:] -= tile[:, :-1].copy()  # horizontal differencing
        tiles.append(zlib.compress(tile.astype(number).tobytes()))
    extra = [(317, (2,)), (284, (2,))]
    one = [
        zlib.compress(_differences(padded[top : top + 16, left : left + 16, n], number))
        for n in range(3)
        for top, left in ((0, 0), (0, 16), (16, 0), (16, 16))
    ]
    check(tiff(width, height, 16, 2, one, samples=3, order=">", compression=8, tile=(16, 16), extra=extra))

    floats = padded.astype(np.float64) / 65_535
    one = [
        zlib.compress(_float_differences(floats[top : top + 16, left : left + 16].astype(">f4")))
        for top, left in ((0, 0), (0, 16), (16, 0), (16, 16))
    ]
    check(
        tiff(width, height, 32, 2, one, samples=3, compression=8, tile=(16, 16), extra=[(317, (3,)), FLOAT])
    )


def _differences(plane, number):
    values = plane.astype(np.uint16)
    values[:, 1:] -= values[:, :-1].copy()
    return values.astype(number).tobytes()


def _float_differences(block):
    """Adobe's technical note 3: bytes of one weight side by side, the highest first, then differences."""
    height, width, samples = block.shape
    weights = (
        block.reshape(height, width * samples, 1).view(np.uint8).swapaxes(1, 2).reshape(height, -1).copy()
    )
    weights[:, samples:] -= weights[:, :-samples].copy()
    return weights.tobytes()


def test_an_orientation_is_applied():
    data = struct.pack("<6H", 0, 65_535, 0, 0, 0, 0)  # white at the top, in the middle
    pixels = np.asarray(load_image(tiff(3, 2, 16, 1, data, extra=[(274, (6,))])))[..., 0]
    assert pixels.tolist() == [[0, 0], [0, 255], [0, 0]]


def test_grey_of_16_bits_keeps_its_pixels():
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = (values.astype(np.int64) * 255 + 32_767) // 65_535
    assert np.array_equal(np.asarray(load_image(tiff(256, 256, 16, 1, values.tobytes())))[..., 0], expected)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (tiff(2, 1, 16, 1, bytes(4), extra=[SIGNED]), "16-bit samples that are signed"),
        (tiff(2, 1, 24, 1, bytes(6)), "24-bit samples"),
        (tiff(2, 1, 16, 8, bytes(12), samples=3), "photometric interpretation 8"),
        (tiff(2, 1, 16, 1, bytes(4), compression=34887), "compression 34887"),
        (tiff(2, 1, 12, 1, bytes(3), compression=7), "12-bit samples under jpeg compression"),
        (tiff(2, 1, 16, 3, bytes(4)), "photometric interpretation 3"),
    ],
)
def test_what_is_not_read_is_said(blob, words):
    with pytest.raises(ValueError, match=words) as error:
        load_image(blob)
    assert "not an image" not in str(error.value)


def test_samples_are_bounded_before_they_are_decoded():
    flat = zlib.compress(bytes(1 << 20))
    start = time.process_time()
    for blob in (
        tiff(60_000, 60_000, 64, 2, flat, samples=3, compression=8, extra=[FLOAT]),
        tiff(1, 1, 32, 1, flat, compression=8, tile=(1 << 20, 1 << 20), extra=[FLOAT]),
    ):
        with pytest.raises(ValueError, match="at most 128,000,000"):
            load_image(blob)
    assert time.process_time() - start < 1
    blob = tiff(4, 1, 32, 1, bytes(16))
    assert load_image(blob, max_pixels=4).size == (4, 1)
    with pytest.raises(ValueError, match="at most 3"):
        load_image(blob, max_pixels=3)


def test_a_cut_deep_tiff_is_refused():
    blob = tiff(64, 64, 32, 1, bytes(4 * 64 * 64))
    for length in (20, 200, len(blob) - 1):
        with pytest.raises(ValueError, match="cannot be decoded"):
            load_image(blob[:length])


def test_whoever_holds_it_gets_the_same_pixels(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(4, 1, 12, 1, bits([0, 1000, 2000, 4095], 12)))
    expected = grey(path)
    assert expected == [0, 62, 125, 255]
    with Image.open(path) as opened:
        assert grey(opened) == expected
    assert grey(Image.open(io.BytesIO(path.read_bytes()))) == expected
