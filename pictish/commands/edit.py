"""`pictish edit`: an image changed as a text instruction says."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import draw, options


def run(
    ctx: typer.Context,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Image to edit. Often optional with --like.")
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help="What to change, in words. Optional with --like."),
    ] = None,
    *,
    out: Annotated[Path, options.files(metavar="DIR", help="Output folder.")] = Path("edited"),
    like: options.Like = None,
    grid: options.Grid = None,
    save_tokens: options.SaveTokens = False,
    model: options.Model = "starter",
    overwrite: options.Overwrite = False,
    count: options.Count = 1,
    seed: options.Seed = 0,
    region: Annotated[
        str | None,
        options.sampling(
            metavar="X,Y,W,H",
            help="Redraw this rectangle of the image alone, in pixels. Needs a masked language model.",
        ),
    ] = None,
    guidance: options.Guided = None,
    image_guidance: options.ImageGuided = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    min_tokens: options.MinTokens = None,
    max_tokens: options.MaxTokens = None,
    keep: Annotated[
        bool, options.decoder(help="Keep source pixels where the edit left the tokens unchanged.")
    ] = True,
    steps: options.Steps = None,
    pixel_guidance: options.PixelGuidance = None,
    scheduler: options.Scheduler = None,
    upscale: options.Upscale = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 8,
    precision: options.Digits = options.Precision.float32,
    quantize: options.Bits = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    official_quirks: options.Quirks = False,
    lowres: options.LowRes = False,
) -> None:
    """Edit IMAGE as INSTRUCTION says, written to OUT/name-words-of-the-instruction-SEED.png.

    The result has the aspect ratio of IMAGE. Unset options use the model's defaults. Each image file stores
    its settings and tokens, so --like can redraw it; IMAGE is then needed only where source pixels were
    kept, or where the instruction, the seed or a sampling option changes. With --region all outside the
    rectangle stays.
    """
    from pictish.pipelines.image_requests import slug
    from pictish.pipelines.region import parse_region

    if region is not None:
        parse_region(region)  # refused before anything is loaded
    origin = draw.origin_of(like, "edit")
    if (image is None or instruction is None) and origin is None:
        raise ValueError("give an IMAGE and an INSTRUCTION, or --like FILE")
    given = [] if image is None else [draw.given_picture(image)]
    if instruction is None and origin is not None:
        instruction = origin.prompt
    request = draw.asked(ctx, instruction, given, origin)
    name = "-".join(slug(said) for said in (image and image.stem, request.prompt) if said)
    jobs = [(f"{name}-{each.seed}", each) for each in draw.with_seeds(request, count)]
    draw.carry_out(ctx, jobs, given, origin)
