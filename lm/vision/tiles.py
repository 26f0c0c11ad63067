"""Images of any size as square views of one size, and where the rows of the views go in the sequence.

The layout is LLaVA's "anyres" as LLaDA-V uses it: view 0 is the whole image squashed, the others are its
tiles; the maps of the tiles are put together, what was padding is cut off, a map that is too large is
reduced, and a learned row ends each of its lines. One of several images is padded to a square instead, and
frames of a video are reduced. Written from a description; tools/lladav_vision_cases.py compares it with
recordings of the official code.

Legend: V views, S side of a view in pixels, N rows of a view (h x w cells), D channels, M rows of an image.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

Views = npt.NDArray[np.uint8]
TOLERATED = 1.1  # a map is reduced when its sides exceed their maximum by this factor


@dataclass(frozen=True)
class Layout:
    """What becomes of the rows of one image's views."""

    cells: tuple[int, int]  # (h, w) of a view
    whole: bool = True  # view 0 comes first as it is
    tiles: tuple[int, int] = (0, 0)  # (high, wide) other views, put together to one map
    crop: tuple[int, int] = (0, 0)  # cells cut off above and below, left and right
    resized: tuple[int, int] | None = None  # (h, w) that the map is brought to after that
    ended: bool = False  # whether the separator follows the whole view

    @property
    def views(self) -> int:
        """V."""
        return int(self.whole) + self.tiles[0] * self.tiles[1]

    @property
    def map(self) -> tuple[int, int]:
        """Lines and cells a line of the map that the tiles become; 0, 0 without tiles."""
        if self.resized is not None:
            return self.resized
        lines, cells = (n * c - 2 * cut for n, c, cut in zip(self.tiles, self.cells, self.crop, strict=True))
        return (lines, cells) if self.tiles != (0, 0) else (0, 0)

    @property
    def length(self) -> int:
        """M."""
        lines, cells = self.map
        return self.whole * self.cells[0] * self.cells[1] + self.ended + lines * (cells + 1)

    @property
    def separators(self) -> bool:
        """Whether separators are among the rows."""
        return self.ended or self.tiles != (0, 0)


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as a vision tower looks at it."""

    views: Views  # (V, S, S, 3)
    layout: Layout


def arrange(rows: Tensor, layout: Layout, separator: Tensor | None) -> Tensor:
    """Rows (M, D) of an image from those of its views (V, N, D); `separator` (D,) ends lines."""
    assert rows.shape[:2] == (layout.views, layout.cells[0] * layout.cells[1]), (rows.shape, layout)
    found = [rows[0]] if layout.whole else []
    if layout.ended:
        assert separator is not None
        found.append(separator[None].to(rows.dtype))
    if layout.tiles != (0, 0):
        assert separator is not None
        (high, wide), (h, w) = layout.tiles, layout.cells
        tiles = rows[int(layout.whole) :]
        whole = rearrange(tiles, "(a b) (h w) d -> d (a h) (b w)", a=high, b=wide, h=h, w=w)
        top, left = layout.crop
        whole = whole[:, top : high * h - top, left : wide * w - left]
        if layout.resized is not None:
            whole = F.interpolate(whole[None], layout.resized, mode="bilinear", align_corners=False)[0]
        ends = separator[:, None, None].expand(-1, whole.shape[1], 1).to(rows.dtype)
        found.append(torch.cat([whole, ends], dim=2).flatten(1).T)
    return torch.cat(found)


def grids(wide: int, high: int) -> tuple[tuple[int, int], ...]:
    """All grids of up to `wide` by `high` tiles, as (wide, high), in the order in which ties are decided."""
    return tuple((x, y) for x in range(1, wide + 1) for y in range(1, high + 1))


def best_grid(size: tuple[int, int], choices: Sequence[tuple[int, int]], side: int) -> tuple[int, int]:
    """The grid (wide, high) of tiles of `side` pixels that shows most of an image of `size` (width, height).

    That is the area it has when it is fitted in, but never more than its own; among equals the least
    padding, and then the first.
    """
    width, height = size

    def merit(choice: tuple[int, int]) -> tuple[int, int]:
        across, down = choice[0] * side, choice[1] * side
        scale = min(across / width, down / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - across * down

    return max(choices, key=merit)  # the first of equals


def tiled_layout(
    size: tuple[int, int], grid: tuple[int, int], cells: tuple[int, int], largest: int | None
) -> Layout:
    """The layout of an image of `size` (width, height) in a `grid` (wide, high) of tiles.

    The map has at most about `largest` times as many cells as a view; None: it is never reduced.
    """
    (width, height), (wide, high), (h, w) = size, grid, cells
    lines, across = high * h, wide * w
    top = left = 0
    if width / height > across / lines:
        top = (lines - max(1, int(height * (across / width)))) // 2
    else:
        left = (across - max(1, int(width * (lines / height)))) // 2
    lines, across = lines - 2 * top, across - 2 * left
    resized = None
    if largest is not None:
        times = math.sqrt(lines * across / (largest * h * w))
        if times > TOLERATED:
            resized = max(1, int(lines // times)), max(1, int(across // times))
    return Layout(cells, tiles=(high, wide), crop=(top, left), resized=resized)


def frame_layout(cells: tuple[int, int], pool: int) -> Layout:
    """The layout of a frame of a video: one map, `pool` times smaller each way."""
    h, w = cells
    return Layout(cells, whole=False, tiles=(1, 1), resized=(math.ceil(h / pool), math.ceil(w / pool)))


def squashed(image: Image.Image, side: int) -> Views:
    """An RGB image as one view (1, S, S, 3), whatever its aspect ratio."""
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC))[None]


def padded(image: Image.Image, side: int, colour: Iterable[float]) -> Views:
    """An RGB image in the middle of a square of `colour` (3 channels in [0, 1]) as one view."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), tuple(int(255 * value) for value in colour))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    return squashed(square, side)


def tiled(image: Image.Image, grid: tuple[int, int], side: int) -> Views:
    """The squashed image and its tiles (V, S, S, 3), line by line; it is fitted in and centred on black."""
    across, down = grid[0] * side, grid[1] * side
    if across / image.width < down / image.height:
        fitted = across, min(math.ceil(image.height * (across / image.width)), down)
    else:
        fitted = min(math.ceil(image.width * (down / image.height)), across), down
    canvas = Image.new("RGB", (across, down))
    place = (across - fitted[0]) // 2, (down - fitted[1]) // 2
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), place)
    cut = rearrange(np.asarray(canvas), "(a h) (b w) c -> (a b) h w c", a=grid[1], b=grid[0])
    return np.concatenate([squashed(image, side), cut])
