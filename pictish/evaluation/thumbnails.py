"""What the bits of an image's codes could hold as plain pixels: a small, coarse RGB image, scaled up."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

DEPTHS = range(1, 9)  # bits a channel


def thumbnail(picture: np.ndarray, bits: float) -> np.ndarray:
    """The best image that `bits` can hold as pixels, both (S, S, 3) uint8.

    The rule: for each depth of 1 to 8 bits a channel, the most pixels that fit, in the squarest box, lying
    or standing; reduced by the mean of each area, rounded to the depth's levels, enlarged by bicubic
    interpolation. Of these the one with the least squared error; which one it is, is not counted as bits.
    Grey where nothing fits.
    """
    side = len(picture)
    best, least = np.full_like(picture, 128), np.inf
    for width, height, depth in shapes(bits, side):
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
        levels = 2**depth - 1
        coarse = np.round(np.round(np.asarray(small) / 255 * levels) / levels * 255).astype(np.uint8)
        shown = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        error = np.mean((shown.astype(np.float64) - picture) ** 2)
        if error < least:
            best, least = shown, error
    return best


def shapes(bits: float, side: int) -> Iterator[tuple[int, int, int]]:
    """(width, height, bits a channel) to try: 3 x width x height x depth is at most `bits`."""
    for depth in DEPTHS:
        pixels = min(int(bits // (3 * depth)), side * side)
        if pixels:
            shorter = int(pixels**0.5)
            longer = min(pixels // shorter, side)
            yield from {(shorter, longer, depth), (longer, shorter, depth)}
