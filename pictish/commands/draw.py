"""What `pictish generate` and `pictish edit` share: options, names and the files they write."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 80  # bytes of a file name that a prompt gives

Model = Annotated[str, typer.Option(help="Model folder, or `starter`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first picture; the next ones count on from it.")]
Size = Annotated[int, typer.Option(min=1, max=16_384, help="Longer side of the pictures in pixels.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest code each time.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from so many likeliest codes only.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest codes with this share together.")]
MinP = Annotated[float | None, typer.Option(help="Leave out codes below this share of the likeliest.")]
MinTokens = Annotated[int, typer.Option(min=1, help="Tokens that a picture has at least.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens that a picture has at most.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace pictures that are there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")]
Steps = Annotated[
    int | None, typer.Option(min=0, max=1000, help="Steps of the diffusion decoder; 0 is the preview.")
]
PixelGuidance = Annotated[
    float | None, typer.Option(min=0, help="How strictly the decoder follows the tokens; 1 adds nothing.")
]
Scheduler = Annotated[
    str | None, typer.Option(help="Class name of a diffusers scheduler, such as DDIMScheduler.")
]


def given_picture(path: Path) -> "Image.Image":
    """The RGB picture a user named; ValueError says which file is none, OSError which cannot be read."""
    from pictish.data.files import printable
    from pictish.data.images import load_image

    try:
        return load_image(path)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from error


def generators(seeds: "Sequence[int]"):
    """One torch generator a seed."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


def slug(text: str) -> str:
    """A file name from a prompt: its letters and digits in lower case, words joined by dashes."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    whole = "-".join(words)
    # file systems count bytes, and two long prompts that begin alike are two pictures
    short = whole.encode()[:LONGEST].decode(errors="ignore").strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return (short if short == whole else f"{short}-{digest}") or "picture"


def check_new(out: Path, names: "Sequence[str]", overwrite: bool) -> None:
    """Refuse, with ValueError, names that come twice, and files that are there unless `overwrite`."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"two pictures would be called {twice[0]}.png; ask for them one after the other")
    there = [
        path for name in names for path in (out / f"{name}.png", out / f"{name}.tokens") if path.exists()
    ]
    if there and not overwrite:
        raise ValueError(f"{there[0]} is there already; choose another --out, or --overwrite")


def store(out: Path, name: str, picture: "Image.Image", tokens: bytes) -> None:
    """Write a picture and its tokens, each as a whole."""
    from pictish.data.files import write_atomic
    from pictish.data.images import png_bytes

    write_atomic(out / f"{name}.png", png_bytes(picture))
    write_atomic(out / f"{name}.tokens", tokens)
