"""`pictish generate`: words, or words and pictures, to pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL import Image


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


def run(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What to draw; one picture each.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that goes before the words; may be given again.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 1,
    seed: Seed = 0,
    guidance: Annotated[float, typer.Option(help="How strictly to follow the words; 1 is not at all.")] = 2.5,
    image_guidance: Annotated[float, typer.Option(help="The same for the pictures given.")] = 1.5,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    min_tokens: MinTokens = 1,
    max_tokens: MaxTokens = None,
    size: Size = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")] = 8,
    model: Model = "starter",
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw what each PROMPT says: OUT/words-of-the-prompt-SEED.png, and its tokens beside it.

    The same prompt, seed and model give the same picture on the same machine.
    """
    from pictish.lm.autoregressive import Guidance
    from pictish.lm.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p)
    given = [given_picture(path) for path in image or []]
    jobs = [(prompt, seed + number) for prompt in prompts for number in range(count)]
    names = [f"{slug(prompt)}-{number}" for prompt, number in jobs]
    check_new(out, names, overwrite)
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.training.world import resolve_device

    drawer = TextToImage.from_folder(model, resolve_device(device))
    guide = Guidance(text_scale=guidance, image_scale=image_guidance)
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        tokens = drawer.tokens(
            [[*given, prompt] for prompt, _ in part],
            generators([number for _, number in part]),
            sampling=sampling,
            guidance=guide,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
        )
        pictures = drawer.reconstructor(tokens, size)
        for name, token, picture in zip(names[start:], tokens, pictures, strict=False):
            store(out, name, picture, token.to_bytes())
            if not quiet:
                print(f"{out / name}.png  {len(token)} tokens")


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


def slug(text: str, longest: int = 48) -> str:
    """A file name from a prompt: its letters and digits in lower case, words joined by dashes."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:longest].strip("-") or "picture"


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
