"""`pictish edit`: a picture and what is to change about it, to a picture."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import draw, options


def run(
    ctx: typer.Context,
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="The picture to be changed. With --like, often not needed."),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help="What to do with it. With --like it may be left away."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("edited"),
    like: options.Like = None,
    count: options.Count = 1,
    seed: options.Seed = 0,
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
    keep: Annotated[
        bool, typer.Option(help="Leave the pixels alone where the new tokens tell what the old ones did.")
    ] = True,
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
    """Change IMAGE as INSTRUCTION says: OUT/name-words-of-the-instruction-SEED.png, in the shape of IMAGE.

    Settings left away are the model's own. Each picture says in its file how it was drawn, and --like repeats
    it from there. IMAGE is then needed where pixels of it were kept, and where words, seed or sampling
    change.
    """
    origin = draw.origin_of(like, "edit")
    if (image is None or instruction is None) and origin is None:
        raise ValueError("an IMAGE and an INSTRUCTION are needed, or --like FILE")
    given = [] if image is None else [draw.given_picture(image)]
    if instruction is None and origin is not None:
        instruction = origin.prompt
    request = draw.asked(ctx, instruction, given, origin)
    name = "-".join(draw.slug(said) for said in (image and image.stem, request.prompt) if said)
    jobs = [(f"{name}-{each.seed}", each) for each in draw.with_seeds(request, count)]
    draw.carry_out(ctx, jobs, given, origin)
