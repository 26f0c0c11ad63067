"""Altered views of an image for training: flips, zooms, shifts, backdrops and colour, from a seed.

Clip art on white teaches a model that images are shapes on white. Zoomed crops that fill the frame,
gradients and images behind images give it what photographs have.
"""

import hashlib

import numpy as np
from PIL import Image, ImageEnhance

from pictish.data.images import fit_square, load_image, load_with_alpha

WHITE = (255, 255, 255)


def picture_views(blob: bytes, views: int, side: int, key: str, neighbour: bytes | None = None) -> np.ndarray:
    """uint8 (views, side, side, 3): the image as it is, then altered views, a function of the arguments
    alone.

    `key` names the image and seeds its views; `neighbour` is another image that may serve as a backdrop.
    """
    plain = load_image(blob)
    result = [fit_square(plain, side)]
    for view in range(1, views):
        seed = int.from_bytes(hashlib.sha256(f"{key}|{view}".encode()).digest()[:8], "big")
        result.append(_altered(blob, side, np.random.default_rng(seed), neighbour))
    return np.stack(result)


def _altered(blob: bytes, side: int, rng: np.random.Generator, neighbour: bytes | None) -> np.ndarray:
    figure = _cutout(blob)
    if rng.random() < 0.5:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = _backdrop(2 * side, rng, neighbour)
    scale = rng.uniform(0.6, 1.15)
    width, height = (max(1, int(edge * scale * 2 * side / max(figure.size))) for edge in figure.size)
    figure = figure.resize((width, height), Image.Resampling.BICUBIC)
    corner = [int(rng.uniform(-0.2, 0.2) * side + (2 * side - edge) / 2) for edge in (width, height)]
    canvas.paste(figure, (corner[0], corner[1]), figure)
    if rng.random() < 0.4:
        canvas = _zoom(canvas, rng)
    if rng.random() < 0.5:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            canvas = enhance(canvas).enhance(rng.uniform(0.6, 1.4))
    return fit_square(canvas, side)


def _cutout(blob: bytes) -> Image.Image:
    """The image with its transparency."""
    return load_with_alpha(blob).convert("RGBA")


def _zoom(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 15 to 60 % of each side."""
    edge = int(rng.uniform(0.15, 0.6) * image.width)
    left, top = (int(rng.integers(0, image.width - edge + 1)) for _ in range(2))
    return image.crop((left, top, left + edge, top + edge))


def _backdrop(side: int, rng: np.random.Generator, neighbour: bytes | None) -> Image.Image:
    kind = rng.random()
    if kind < 0.3:
        return Image.new("RGB", (side, side), WHITE)
    colours = rng.integers(0, 256, (2, 3))
    if kind < 0.5:
        return Image.new("RGB", (side, side), tuple(int(c) for c in colours[0]))
    if kind < 0.75 or neighbour is None:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.linspace(-0.5, 0.5, side)
        place = np.clip(np.add.outer(np.sin(angle) * ramp, np.cos(angle) * ramp) + 0.5, 0, 1)[..., None]
        return Image.fromarray((colours[0] * (1 - place) + colours[1] * place).astype(np.uint8))
    behind = _cutout(neighbour)
    canvas = Image.new("RGB", behind.size, tuple(int(c) for c in colours[0]))
    canvas.paste(behind, (0, 0), behind)
    return _zoom(canvas, rng).resize((side, side), Image.Resampling.BICUBIC)
