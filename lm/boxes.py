"""Boxes in a model's answers: read as numbers, never evaluated, and placed on the image.

A grounding model was shown the image padded to a square, and its numbers are shares of that square's side:
`[0.12, 0.30, 0.55, 0.81]`, left, top, right and bottom, several of them after semicolons.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

_NUMBER = r"\s*([+-]?(?:\d{1,9}(?:\.\d{0,30})?|\.\d{1,30}))\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


class Box(NamedTuple):
    """A rectangle; left <= right and top <= bottom."""

    left: float
    top: float
    right: float
    bottom: float


class ParsedBoxes(NamedTuple):
    """Boxes that an answer has, and how many quadruples of numbers in it are none."""

    boxes: list[Box]
    wrong: int


def parse_boxes(answer: str) -> ParsedBoxes:
    """Every list of four numbers in an answer, as shares of the padded square.

    Not counted as boxes are those with a number outside 0 to 1, or whose right or bottom comes first.
    """
    boxes, wrong = [], 0
    for found in _BOX.finditer(answer):
        box = Box(*map(float, found.groups()))
        if all(0 <= value <= 1 for value in box) and box.left <= box.right and box.top <= box.bottom:
            boxes.append(box)
        else:
            wrong += 1
    return ParsedBoxes(boxes, wrong)


def on_picture(box: Box, width: int, height: int) -> Box:
    """A box of the padded square in pixels of the image, which lies in the square's middle."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return Box(
        min(max(box.left * side - left, 0.0), width),
        min(max(box.top * side - top, 0.0), height),
        min(max(box.right * side - left, 0.0), width),
        min(max(box.bottom * side - top, 0.0), height),
    )


def overlap(one: Box, other: Box) -> float:
    """Intersection over union; two boxes without area have none."""
    wide = min(one.right, other.right) - max(one.left, other.left)
    high = min(one.bottom, other.bottom) - max(one.top, other.top)
    both = max(wide, 0.0) * max(high, 0.0)
    either = sum((b.right - b.left) * (b.bottom - b.top) for b in (one, other)) - both
    return both / either if either > 0 else 0.0


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the image with the boxes of an answer in red."""
    drawn = picture.convert("RGB")
    drawn = drawn.copy() if drawn is picture else drawn
    thick = max(1, round(max(picture.size) / 200))
    for box in boxes:
        left, top, right, bottom = on_picture(box, *picture.size)
        frame = (left, top, max(left, right - 1), max(top, bottom - 1))
        ImageDraw.Draw(drawn).rectangle(frame, outline="red", width=thick)
    return drawn
