import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pictish.recipes.starter.render import PngFile, Svg, render

SIDE = 32
# Red above left, blue below right, nothing elsewhere, in a 16 x 16 box.
CORNERS = '<path fill="#f00" d="M0 0h8v8H0z"/><path fill="#00f" d="M8 8h8v8H8z"/>'
RED, BLUE, CLEAR = (255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)


def svg(body=CORNERS, width=16, height=16, left=0, top=0, **transform):
    return Svg(body, left, top, width, height, **transform)


def quarters(png):
    """The colours in the middle of the four quarters, row by row."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    assert picture.size == (SIDE, SIDE)
    return [picture.getpixel(at) for at in ((8, 8), (24, 8), (8, 24), (24, 24))]


def test_an_icon_keeps_its_transparency():
    png = render(svg(), SIDE).blob
    assert quarters(png) == [RED, CLEAR, CLEAR, BLUE]
    assert Image.open(io.BytesIO(png)).mode == "RGBA"


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"flip_horizontal": True}, [CLEAR, RED, BLUE, CLEAR]),
        ({"flip_vertical": True}, [CLEAR, BLUE, RED, CLEAR]),
        ({"quarter_turns": 1}, [CLEAR, RED, BLUE, CLEAR]),
        ({"quarter_turns": 2}, [BLUE, CLEAR, CLEAR, RED]),
        ({"quarter_turns": 3}, [CLEAR, BLUE, RED, CLEAR]),
    ],
)
def test_what_an_alias_does(transform, expected):
    assert quarters(render(svg(**transform), SIDE).blob) == expected


def test_a_quarter_turn_is_clockwise():
    only_red = '<path fill="#f00" d="M0 0h8v8H0z"/>'
    assert quarters(render(svg(only_red, quarter_turns=1), SIDE).blob) == [CLEAR, RED, CLEAR, CLEAR]


def test_the_box_may_start_elsewhere_and_need_not_be_square():
    body = '<path fill="#f00" d="M-8-4h32v16H-8z"/><path fill="#00f" d="M0 0h8v8H0z"/>'
    picture = Image.open(io.BytesIO(render(svg(body, 32, 16, -8, -4), SIDE).blob))
    alpha = np.asarray(picture)[:, :, 3]
    assert (alpha[8:24] == 255).all()
    assert not alpha[:8].any()
    assert not alpha[24:].any()


@pytest.mark.parametrize("body", ["", '<path fill="#fff" d="M2 2h9v9H2z"/>'])
def test_nothing_to_see_over_white_is_blank(body):
    rendered = render(svg(body), SIDE)
    assert (rendered.blob, rendered.left_out) == (None, "blank")


def save(tmp_path, picture, **options):
    path = tmp_path / "a.png"
    picture.save(path, **options)
    return PngFile(path)


def halves(mode, size):
    picture = Image.new("RGB", size, "white")
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_an_opaque_file_becomes_rgb(tmp_path, mode):
    picture = Image.open(io.BytesIO(render(save(tmp_path, halves(mode, (64, 64))), SIDE).blob))
    assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))
    assert picture.getpixel((4, 16)) == (255, 0, 0)
    assert picture.getpixel((28, 16)) == (255, 255, 255)


def test_a_wide_file_is_centred_and_not_stretched(tmp_path):
    picture = Image.open(io.BytesIO(render(save(tmp_path, halves("L", (100, 50))), SIDE).blob))
    alpha = np.asarray(picture)[:, :, 3]
    assert np.flatnonzero(alpha.any(axis=1)).tolist() == list(range(8, 24))
    assert alpha.any(axis=0).all()


def test_a_transparent_margin_is_cut_off(tmp_path):
    page = Image.new("RGBA", (500, 400))
    page.paste((0, 0, 255, 255), (300, 20, 364, 84))
    page.paste((255, 0, 0, 255), (300, 20, 364, 52))
    picture = Image.open(io.BytesIO(render(save(tmp_path, page), SIDE).blob))
    assert picture.mode == "RGB"
    assert (picture.getpixel((0, 0)), picture.getpixel((31, 31))) == ((255, 0, 0), (0, 0, 255))


def test_colours_under_transparency_do_not_bleed(tmp_path):
    green_under_nothing = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    green_under_nothing.paste((255, 0, 0, 255), (0, 0, 33, 64))
    green_under_nothing.paste((255, 0, 0, 255), (0, 0, 64, 9))
    picture = np.asarray(Image.open(io.BytesIO(render(save(tmp_path, green_under_nothing), SIDE).blob)))
    assert picture[picture[:, :, 3] > 8][:, 1].max() < 16


def test_a_palette_with_a_transparent_colour(tmp_path):
    task = save(
        tmp_path, halves("P", (64, 64)), transparency=Image.new("RGB", (1, 1)).convert("P").getpixel((0, 0))
    )
    assert render(task, SIDE).blob is not None


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (halves("RGB", (15, 15)), "small"),
        (Image.new("RGBA", (64, 64)), "blank"),
        (Image.new("RGB", (64, 64), (3, 200, 7)), "blank"),
        (Image.new("RGBA", (64, 64), (255, 255, 255, 90)), "blank"),
    ],
)
def test_files_that_are_left_out(tmp_path, picture, reason):
    assert render(save(tmp_path, picture), SIDE).left_out == reason


def test_a_small_picture_on_a_large_transparent_page_is_small(tmp_path):
    page = Image.new("RGBA", (300, 300))
    page.paste((0, 0, 255, 255), (10, 10, 20, 20))
    assert render(save(tmp_path, page), SIDE).left_out == "small"


def test_broken_and_huge_files_are_left_out(tmp_path):
    good = save(tmp_path, Image.effect_noise((64, 64), 90)).path.read_bytes()
    broken, huge, text = (tmp_path / name for name in ("broken.png", "huge.png", "text.png"))
    broken.write_bytes(good[: len(good) // 2])
    text.write_text("not a picture")
    assert render(PngFile(tmp_path / "a.png"), SIDE).blob is not None
    assert [render(PngFile(path), SIDE).left_out for path in (broken, text)] == ["broken", "broken"]
    for side, reason in ((9_000, "large"), (30_000, "large")):
        header = bytearray(good)
        header[16:24] = side.to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        huge.write_bytes(header)
        assert render(PngFile(huge), SIDE).left_out == reason
