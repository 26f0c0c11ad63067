"""`pictish detokenize`: images from tokens."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from pictish.commands.options import (
    BatchSize,
    Device,
    LowRes,
    Model,
    Overwrite,
    PixelGuidance,
    Scheduler,
    Size,
    Steps,
    Upscale,
    decoder,
    files,
    runtime,
)


class Format(enum.StrEnum):
    """Image file format."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


def run(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="TOKENS", help="Token files, token folders, or token shards.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    *,
    model: Model = "starter",
    format: Annotated[Format, files(help="Image file format.")] = Format.png,
    overwrite: Overwrite = False,
    steps: Steps = None,
    pixel_guidance: PixelGuidance = None,
    scheduler: Scheduler = None,
    seed: Annotated[
        int,
        decoder(
            metavar="N",
            min=0,
            max=2**63 - 1,
            help="Random seed of the initial noise, the same for every image.",
        ),
    ] = 0,
    upscale: Upscale = None,
    size: Size = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    strict: Annotated[bool, runtime("--strict", help="Stop at the first damaged token file.")] = False,
    quiet: Annotated[bool, runtime("--quiet", help="No progress bar and no summary.")] = False,
    lowres: LowRes = False,
) -> None:
    """Reconstruct images: TOKENS/sub/name.tokens becomes OUT/sub/name.png, in the original aspect ratio.

    An interrupted run resumes where it stopped. Damaged tokens are reported and skipped, and the exit code is
    then 1.
    """
    from pictish.bulk import detokenize
    from pictish.pipelines.settings import Drawing

    drawing = Drawing(steps, pixel_guidance, scheduler, upscale)
    failures = detokenize.run(
        inputs,
        out,
        model,
        drawing,
        format=format.value,
        seed=seed,
        size=size,
        lowres=lowres,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
        strict=strict,
        quiet=quiet,
    )
    if failures:
        raise typer.Exit(1)
