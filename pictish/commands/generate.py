"""`pictish generate`: words, or words and pictures, to pictures."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import draw, options


def run(
    ctx: typer.Context,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw; one picture each. With --image or --like it may be left away.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that goes before the words; may be given again.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Said behind the words; the starter knows noto, twemoji, fluent-emoji-flat, openclipart.",
        ),
    ] = None,
    like: options.Like = None,
    count: options.Count = 1,
    seed: options.Seed = 0,
    aspect: Annotated[
        str | None, typer.Option(metavar="W:H", help="Width to height, such as 3:2; a square unless given.")
    ] = None,
    guidance: options.Guided = None,
    image_guidance: options.ImageGuided = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    min_tokens: options.MinTokens = None,
    max_tokens: options.MaxTokens = None,
    official_quirks: options.Quirks = False,
    lowres: options.LowRes = False,
    precision: options.Digits = options.Precision.float32,
    steps: options.Steps = None,
    pixel_guidance: options.PixelGuidance = None,
    scheduler: options.Scheduler = None,
    upscale: options.Upscale = None,
    size: options.Size = None,
    grid: options.Grid = None,
    save_tokens: options.SaveTokens = False,
    batch_size: options.BatchSize = 8,
    model: options.Model = "starter",
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what each PROMPT says: OUT/words-of-the-prompt-SEED.png. Settings left away are the model's own.

    The same prompt, seed and model give the same picture on the same machine. Each picture says in its file
    how it was drawn, and --like repeats it from there; where words, seed and sampling stay as they were,
    the very tokens in it are drawn.
    """
    origin = draw.origin_of(like, "generate")
    given = [draw.given_picture(path) for path in image or []]
    texts: list[str | None] = [*prompts] if prompts else [origin.prompt if origin else None]
    requests = [draw.asked(ctx, text, given, origin) for text in texts]
    if not (requests[0].prompt is not None or requests[0].pictures):
        raise ValueError("nothing to draw: give a PROMPT, an --image, or both")
    stems = " ".join(path.stem for path in image or [])
    jobs = [
        (f"{draw.slug(request.words or stems)}-{each.seed}", each)
        for request in requests
        for each in draw.with_seeds(request, count)
    ]
    draw.carry_out(ctx, jobs, given, origin)
