import io
import re

import pytest
from PIL import Image

from pictish.commands.terminal import COLUMNS, half_blocks, refused, show


class Stream(io.StringIO):
    """Says of itself what a test wants."""

    def __init__(self, terminal=True, encoding="utf-8"):
        super().__init__()
        self.terminal, self.kind = terminal, encoding

    def isatty(self):
        return self.terminal

    @property
    def encoding(self):
        return self.kind


@pytest.mark.parametrize(
    ("stream", "environment", "reason"),
    [
        (Stream(), {"TERM": "xterm"}, None),
        (Stream(), {"NO_COLOR": ""}, None),
        (Stream(terminal=False), {}, "the output is not a terminal"),
        (Stream(), {"NO_COLOR": "1"}, "NO_COLOR is set"),
        (Stream(), {"TERM": "dumb"}, "TERM is dumb"),
        (Stream(encoding="ascii"), {}, "the terminal's encoding, ascii, has no half blocks"),
    ],
)
def test_why_nothing_is_shown(stream, environment, reason):
    assert refused(stream, environment) == reason


@pytest.mark.parametrize(
    ("size", "lines", "columns"),
    [((256, 256), 16, 32), ((256, 100), 7, 32), ((64, 256), 16, 8), ((5, 3), 2, 5), ((999, 1), 1, 32)],
)
def test_a_picture_is_half_as_many_lines_of_letters(size, lines, columns):
    rows = half_blocks(Image.new("RGB", size, "red")).plain.split("\n")
    assert [len(row) for row in rows] == [columns] * lines
    assert set("".join(rows)) == {"▀"}


def test_colours_of_both_halves_are_printed(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    picture = Image.new("RGB", (2, 3), (1, 2, 3))
    picture.putpixel((0, 1), (4, 5, 6))
    stream = Stream()
    show(picture, stream)
    first, second = stream.getvalue().splitlines()
    assert re.findall(r"\x1b\[([\d;]+)m▀", first) == ["38;2;1;2;3;48;2;4;5;6", "38;2;1;2;3;48;2;1;2;3"]
    assert re.findall(r"\x1b\[([\d;]+)m▀", second) == ["38;2;1;2;3"] * 2, "below it there is nothing"
    assert len(half_blocks(Image.new("RGB", (999, 999))).plain.split("\n")[0]) == COLUMNS
