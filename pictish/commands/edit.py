"""`pictish edit`: a picture and what is to change about it, to a picture."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import draw


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
    like: draw.Like = None,
    count: draw.Count = 1,
    seed: draw.Seed = 0,
    guidance: draw.Guided = None,
    image_guidance: draw.ImageGuided = None,
    temperature: draw.Temperature = None,
    top_k: draw.TopK = None,
    top_p: draw.TopP = None,
    min_p: draw.MinP = None,
    min_tokens: draw.MinTokens = None,
    max_tokens: draw.MaxTokens = None,
    official_quirks: draw.Quirks = False,
    lowres: draw.LowRes = False,
    steps: draw.Steps = None,
    pixel_guidance: draw.PixelGuidance = None,
    scheduler: draw.Scheduler = None,
    keep: Annotated[
        bool, typer.Option(help="Leave the pixels alone where the new tokens tell what the old ones did.")
    ] = True,
    size: draw.Size = None,
    grid: draw.Grid = None,
    save_tokens: draw.SaveTokens = False,
    show: draw.Show = False,
    batch_size: draw.BatchSize = 8,
    model: draw.Model = "starter",
    device: draw.Device = "auto",
    overwrite: draw.Overwrite = False,
    quiet: draw.Quiet = False,
) -> None:
    """Change IMAGE as INSTRUCTION says: OUT/name-words-of-the-instruction-SEED.png, in the shape of IMAGE.

    Settings left away are the model's own. Each picture says in its file how it was drawn, and --like repeats it from there. IMAGE is then needed
    where pixels of it were kept, and where words, seed or sampling change.
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
