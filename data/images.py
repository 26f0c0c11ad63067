"""Finding pictures, and reading any of them as plain upright 8-bit RGB."""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from pictish.io.files import one_line, printable, read_regular_file
from pictish.io.finding import Found, find, image_kind, supported

MAX_PIXELS = 128_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED_BY = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of `Image.info`
_pillow_settings = threading.Lock()

Picture = str | Path | bytes | Image.Image | npt.NDArray[Any]
"""A picture as a caller may hold it: a path, a file's bytes, a PIL image, or a uint8 array."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture on disk and its name: the path relative to the folder it was found in, `/` between parts."""

    path: Path
    name: str


def find_images(inputs: Sequence[Path]) -> list[ImageFile]:
    """Images in `inputs` (files, or folders searched to the bottom), sorted by name; see `find`.

    ValueError when an input is missing or no image is found.
    """
    return images_of(find(inputs), inputs)


def images_of(found: Found, inputs: Sequence[Path]) -> list[ImageFile]:
    """The images of a search in `inputs`; ValueError when there is none."""
    if not found.images:
        if found.problems:
            name, reason = found.problems[0]
            raise ValueError(f"{printable(name)}: {reason}")
        places = ", ".join(printable(entry) for entry in inputs) or "nothing was given"
        raise ValueError(f"no pictures found ({places}); looked for {supported()}")
    return [ImageFile(file.path, file.name) for file in found.images]


def load_image(source: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB: upright by its EXIF, alpha over white, 16 bits as 8, an animation's first frame.

    `source` is a path, the bytes of a file, a PIL image of any mode, or a uint8 array of shape
    (height, width), (height, width, 3) as RGB or (height, width, 4) as RGBA; PIL images are not changed.
    The header is read first: more than `max_pixels` pixels are refused before anything is decoded.
    ValueError (one line) for everything that is not a whole picture, OSError when the file cannot be read.
    """
    held = _held(source)
    try:
        with _pillow_limit(max_pixels), _opened(held) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Image.DecompressionBombError(f"({width * height} pixels)")
            image.load()
            orientation = _orientation(image)
            upright = _to_rgb(image)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        came = f"{int(pixels[1]):,}" if pixels else "too many"
        raise ValueError(f"{came} pixels; at most {max_pixels:,} are decoded (max_pixels)") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"not a picture; known are {supported()}") from None
    except (
        Exception
    ) as error:  # decoders raise anything on broken bytes: IndexError, struct.error, SyntaxError ...
        raise ValueError(f"cannot be decoded: {one_line(error)}") from error
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    for key in _TURNED_BY:  # whoever reads this picture again must not turn it again
        upright.info.pop(key, None)
    return upright


def _held(source: Picture) -> bytes | Image.Image:
    """A file's bytes, or the picture itself where it is in memory."""
    match source:
        case Image.Image() | bytes():
            return source
        case str() | Path():
            return read_regular_file(Path(source))
        case np.ndarray():
            shape = source.shape
            fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
            if source.dtype != np.uint8 or not fits or 0 in shape:
                raise ValueError(
                    f"an array of {source.dtype} with shape {shape} was given; uint8 arrays "
                    "(height, width), (height, width, 3) or (height, width, 4) fit"
                )
            return Image.fromarray(np.ascontiguousarray(source))
        case _:
            raise ValueError(
                f"{type(source).__name__} was given as a picture; a path, a file's bytes, a PIL image or "
                "a uint8 array fits"
            )


def _opened(held: bytes | Image.Image) -> contextlib.AbstractContextManager[Image.Image]:
    """The picture, closed at the end unless it is the caller's."""
    if isinstance(held, Image.Image):
        return contextlib.nullcontext(held)
    if image_kind(held[:32]) == "heic":
        return _opened_heif(held)
    return Image.open(io.BytesIO(held), formats=_FORMATS)


def _opened_heif(blob: bytes) -> Image.Image:
    """A HEIC picture, whose pixels are not decoded yet; Pillow itself learns nothing of the format."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ValueError("HEIC images need pip install 'pictish[heic]'") from None
    image: Image.Image = HeifImageFile(io.BytesIO(blob))
    return image


def fit_square(image: Image.Image, side: int, *, exact: bool = False) -> npt.NDArray[np.uint8]:
    """The whole RGB picture squashed to a square, (side, side, 3) uint8, bicubic with antialiasing.

    A picture of four times the side or more is first reduced by a whole number, which takes half the time;
    the photographs of scikit-image come out within 48 dB of the slow way, which is `exact`.
    """
    gap = None if exact else 2.0
    small = image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=gap)
    return np.array(small, dtype=np.uint8)


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Make Pillow refuse more than `max_pixels` (twice its own setting) and keep its warnings quiet.

    Both settings belong to the whole process, hence the lock.
    """
    with _pillow_settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied (a loaded TIFF is upright already); 1 if unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "La":  # premultiplied; Pillow converts it to nothing else
        image = image.convert("LA")
    if image.mode == "F":
        raise ValueError("floating point pixels have no defined white")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(rgba, mask=rgba.getchannel("A"))
    return paper


def _from_integers(image: Image.Image) -> Image.Image:
    """Grey pictures of more than 8 bits: white is 65,535, or 2**31 - 1 when a pixel is above that."""
    values: npt.NDArray[Any] = np.asarray(image).astype(np.int64)
    white = 65_535 if values.max() <= 65_535 else 2**31 - 1
    grey = ((values.clip(0, white) * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def png_bytes(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """The picture as PNG, with the text chunks of `info`."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, pnginfo=info)
    return buffer.getvalue()
