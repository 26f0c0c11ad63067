"""Finding images, and reading any of them as plain upright 8-bit RGB."""

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile as PillowFile
from PIL.PngImagePlugin import PngInfo

from pictish.data.damaged import completed, png_chunks
from pictish.data.tiff import read_deep, unit_floats
from pictish.io.files import one_line, printable, read_regular_file
from pictish.io.finding import File, Found, find, supported
from pictish.io.signatures import image_format

MAX_PIXELS = 128_000_000
_OTHER_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}  # than AVIF and HEIC
_UNREAD = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"<svg": "SVG",
}  # first bytes of images that are not read, and what they are
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
"""An image as a caller may hold it: a path, a file's bytes, a PIL image, or an array."""


def find_images(inputs: Sequence[Path]) -> list[File]:
    """Images in `inputs` (files, or folders searched to the bottom), sorted by name; see `find`.

    ValueError when an input is missing or no image is found.
    """
    return images_of(find(inputs), inputs)


def images_of(found: Found, inputs: Sequence[Path]) -> list[File]:
    """The images of a search in `inputs`; ValueError when there is none."""
    if not found.images:
        if found.problems:
            name, reason = found.problems[0]
            raise ValueError(f"{printable(name)}: {reason}")
        places = ", ".join(printable(entry) for entry in inputs) or "nothing was given"
        raise ValueError(f"no images found ({places}); looked for {supported()}")
    return found.images


def load_image(source: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as RGB: upright by its EXIF, alpha over white, an animation's first frame.

    `source` is a path, the bytes of a file, a PIL image of any mode, or an array of shape (height, width),
    (height, width, 3) as RGB or (height, width, 4) as RGBA: uint8, uint16, bool, or floats where 0 is black
    and 1 is white. PIL images are not changed. Samples of more than 8 bits are scaled to 8.
    A file whose pixels are whole is read, whatever is damaged or missing beside them.
    The header is read first: more than `max_pixels` pixels are refused before anything is decoded.
    ValueError (one line) for everything that is not a whole image, OSError when the file cannot be read.
    """
    image = load_with_alpha(source, max_pixels)
    if image.mode == "RGB":
        return image
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def load_with_alpha(source: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as `load_image` reads it, but RGBA where it is transparent.

    Where a pixel has more than 8 bits a sample, it may lie over white already.
    """
    held = _held(source)
    try:
        image, orientation = _read(held, max_pixels)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        came = f"{int(pixels[1]):,}" if pixels else "too many"
        raise ValueError(f"{came} pixels; at most {max_pixels:,} are decoded (max_pixels)") from None
    except MemoryError:  # says nothing about the image
        raise
    except _NotAPicture as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # decoders raise anything on broken bytes
        cut = isinstance(error.__cause__ or error, (struct.error, IndexError, EOFError))
        reason = "the file is truncated or damaged" if cut else one_line(error)
        raise ValueError(f"cannot be decoded: {reason}") from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    for key in _TURNED_BY:  # whoever reads this image again must not turn it again
        image.info.pop(key, None)
    return image


def check_name(name: str, blob: bytes) -> None:
    """ValueError for AVIF or HEIC in a file whose suffix is that of another format.

    Few programs open such files, so bulk work names them; other formats are read whatever the suffix.
    """
    suffix = Path(name).suffix.lower()
    if blob[4:8] == b"ftyp" and suffix in _OTHER_SUFFIXES:
        raise ValueError(f"AVIF or HEIC by its first bytes, not {suffix[1:]}; rename it to be read")


class _NotAPicture(ValueError):
    """The bytes are of no format that is read."""


def _read(held: bytes | Image.Image, max_pixels: int) -> tuple[Image.Image, int]:
    """RGB or RGBA, and the orientation still to be applied."""
    if isinstance(held, Image.Image):
        blob = _unread_file(held)
        if blob is None:
            with _pillow_limit(max_pixels):
                return _decoded(held, max_pixels)
        held = blob
    kind = _format_of(held)
    if kind == "TIFF":
        with _pillow_limit(4 * max_pixels):
            deep = read_deep(held, max_pixels)
        if deep is not None:
            return deep
    with _pillow_limit(max_pixels):
        try:
            return _decoded_file(held, kind, max_pixels)
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            with contextlib.suppress(Exception):
                if (whole := completed(held, kind, max_pixels)) is not None:
                    return _decoded_file(whole, kind, max_pixels)
            raise


def _unread_file(image: Image.Image) -> bytes | None:
    """The file of a PIL image that is only opened, where its pixels would lose what the file says of them."""
    if not isinstance(image, PillowFile) or image.format not in ("PNG", "TIFF"):
        return None
    if not image.tile or image.fp is None or image.tell() != 0:
        return None
    place = image.fp.tell()
    try:
        image.fp.seek(0)
        return image.fp.read()
    finally:
        image.fp.seek(place)


def _format_of(blob: bytes) -> str:
    """Pillow's name for the format of a file; _NotAPicture with the reason for one that is not read."""
    if known := image_format(blob):
        return known
    for signature, name in _UNREAD.items():
        if blob.startswith(signature):
            raise _NotAPicture(f"{name} is not supported; supported formats: {supported()}")
    raise _NotAPicture(f"not an image; supported formats: {supported()}")


def _decoded_file(blob: bytes, kind: str, max_pixels: int) -> tuple[Image.Image, int]:
    try:
        with _opened_heif(blob) if kind == "HEIF" else Image.open(io.BytesIO(blob), formats=(kind,)) as image:
            key = _colour_key(blob) if kind == "PNG" else None
            if key is not None and image.mode == "RGB" and blob[24] == 16:
                return _with_deep_key(image, blob, key, max_pixels)
            if key is not None:
                image.info["transparency"] = key if len(key) > 1 else key[0]
            return _decoded(image, max_pixels)
    except Image.UnidentifiedImageError:  # says that its plugin failed, not why
        Image.OPEN[kind][0](io.BytesIO(blob), "")
        raise


def _decoded(image: Image.Image, max_pixels: int) -> tuple[Image.Image, int]:
    """RGB or RGBA of what Pillow holds, and its orientation."""
    width, height = image.size
    if width * height > max_pixels:
        raise Image.DecompressionBombError(f"({width * height} pixels)")
    image.load()
    return _to_rgb(image), _orientation(image)


def _colour_key(blob: bytes) -> tuple[int, ...] | None:
    """The transparent colour of a PNG without alpha or palette, as Pillow gives its pixels."""
    depth, colour = blob[24], blob[25]
    samples = {0: 1, 2: 3}.get(colour)
    if samples is None:
        return None
    for kind, body, _ in png_chunks(blob):
        if kind == b"IDAT":
            break
        if kind == b"tRNS" and len(body) >= 2 * samples:
            highest = 2**depth - 1
            scale = 255 // highest if depth < 8 else 1  # Pillow widens low depths
            values = (int.from_bytes(body[at : at + 2], "big") for at in range(0, 2 * samples, 2))
            return tuple((value & highest) * scale for value in values)
    return None


def _with_deep_key(
    image: Image.Image, blob: bytes, key: tuple[int, ...], max_pixels: int
) -> tuple[Image.Image, int]:
    """A PNG of 16 bits a sample and a transparent colour, of which Pillow keeps the high bytes alone."""
    image.info.pop("transparency", None)
    rgb, orientation = _decoded(image, max_pixels)
    with Image.open(io.BytesIO(blob), formats=("PNG",)) as low:
        low.tile = [
            tile._replace(args="RGB;16L") for tile in low.tile
        ]  # takes the second byte of each sample
        low.load()
        second: npt.NDArray[np.uint8] = np.asarray(low)
    first: npt.NDArray[np.uint8] = np.asarray(rgb)
    keyed = (first == [value >> 8 for value in key]) & (second == [value & 255 for value in key])
    alpha = np.where(keyed.all(axis=-1), 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([first, alpha])), orientation


def _held(source: Picture) -> bytes | Image.Image:
    """A file's bytes, or the image itself where it is in memory."""
    match source:
        case Image.Image() | bytes():
            return source
        case str() | Path():
            return read_regular_file(Path(source))
        case np.ndarray():
            return _from_array(source)
        case _:
            raise ValueError(
                f"{type(source).__name__} was given as an image; a path, a file's bytes, a PIL image or "
                "an array fits"
            )


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """An array's pixels in 8 bits; ValueError unless shape, type and range say what they mean."""
    shape, kind = array.shape, array.dtype.kind
    fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if not (fits and 0 not in shape and (kind in "bf" or (kind == "u" and array.itemsize <= 2))):
        first = len(shape) == 3 and shape[0] in (1, 3, 4) and not fits
        hint = "; its channels come first: array.transpose(1, 2, 0) puts them last" if first else ""
        raise ValueError(
            f"an array of {array.dtype} with shape {shape} was given{hint}; uint8, uint16, bool or "
            "floats in [0, 1] of shape (height, width), (height, width, 3) or (height, width, 4) fit"
        )
    if kind == "b":
        array = array * np.uint8(255)
    elif kind == "f":
        array = _eight_bits(unit_floats(array))
    elif array.itemsize == 2:
        array = _eight_bits(array / 65_535)
    return Image.fromarray(np.ascontiguousarray(array))


def _eight_bits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return rounded


def _opened_heif(blob: bytes) -> Image.Image:
    """A HEIC image, whose pixels are not decoded yet; Pillow itself learns nothing of the format."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise _NotAPicture("HEIC images need pip install 'pictish[heic]'") from None
    image: Image.Image = HeifImageFile(io.BytesIO(blob))  # type: ignore[no-untyped-call]
    return image


def fit_square(image: Image.Image, side: int, *, exact: bool = False) -> npt.NDArray[np.uint8]:
    """The whole RGB image squashed to a square, (side, side, 3) uint8, bicubic with antialiasing.

    An image of four times the side or more is first reduced by a whole number, which takes half the time;
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
    """RGB, or RGBA where there is transparency."""
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        return Image.fromarray(_eight_bits(unit_floats(np.asarray(image)))).convert("RGB")
    if image.mode == "La":  # premultiplied; Pillow converts it to nothing else
        image = image.convert("LA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits: white is 65,535, or 2**31 - 1 when a pixel is above that."""
    values: npt.NDArray[Any] = np.asarray(image).astype(np.int64)
    white = 65_535 if values.max() <= 65_535 else 2**31 - 1
    grey = ((values.clip(0, white) * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def png_bytes(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """The image as PNG, with the text chunks of `info`."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, pnginfo=info)
    return buffer.getvalue()
