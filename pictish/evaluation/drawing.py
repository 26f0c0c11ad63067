"""Images about images, drawn with Pillow: what was kept, a contact sheet, patches that share a code.

Functions of PIL RGB images; nothing is read or written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GREY, RULE, ACCENT = "white", "#1c1c1e", "#6b6b70", "#d9d9de", "#e8590c"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
MARGIN = 36
PANEL = 400, 720
"""Least and most px of a panel's longer side; between them a cell gets 36 px each way, to fit a score."""
TILE = 112
CROP = 64


@dataclass(frozen=True)
class Panels:
    """What `four_panels` draws; `cells`, `scores` and `ids` run over the kept patches."""

    picture: Image.Image
    reconstruction: Image.Image
    grid: tuple[int, int]
    cells: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    title: str
    caption: str


def four_panels(panels: Panels) -> Image.Image:
    """The image, its kept patches with scores in per cent, their codes, the reconstruction, a caption."""
    wanted = 36 * max(panels.grid) * max(panels.picture.size) / min(panels.picture.size)
    fitting = _fit(panels.picture.size, min(max(PANEL[0], round(wanted)), PANEL[1]))
    # A strip of an image is widened until its cells are distinct.
    box = (max(fitting[0], 5 * panels.grid[1]), max(fitting[1], 5 * panels.grid[0]))
    plain = panels.picture.resize(box, Image.Resampling.LANCZOS)
    back = panels.reconstruction.resize(box, Image.Resampling.BICUBIC)
    drawn = [
        ("Image", plain),
        ("Kept patches, scores in %", _kept_patches(plain, panels)),
        ("Codes", _codes(plain, panels)),
        ("Reconstruction", back),
    ]
    gap, heading = 24, 30
    column = max(box[0], 250)
    width = 2 * MARGIN + len(drawn) * (column + gap) - gap
    ids = "ids " + " ".join(str(code) for code in panels.ids)
    lines = _wrap(ids, _font(15), width - 2 * MARGIN, most=4, space="   ")
    top = MARGIN + 44
    height = top + heading + box[1] + 28 + 34 + 22 * len(lines) + MARGIN - 8
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    title = _wrap(panels.title, _font(24), width - 2 * MARGIN, most=1)[0]
    pen.text((MARGIN, MARGIN), title, INK, _font(24), anchor="lt")
    for index, (name, panel) in enumerate(drawn):
        left = MARGIN + index * (column + gap)
        pen.text((left, top), name, GREY, _font(17), anchor="lt")
        sheet.paste(panel, (left, top + heading))
    y = top + heading + box[1] + 28
    pen.text((MARGIN, y), panels.caption, INK, _font(19), anchor="lt")
    for number, line in enumerate(lines):
        pen.text((MARGIN, y + 34 + 22 * number), line, GREY, _font(15), anchor="lt")
    return sheet


def _kept_patches(plain: Image.Image, panels: Panels) -> Image.Image:
    """Dropped patches washed out, kept ones as they are, outlined, each with its score."""
    washed = Image.blend(plain.convert("L").convert("RGB"), Image.new("RGB", plain.size, PAPER), 0.72)
    pen = ImageDraw.Draw(washed)
    boxes = [_cell_box(int(cell), panels.grid, plain.size) for cell in panels.cells]
    for box in boxes:
        washed.paste(plain.crop(box), box[:2])
    for (left, top, right, bottom), score in zip(boxes, panels.scores, strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), outline=ACCENT, width=2)
        size = min(right - left, bottom - top) // 3
        if size >= 8:
            font = _font(min(size, 14))
            text = f"{100 * float(score):.0f}"
            x0, y0, x1, y1 = pen.textbbox((left + 4, top + 4), text, font, anchor="lt")
            pen.rectangle((x0 - 4, y0 - 4, x1 + 3, y1 + 3), fill=ACCENT)
            pen.text((left + 4, top + 4), text, "white", font, anchor="lt")
    return washed


def _codes(plain: Image.Image, panels: Panels) -> Image.Image:
    """The ids at their places, each on a light tint of its patch's mean colour."""
    sheet = Image.new("RGB", plain.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pixels = np.asarray(plain)
    rows, columns = panels.grid
    for cell in range(rows * columns):
        left, top, right, bottom = _cell_box(cell, panels.grid, plain.size)
        pen.rectangle((left, top, right, bottom), outline="#ececf0")
    cell_width = plain.width // columns
    size = min(cell_width * 10 // 24, plain.height // rows, 17)
    while size >= 8 and max(_font(size).getlength(str(code)) for code in panels.ids) > cell_width - 4:
        size -= 1
    for cell, code in zip(panels.cells, panels.ids, strict=True):
        left, top, right, bottom = _cell_box(int(cell), panels.grid, plain.size)
        mean = pixels[top:bottom, left:right].reshape(-1, 3).mean(axis=0)
        tint = tuple(int(value) for value in 255 - (255 - mean) * 0.45)
        pen.rectangle((left, top, right, bottom), fill=tint, outline="white")
        if size >= 8:
            pen.text(((left + right) / 2, (top + bottom) / 2), str(code), INK, _font(size), anchor="mm")
    pen.rectangle((0, 0, plain.width - 1, plain.height - 1), outline=RULE)
    return sheet


@dataclass(frozen=True)
class SheetRow:
    """One image of a contact sheet: `tiles` are (image, note) in the order of the columns."""

    group: str
    name: str
    size: tuple[int, int]
    tiles: Sequence[tuple[Image.Image, str]]


def contact_sheet(title: str, subtitle: str, columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """One row an image, one column a way of showing it, rows with a common `group` together under its name.

    Tiles are stretched to each image's own aspect ratio; `size` is its (height, width).
    """
    gap, note, label = 14, 24, 150
    starts = [index for index, row in enumerate(rows) if index == 0 or rows[index - 1].group != row.group]
    inside = max(label + len(columns) * (TILE + gap) - gap, round(_font(15).getlength(subtitle)))
    width = 2 * MARGIN + inside
    top = MARGIN + 92
    boxes = [_fit((row.size[1], row.size[0]), TILE) for row in rows]
    heights = [max(box[1] + note + 6, 90) for box in boxes]
    height = top + sum(heights) + 18 * (len(starts) - 1) + MARGIN - 6
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, _font(24), anchor="lt")
    pen.text((MARGIN, MARGIN + 34), subtitle, GREY, _font(15), anchor="lt")
    for index, column in enumerate(columns):
        x = MARGIN + label + index * (TILE + gap) + TILE / 2
        pen.text((x, top - 12), column, INK, _font(15), anchor="ms")
    y = top
    for index, (row, box) in enumerate(zip(rows, boxes, strict=True)):
        down = 0
        if index in starts:
            y += 18 if index else 0
            pen.line((MARGIN, y - 6, width - MARGIN, y - 6), RULE)
            pen.text((MARGIN, y + 2), row.group, INK, _font(17), anchor="lt")
            down = 28
        for number, line in enumerate(_wrap(row.name, _font(13), label - 18, most=3)):
            pen.text((MARGIN, y + 2 + down + 17 * number), line, GREY, _font(13), anchor="lt")
        for place, (tile, text) in enumerate(row.tiles):
            left = MARGIN + label + place * (TILE + gap)
            sheet.paste(tile.resize(box, Image.Resampling.BICUBIC), (left + (TILE - box[0]) // 2, y))
            pen.text((left + TILE / 2, y + box[1] + 6), text, GREY, _font(13), anchor="mt")
        y += heights[index]
    return sheet


def code_sheet(
    title: str, subtitle: str, rows: Sequence[tuple[str, str, Sequence[Image.Image]]], columns: int
) -> Image.Image:
    """One row a code: its name, a note, and up to `columns` patches that share it."""
    gap, label = 5, 130
    subtitles = _wrap(subtitle, _font(15), label + columns * (CROP + gap), most=3)
    width = 2 * MARGIN + label + columns * (CROP + gap) - gap
    top = MARGIN + 40 + 20 * len(subtitles) + 14
    height = top + len(rows) * (CROP + 14) - 14 + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, _font(24), anchor="lt")
    for number, line in enumerate(subtitles):
        pen.text((MARGIN, MARGIN + 36 + 20 * number), line, GREY, _font(15), anchor="lt")
    for index, (name, note, crops) in enumerate(rows):
        y = top + index * (CROP + 14)
        pen.text((MARGIN, y + CROP / 2 - 3), name, INK, _font(17), anchor="ls")
        pen.text((MARGIN, y + CROP / 2 + 7), note, GREY, _font(13), anchor="lt")
        for column, crop in enumerate(crops[:columns]):
            x = MARGIN + label + column * (CROP + gap)
            sheet.paste(crop.resize((CROP, CROP), Image.Resampling.BICUBIC), (x, y))
            pen.rectangle((x, y, x + CROP - 1, y + CROP - 1), outline=RULE)
    return sheet


def crop_cell(picture: Image.Image, cell: int, grid: tuple[int, int]) -> Image.Image:
    """The region of the image that one cell of the grid covers, at least one pixel each way."""
    left, top, right, bottom = _cell_box(cell, grid, picture.size)
    left, top = min(left, picture.width - 1), min(top, picture.height - 1)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _cell_box(cell: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a raster cell in an image of `size` (width, height)."""
    (rows, columns), (width, height) = grid, size
    row, column = divmod(cell, columns)
    return (
        column * width // columns,
        row * height // rows,
        (column + 1) * width // columns,
        (row + 1) * height // rows,
    )


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size` (width, height) scaled so that its longer side is `side`."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _wrap(text: str, font: Font, width: int, most: int, space: str = " ") -> list[str]:
    """At most `most` lines no wider than `width` px, broken at spaces or inside long words; `…` if cut."""
    lines = [""]
    for word in text.split():
        spaced = f"{lines[-1]}{space}{word}".lstrip()
        if font.getlength(spaced) <= width:
            lines[-1] = spaced
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + " …") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + " …"]
