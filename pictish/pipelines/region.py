"""Parts of an image that are drawn anew: a rectangle or a mask, and the cells of the grid they touch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from pictish.lm.sampler import Redraw
    from pictish.tokenizer.dynamic import Tokenizer


class Region(NamedTuple):
    """In pixels of the image, from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


def parse_region(text: str) -> Region:
    """`X,Y,WIDTH,HEIGHT`; ValueError for anything else."""
    try:
        return Region(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise ValueError(f"region {text!r}: four whole numbers X,Y,WIDTH,HEIGHT would fit") from None


def cells_in(region: Region, size: tuple[int, int], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which cells (rows x columns,) of an image of this (height, width) a region touches.

    ValueError for a region that is empty or reaches outside the image.
    """
    x, y, width, height = region
    (tall, wide), (rows, columns) = size, grid
    if min(x, y) < 0 or min(width, height) < 1 or x + width > wide or y + height > tall:
        raise ValueError(
            f"region {x},{y},{width},{height}: outside the image; within 0,0,{wide},{tall} would fit"
        )
    touched = np.zeros(grid, dtype=bool)
    across = slice(x * columns // wide, -(-(x + width) * columns // wide))
    down = slice(y * rows // tall, -(-(y + height) * rows // tall))
    touched[down, across] = True
    return touched.ravel()


def cells_under(mask: Image.Image, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which cells (rows x columns,) a mask (mode L, white where the image may change) reaches into.

    Less than a five-hundredth of a cell does not count.
    """
    rows, columns = grid
    return np.asarray(mask.resize((columns, rows), Image.Resampling.BOX)).ravel() > 0


def redraws(
    tokenizer: "Tokenizer", sources: Sequence[Image.Image], anew: Sequence[npt.NDArray[np.bool_]]
) -> "list[Redraw]":
    """The images as their tokens, with the cells that are to be drawn `anew`, (rows x columns,) of each.

    ValueError for a tokenizer that does not place its codes.
    """
    from pictish.lm.sampler import Redraw

    found = []
    for one, own in zip(tokenizer.tokenize(list(sources)), anew, strict=True):
        if one.cells is None:
            raise ValueError("a region needs a tokenizer that places codes on cells")
        found.append(Redraw(one.ids, one.cells, own))
    return found
