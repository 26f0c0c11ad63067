"""A contact sheet of images with what was said about them, right and wrong, drawn with Pillow."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pictish.evaluation.drawing import GREY, INK, MARGIN, PAPER, RULE, TILE

RIGHT, WRONG = "#2b8a3e", "#c92a2a"
_COLUMN, _LINE, _WIDE = 560, 18, 64
"""Pixels of a column and of a line; letters that fit beside an image."""


@dataclass(frozen=True)
class Said:
    """One image: its name, and lines of text that are right or wrong."""

    name: str
    image: Image.Image
    lines: Sequence[tuple[str, bool]]


def answer_sheet(
    title: str, subtitle: str, columns: Mapping[str, Sequence[tuple[str, Sequence[Said]]]]
) -> Image.Image:
    """Columns side by side, in each groups of images below their names; right is green, wrong red."""
    tops = MARGIN + 100
    heights = [sum(26 + sum(map(_height, group)) for _, group in groups) for groups in columns.values()]
    width = 2 * MARGIN + len(columns) * _COLUMN
    sheet = Image.new("RGB", (width, tops + max(heights) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, _font(24), anchor="lt")
    pen.text((MARGIN, MARGIN + 34), subtitle, GREY, _font(15), anchor="lt")
    for number, (column, groups) in enumerate(columns.items()):
        left, y = MARGIN + number * _COLUMN, tops
        pen.text((left, y - 12), column, INK, _font(17), anchor="ls")
        for group, members in groups:
            pen.line((left, y, left + _COLUMN - 24, y), RULE)
            pen.text((left, y + 6), group, GREY, _font(15), anchor="lt")
            y += 26
            for each in members:
                _draw(sheet, pen, each, left, y + 2)
                y += _height(each)
    return sheet


def _draw(sheet: Image.Image, pen: ImageDraw.ImageDraw, each: Said, left: int, y: int) -> None:
    sheet.paste(each.image.resize((TILE, TILE), Image.Resampling.BICUBIC), (left, y))
    left += TILE + 14
    for line in _wrapped(each.name):
        pen.text((left, y), line, INK, _font(14), anchor="lt")
        y += _LINE
    for text, right in each.lines:
        for line in _wrapped(text):
            pen.text((left, y), line, RIGHT if right else WRONG, _font(13), anchor="lt")
            y += _LINE


def _height(each: Said) -> int:
    lines = sum(len(_wrapped(text)) for text in (each.name, *(text for text, _ in each.lines)))
    return max(TILE, _LINE * lines) + 12


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDE, max_lines=3, placeholder=" …") or [""]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
