"""Small pictures in a terminal: half blocks in 24-bit colours, two pixels a letter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

COLUMNS = 32


def refused(stream: TextIO, environment: Mapping[str, str]) -> str | None:
    """Why no pictures can be shown on `stream`, or None when they can."""
    if not stream.isatty():
        return "the output is not a terminal"
    if environment.get("NO_COLOR"):
        return "NO_COLOR is set"
    if environment.get("TERM") == "dumb":
        return "TERM is dumb"
    if not (stream.encoding or "").lower().startswith("utf"):
        return f"the terminal's encoding, {stream.encoding}, has no half blocks"
    return None


def show(picture: "Image.Image", stream: TextIO) -> None:
    """Print the picture on `stream`."""
    from rich.console import Console

    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=COLUMNS)
    console.print(half_blocks(picture))


def half_blocks(picture: "Image.Image") -> "Text":
    """The picture within COLUMNS letters and half as many lines; what is larger is made smaller."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    small = picture.convert("RGB")
    small.thumbnail((COLUMNS, COLUMNS))
    lines = []
    for y in range(0, small.height, 2):
        line = Text()
        for x in range(small.width):
            halves = [small.getpixel((x, row)) for row in range(y, min(y + 2, small.height))]
            upper, *lower = [Color.from_rgb(*half) for half in halves if isinstance(half, tuple)]
            line.append("▀", Style(color=upper, bgcolor=lower[0] if lower else None))
        lines.append(line)
    return Text("\n").join(lines)
