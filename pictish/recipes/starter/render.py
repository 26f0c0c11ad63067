"""One image: SVG markup or an encoded one in, a square PNG out; photographs stay as they are."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from pictish.data.images import load_image
from pictish.recipes.starter.avatars import Avatar

MAX_PIXELS = 64_000_000
BLANK_RANGE = 8


@dataclass(frozen=True)
class Svg:
    """An iconify icon: its markup, its view box, and what its alias does to it (in this order)."""

    body: str
    left: float
    top: float
    width: float
    height: float
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: int = 0


@dataclass(frozen=True)
class PngFile:
    """A PNG file on disk."""

    path: Path


@dataclass(frozen=True)
class Markup:
    """A whole SVG of a square image."""

    svg: str


@dataclass(frozen=True)
class Encoded:
    """A PNG or WebP file of a package."""

    blob: bytes


@dataclass(frozen=True)
class Photograph:
    """An image in a shard: where its bytes lie, and the suffix that says how it is encoded."""

    shard: Path
    offset: int
    size: int
    suffix: str


Task = Svg | Markup | PngFile | Encoded | Photograph | Avatar


@dataclass(frozen=True)
class Rendered:
    """An encoded image and its suffix, or why there is none: `blank`, `small`, `large`, `broken`."""

    blob: bytes | None
    left_out: str | None = None
    suffix: str = "png"


def renderer_versions() -> dict[str, str]:
    """Return the versions of what draws; ValueError that says what to install when resvg-py is missing."""
    try:
        import resvg_py
    except ImportError as error:
        raise ValueError(
            "data starter draws with resvg-py, which is not installed: pip install 'pictish[starter-data]'"
        ) from error
    return {"resvg_py": resvg_py.__version__, "pillow": PIL.__version__}


def render(task: Task, side: int) -> Rendered:
    """Draw or load an image with its longest side at `side` px, centred on a transparent square canvas.

    The PNG is RGBA, or RGB when the image has no transparent pixel. Transparent margins of files are cut
    off. Files whose longest side is then under half of `side` (`small`) or that have more than 64 megapixels
    (`large`) give none, and neither do images that show nothing over white (`blank`). A photograph that can
    be decoded is returned as it is. An `Avatar` has to be made `Markup` first.
    """
    if isinstance(task, Photograph):
        return _photograph(task)
    assert not isinstance(task, Avatar)
    if isinstance(task, Svg):
        picture = _draw(task, side)
    elif isinstance(task, Markup):
        picture = _rasterized(task.svg, side, side)
    else:
        try:
            loaded = _load(task.path if isinstance(task, PngFile) else io.BytesIO(task.blob), side)
        except Image.DecompressionBombError:
            return Rendered(None, "large")
        except (OSError, ValueError, SyntaxError):
            return Rendered(None, "broken")
        if isinstance(loaded, str):
            return Rendered(None, loaded)
        picture = loaded
    if _blank(picture):
        return Rendered(None, "blank")
    if picture.size != (side, side):
        canvas = Image.new("RGBA", (side, side))
        canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = canvas
    if picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=9)
    return Rendered(buffer.getvalue())


def _fitted(width: float, height: float, side: int) -> tuple[int, int]:
    """Return the size with the longest side at `side` px and the shape kept."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw(task: Svg, side: int) -> Image.Image:
    """Draw an icon."""
    width, height = _fitted(task.width, task.height, side)
    box = f"{task.left:g} {task.top:g} {task.width:g} {task.height:g}"
    markup = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}">{task.body}</svg>'
    )
    picture = _rasterized(markup, width, height)
    if task.flip_horizontal:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if task.flip_vertical:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    turns = {1: Image.Transpose.ROTATE_270, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_90}
    turn = turns.get(task.quarter_turns % 4)
    return picture if turn is None else picture.transpose(turn)


def _rasterized(markup: str, width: int, height: int) -> Image.Image:
    """Draw an SVG; no font of this machine takes part."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=markup, width=width, height=height, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _photograph(task: Photograph) -> Rendered:
    with task.shard.open("rb") as file:
        file.seek(task.offset)
        blob = file.read(task.size)
    try:
        load_image(blob, MAX_PIXELS)
    except ValueError:
        return Rendered(None, "broken")
    return Rendered(blob, suffix=task.suffix)


def _load(source: Path | io.BytesIO, side: int) -> Image.Image | str:
    """Load a PNG or WebP file as RGBA at its new size, or return the word why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        opened = Image.open(source, formats=["PNG", "WEBP"])
    with opened:
        if opened.width * opened.height > MAX_PIXELS:
            return "large"
        picture = opened.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha >= BLANK_RANGE)).getbbox()
    if box is None:
        return "blank"
    picture = picture.crop(box)
    if max(picture.size) * 2 < side:
        return "small"
    return picture.resize(_fitted(*picture.size, side), Image.Resampling.BICUBIC)


def _blank(picture: Image.Image) -> bool:
    """Say whether the image, laid on white, is one flat colour."""
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    pixels = np.asarray(white.convert("RGB"))
    return bool(np.ptp(pixels, axis=(0, 1)).max() < BLANK_RANGE)
