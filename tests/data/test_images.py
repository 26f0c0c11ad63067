import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data as photographs

from pictish.data.images import check_name, find_images, fit_square, load_image, load_with_alpha
from tests.pictures import chunk, png

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def halves(mode="RGB", size=(16, 8)):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def corners(image):
    pixels = np.asarray(image)
    return pixels[0, 0].tolist(), pixels[-1, -1].tolist()


def near(colour, other, distance=12):
    return max(abs(int(a) - int(b)) for a, b in zip(colour, other, strict=True)) <= distance


def png_header(width, height):
    """A PNG that claims to be huge, with next to no data."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_kind_is_read_as_rgb(kind):
    image = load_image(encoded(halves(), kind))
    assert (image.mode, image.size) == ("RGB", (16, 8))
    left, right = corners(image)
    assert near(left, RED, 40)
    assert near(right, BLUE, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste(RED, (0, 0, 16, 8))  # top left
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = load_image(encoded(stored, kind, exif=exif))
    assert image.size == (32, 16)
    pixels = np.asarray(image)
    assert near(pixels[3, 3], RED, 40)
    for row, column in ((3, 28), (12, 3), (12, 28)):
        assert near(pixels[row, column], (255, 255, 255), 40)


def test_a_damaged_exif_block_does_not_matter():
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f"
    assert load_image(encoded(halves(), "JPEG", exif=exif)).size == (16, 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_over_white(kind):
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    image.paste((*BLUE, 255), (4, 0, 8, 8))
    left, right = corners(load_image(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))))
    assert left == [255, 255, 255]
    assert right == list(BLUE)


def test_half_alpha_is_half_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert corners(load_image(encoded(image, "PNG")))[0] == [127, 127, 127]


def test_grey_with_alpha():
    image = Image.new("LA", (4, 4), (10, 0))
    assert corners(load_image(encoded(image, "PNG")))[0] == [255, 255, 255]


def test_palette_with_and_without_transparency():
    flat = halves().quantize(4)
    left, right = corners(load_image(encoded(flat, "PNG")))
    assert near(left, RED)
    assert near(right, BLUE)
    index = flat.getpixel((0, 0))
    for transparency in (index, bytes(0 if i == index else 255 for i in range(4))):
        left, right = corners(load_image(encoded(flat, "PNG", transparency=transparency)))
        assert left == [255, 255, 255]
        assert near(right, BLUE)


def test_colour_key_transparency():
    left, right = corners(load_image(encoded(halves(), "PNG", transparency=RED)))
    assert (left, right) == ([255, 255, 255], list(BLUE))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel(mode):
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((3, 3), 255)
    assert corners(load_image(encoded(image, "PNG"))) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    image = np.asarray(load_image(encoded(Image.fromarray(ramp), kind)))
    assert np.abs(image[..., 0].astype(int) - np.round(ramp / 257.0)).max() <= 1
    assert (image == image[..., :1]).all()


def test_16_bit_grey_with_a_colour_key():
    values = np.full((4, 4), 1000, np.uint16)
    values[3, 3] = 2000
    first, last = corners(load_image(encoded(Image.fromarray(values), "PNG", transparency=1000)))
    assert first == [255, 255, 255]
    assert last == [8, 8, 8]


def test_32_bit_whole_numbers_are_scaled():
    small = Image.fromarray(np.array([[0, 65_535]], np.int32))
    assert corners(load_image(encoded(small, "TIFF"))) == ([0, 0, 0], [255, 255, 255])
    large = Image.fromarray(np.array([[0, 2**31 - 1]], np.int32))
    assert corners(load_image(encoded(large, "TIFF"))) == ([0, 0, 0], [255, 255, 255])


def test_floating_point_goes_from_0_to_1():
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    for held in (values, Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
        assert np.asarray(load_image(held))[0, :, 0].tolist() == [0, 64, 128, 255]
    for held in (values * 255, values - 0.5, values * np.nan, Image.fromarray(values * 255)):
        with pytest.raises(ValueError, match=r"floating point pixels from .*; 0 is black and 1 is white"):
            load_image(held)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_colour_key_of_any_depth(depth):
    """The grey that tRNS names is transparent, at the image's own depth; higher bits of it do not count."""
    top = 2**depth - 1
    values = [0, top // 3, top // 2, top]
    for key in values:
        row = int("".join(f"{value:0{depth}b}" for value in values).ljust(8, "0"), 2)
        packed = row.to_bytes(max(1, 4 * depth // 8), "big")
        expected = [255 if value == key else round(value * 255 / top) for value in values]
        for said in {key, key | 256 if depth < 8 else key}:
            blob = png([packed], 4, depth, 0, before=chunk(b"tRNS", struct.pack(">H", said)))
            for held in (blob, Image.open(io.BytesIO(blob))):
                assert np.asarray(load_image(held))[0, :, 0].tolist() == expected, (depth, key)


def test_a_colour_key_of_16_bits_is_compared_in_16_bits():
    pixels = [(1000, 2000, 3000), (1001, 2000, 3000), (1000, 2000, 3001), (65_535, 0, 0)]
    row = b"".join(struct.pack(">3H", *pixel) for pixel in pixels)
    blob = png([row], 4, 16, 2, before=chunk(b"tRNS", struct.pack(">3H", *pixels[0])))
    found = np.asarray(load_image(blob))[0].astype(int)
    assert found[0].tolist() == [255, 255, 255]
    assert np.abs(found[1:] - np.array(pixels[1:]) / 257).max() <= 1
    eight = png([bytes([1, 2, 3, 4, 5, 6])], 2, 8, 2, before=chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert np.asarray(load_image(eight))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_avif_is_read_and_named_where_its_suffix_is_another():
    blob = encoded(halves(size=(64, 64)), "AVIF")
    assert near(corners(load_image(blob))[0], RED, 40)
    for name in ("a.avif", "a", "00012.0"):
        check_name(name, blob)
    with pytest.raises(ValueError, match="AVIF or HEIC by its first bytes, not jpg"):
        check_name("a.JPG", blob)
    check_name("really-png.jpg", encoded(halves(), "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    left, right = corners(load_image(encoded(halves("CMYK"), kind)))
    assert near(left, RED, 40)
    assert near(right, BLUE, 40)


def test_only_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        image = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert near(corners(image)[0], RED, 40), kind


def test_the_suffix_does_not_decide(tmp_path):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(encoded(halves(), "PNG"))
    assert load_image(path).size == (16, 8)


def test_a_huge_header_is_refused_before_decoding():
    blob = png_header(30_000, 30_000)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"900,000,000 pixels; at most 128,000,000"):
            load_image(blob)
    assert time.process_time() - start < 1


def test_max_pixels_is_exact_and_leaves_pillow_alone():
    before = Image.MAX_IMAGE_PIXELS
    blob = encoded(halves(size=(16, 8)), "PNG")
    assert load_image(blob, max_pixels=128).size == (16, 8)
    for fewer in (127, 126, 64, 63):
        with pytest.raises(ValueError, match=rf"128 pixels; at most {fewer} "):
            load_image(blob, max_pixels=fewer)
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_pixels_than_pillow_likes_can_be_allowed():
    with pytest.raises(ValueError, match="cannot be decoded"):  # its data is cut off; its size was accepted
        load_image(png_header(60_000, 6_000), max_pixels=400_000_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(kind):
    blob = encoded(Image.fromarray(photographs.astronaut()).resize((64, 64)), kind)
    with pytest.raises(ValueError, match=r"cannot be decoded|not an image") as error:
        load_image(blob[: len(blob) * 2 // 3])
    assert "\n" not in str(error.value)


def test_text_and_nothing_are_refused():
    for blob in (b"", b"hello, this is text", b"\0" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(ValueError, match="not an image"):
            load_image(blob)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not a regular file"):
        load_image(tmp_path / "a.png")


def test_fit_square_keeps_the_whole_picture():
    square = fit_square(halves(size=(400, 20)), 32)
    assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)
    assert square[:, 0].tolist() == [list(RED)] * 32
    assert square[:, -1].tolist() == [list(BLUE)] * 32


def test_fit_square_averages_instead_of_picking():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    square = fit_square(Image.fromarray(stripes), 32)
    assert np.abs(square.astype(int) - 127).max() <= 3


def test_find_images_is_sorted_recursive_and_blind_to_order(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    names = ["b.PNG", "sub/deep/a.jpg", "a ü 名.webp", "z.tiff", "sub/notes.txt", "c.gif"]
    for name in names:
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_bytes(b"x")
    second.mkdir()
    (second / "m.bmp").write_bytes(b"x")
    single = tmp_path / "k.jpeg"
    single.write_bytes(b"x")
    expected = ["a ü 名.webp", "b.PNG", "c.gif", "k.jpeg", "m.bmp", "sub/deep/a.jpg", "z.tiff"]
    found = find_images([first, second, single])
    assert [image.name for image in found] == expected
    assert find_images([single, second, first, second]) == found
    assert find_images([first, first / "c.gif"]) == find_images([first])


def test_links_to_files_are_followed_and_loops_are_not(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "real.png").write_bytes(encoded(halves(), "PNG"))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nothing.png")
    found = find_images([tmp_path / "in"])
    assert [image.name for image in found] == ["gone.png", "link.png"]
    assert load_image(found[1].path).size == (16, 8)
    with pytest.raises(FileNotFoundError):
        load_image(found[0].path)


def test_find_images_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no images found"):
        find_images([tmp_path])
    with pytest.raises(ValueError, match="no images found"):
        find_images([])
    with pytest.raises(ValueError, match="no such file"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt: not an image by its name"):
        find_images([tmp_path / "a.txt"])


def mixed_rgba() -> Image.Image:
    """8 x 6 pixels of all levels of red and alpha."""
    array = np.zeros((6, 8, 4), np.uint8)
    array[..., 0] = np.arange(48).reshape(6, 8) * 5
    array[..., 3] = np.arange(48)[::-1].reshape(6, 8) * 5
    return Image.fromarray(array)


def test_whatever_holds_a_picture_gives_the_same_pixels(tmp_path):
    image = mixed_rgba()
    path = tmp_path / "x.png"
    image.save(path)
    expected = np.asarray(load_image(path))
    assert expected[0, 0].tolist() != [0, 0, 0]
    before = image.tobytes()
    for held in (str(path), path.read_bytes(), Image.open(path), image, np.asarray(image)):
        assert np.array_equal(np.asarray(load_image(held)), expected)
    assert (image.tobytes(), image.mode) == (before, "RGBA"), "the caller's picture stays as it was"


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16"],
)
def test_pillow_images_of_any_mode(mode):
    grey = Image.new("L", (4, 3), 255)
    source = grey.convert("LA").convert("La") if mode == "La" else grey
    source = grey.convert("RGBA").convert("RGBa") if mode == "RGBa" else source
    source = grey.convert("P").convert("PA") if mode == "PA" else source
    if mode in ("I", "I;16"):
        source = Image.fromarray(np.full((3, 4), 65_535, np.int32 if mode == "I" else np.uint16))
    image = source if source.mode == mode else source.convert(mode)
    assert image.mode == mode
    loaded = load_image(image)
    assert (loaded.mode, loaded.size) == ("RGB", (4, 3))
    assert np.asarray(loaded).min() >= 254, "white is white"


def test_premultiplied_and_plain_alpha_agree():
    image = mixed_rgba()
    plain = np.asarray(load_image(image), np.int16)
    assert np.abs(plain - np.asarray(load_image(image.convert("RGBa")), np.int16)).max() <= 8


def test_a_picture_is_turned_once():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    once = load_image(buffer.getvalue())
    assert once.size == load_image(Image.open(io.BytesIO(buffer.getvalue()))).size == (4, 8)
    assert load_image(once).size == (4, 8)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (np.zeros((4, 4, 3), np.int64), "an array of int64 with shape"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], "with shape .3, 4, 2. was given; .*uint8"),
        (np.zeros((3, 8, 8), np.float32), "channels come first: array.transpose"),
        (np.zeros((4, 4, 3), complex), "an array of complex128"),
        (np.zeros((0, 4, 3), np.uint8), "with shape .0, 4, 3."),
        (None, "NoneType was given as an image; a path"),
    ],
)
def test_what_holds_no_picture_is_named(held, words):
    with pytest.raises(ValueError, match=words):
        load_image(held)


def test_arrays_of_other_types():
    bits = np.array([[True, False]])
    assert np.asarray(load_image(bits))[..., 0].tolist() == [[255, 0]]
    deep = np.array([[0, 257, 32_768, 65_535]], np.uint16)
    for held in (deep, deep.astype(">u2"), Image.fromarray(deep)):
        assert np.asarray(load_image(held))[0, :, 0].tolist() == [0, 1, 128, 255]
    clear = np.zeros((1, 2, 4), np.float64)
    clear[0, 1] = 0, 0, 0, 0.5
    assert np.asarray(load_image(clear))[0].tolist() == [[255, 255, 255], [127, 127, 127]]


def test_a_palette_with_transparency_is_the_same_from_a_file_and_from_memory():
    flat = halves().quantize(4)
    for transparency in (flat.getpixel((0, 0)), bytes([0, 128, 255, 255])):
        blob = encoded(flat, "PNG", transparency=transparency)
        opened = Image.open(io.BytesIO(blob))
        opened.load()
        expected = np.asarray(load_image(blob))
        for held in (
            opened,
            opened.convert("RGBA"),
            opened.convert("PA"),
            np.asarray(opened.convert("RGBA")),
        ):
            assert np.array_equal(np.asarray(load_image(held)), expected)


def test_transparency_can_be_kept():
    image = load_with_alpha(encoded(Image.new("RGBA", (4, 4), (*RED, 64)), "PNG"))
    assert (image.mode, image.getpixel((0, 0))) == ("RGBA", (*RED, 64))
    assert load_with_alpha(halves()).mode == "RGB"


def test_pictures_in_memory_are_bounded_too():
    with pytest.raises(ValueError, match="12 pixels; at most 11 are decoded"):
        load_image(Image.new("RGB", (4, 3)), max_pixels=11)
