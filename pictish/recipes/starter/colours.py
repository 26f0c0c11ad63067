"""The one colour that an image plainly has, or none."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pictish.recipes.starter.phrases import COLOURS

_SHARE = 0.6  # of the shape, from where on a colour clearly dominates
_OTHER = 0.25  # of the shape, what no other colour may exceed
# Hues in degrees, with gaps, for what lies between two colours is neither; least saturation and value, for
# pale orange is the colour of wood, and dark yellow that of olives.
_HUES = (
    ("red", -12, 10, 0.45, 0.45),
    ("orange", 20, 36, 0.75, 0.85),
    ("yellow", 44, 62, 0.45, 0.7),
    ("green", 80, 160, 0.45, 0.45),
    ("blue", 196, 245, 0.45, 0.45),
    ("purple", 262, 295, 0.45, 0.45),
    ("pink", 318, 342, 0.45, 0.45),
)


def main_colour(png: bytes) -> str | None:
    """The colour of most of what is drawn, where hardly anyone would name another one.

    Transparent pixels are the background, and white ones where nothing is transparent.
    """
    with Image.open(io.BytesIO(png)) as file:
        pixels = np.asarray(file.convert("RGBA"), dtype=np.float32)[::3, ::3].reshape(-1, 4)
    opaque = pixels[:, 3].min() > 200
    shape = pixels[:, :3].min(axis=1) < 245 if opaque else pixels[:, 3] > 128
    if shape.mean() < 0.05:
        return None
    numbers = colour_numbers(pixels[shape, :3] / np.float32(255))
    shares = np.bincount(numbers, minlength=len(COLOURS) + 1)[:-1] / len(numbers)
    *_, second, first = np.argsort(shares, kind="stable")
    return COLOURS[first] if shares[first] >= _SHARE and shares[second] <= _OTHER else None


def colour_numbers(rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Number in `COLOURS` of each pixel (N, 3) from 0 to 1; `len(COLOURS)` where two would do."""
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    hue = _hue(rgb, value, chroma)
    numbers = np.full(len(rgb), len(COLOURS))

    def mark(name: str, where: npt.NDArray[np.bool_]) -> None:
        numbers[where] = COLOURS.index(name)

    for name, start, stop, least_saturation, least_value in _HUES:
        vivid = (saturation > least_saturation) & (value > least_value)
        mark(name, vivid & (hue >= start) & (hue <= stop))
    mark("brown", (hue >= 8) & (hue <= 36) & (saturation > 0.35) & (value > 0.2) & (value < 0.62))
    pale = (saturation > 0.2) & (saturation < 0.5) & (value > 0.85)
    mark("pink", ((hue < 4) | (hue > 318)) & pale)  # pale red
    mark("black", (value < 0.2) & (chroma < 0.12))
    mark("white", low > 0.92)
    mark("grey", (chroma < 0.1) & (value > 0.32) & (value < 0.8))
    return numbers


def _hue(
    rgb: npt.NDArray[np.float32], value: npt.NDArray[np.float32], chroma: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Hue in degrees, from -18 (reds that lean to pink) to 342."""
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    degrees: npt.NDArray[np.float32] = 60 * hue
    return degrees - 360 * (degrees > 342)
