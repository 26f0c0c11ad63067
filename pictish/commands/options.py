"""Options that several commands have."""

import enum
from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[str, typer.Option(help="Model folder, or `starter`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Count = Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first picture; the next ones count on from it.")]
Size = Annotated[int | None, typer.Option(min=1, max=16_384, help="Longer side of the pictures in pixels.")]


Upscale = Annotated[
    Literal[1, 2, 4] | None,
    typer.Option(help="Super-resolution factor; 1 is off. Default: that of the model's upscaler, if any."),
]


class Precision(enum.StrEnum):
    """Digits of the large networks."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Digits = Annotated[
    Precision, typer.Option("--precision", help="Of language model and denoiser; bfloat16 halves the memory.")
]
LowRes = Annotated[bool, typer.Option("--lowres", help="Draw with the decoder of low resolution.")]
Guided = Annotated[float | None, typer.Option(help="How strictly to follow the words; 1 adds nothing.")]
ImageGuided = Annotated[
    float | None, typer.Option(help="How strictly to follow the pictures given; 1 adds nothing.")
]
Quirks = Annotated[
    bool,
    typer.Option(
        "--official-quirks", help="Treat pictures in a prompt as LaVIT's code does, its defects included."
    ),
]
Temperature = Annotated[float | None, typer.Option(min=0, help="0 takes the likeliest code each time.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from so many likeliest codes only.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest codes with this share together.")]
MinP = Annotated[float | None, typer.Option(help="Leave out codes below this share of the likeliest.")]
MinTokens = Annotated[int | None, typer.Option(min=1, help="Tokens that a picture has at least.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens that a picture has at most.")]
Like = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Repeat the picture in FILE; options given replace its own."),
]
Grid = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write all pictures as one sheet, a PNG, too.")
]
SaveTokens = Annotated[bool, typer.Option("--save-tokens", help="Write the tokens beside each picture.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")]
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
