"""Options that several commands have, and the panels that group them in `--help`."""

import enum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from pictish.io.hub import is_repo

# An option in one of the panels of `--help`.
files = partial(typer.Option, rich_help_panel="Input/Output")
selection = partial(typer.Option, rich_help_panel="Token selection")
sampling = partial(typer.Option, rich_help_panel="Sampling")
decoder = partial(typer.Option, rich_help_panel="Decoder")
runtime = partial(typer.Option, rich_help_panel="Runtime")
advanced = partial(typer.Option, rich_help_panel="Advanced")
seed = partial(runtime, metavar="N", min=0, max=2**63 - 1)  # of one random stream, in an evaluation


def local_model(model: str) -> str:
    """A model's name as the user gave it, or, of a model on the hub, the folder it was downloaded to."""
    from pictish.io.model_folder import resolve_model

    return str(resolve_model(model)) if is_repo(model) else model


MODEL = "Model folder, `starter`, or `user/repo[@revision]` on the hub."
Model = Annotated[str, files(metavar="MODEL", callback=local_model, help=MODEL)]
Adaptor = Annotated[
    str | None,
    files(metavar="NAME", help="Inner adaptor to read the language model through, by its folder's name."),
]
AdaptorFolders = Annotated[
    list[Path] | None,
    files(
        "--adaptor-folder",
        metavar="DIR",
        help="Folder of an adaptor, of its training run, or of several; repeat for more. "
        "Default: `adaptors/` of the model.",
    ),
]
Device = Annotated[str, runtime(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Count = Annotated[int, sampling(metavar="N", min=1, help="Number of images per prompt.")]
Seed = Annotated[
    int,
    sampling(
        metavar="N",
        min=0,
        help="Random seed of the first image; each further image adds 1.",
    ),
]
Size = Annotated[
    int | None,
    decoder(
        metavar="PIXELS",
        min=1,
        max=16_384,
        help="Length of the longer side of the images.",
    ),
]
Upscale = Annotated[
    Literal[1, 2, 4] | None,
    decoder(
        help="Super-resolution factor (1 disables it). Default: the factor of the model's upscaler, if any.",
    ),
]


class Precision(enum.StrEnum):
    """Data type of the large networks."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Digits = Annotated[
    Precision,
    runtime(
        "--precision",
        help="Data type of the language model and the denoiser; bfloat16 halves the memory.",
    ),
]
Bits = Annotated[
    Literal["int8", "int4"] | None,
    runtime(
        "--quantize",
        help="Quantize the weights of the language model (needs pictish[quantize]); int4 is slow on a CPU.",
    ),
]
LowRes = Annotated[bool, advanced("--lowres", help="Use the model's low-resolution decoder.")]
Guided = Annotated[
    float | None,
    sampling(
        metavar="SCALE",
        help="Text classifier-free guidance scale (1 disables it).",
    ),
]
ImageGuided = Annotated[
    float | None,
    sampling(
        metavar="SCALE",
        help="Image classifier-free guidance scale (1 disables it).",
    ),
]
Quirks = Annotated[
    bool,
    advanced(
        "--official-quirks",
        help="Handle images in a prompt exactly as the official LaVIT code does, bugs included.",
    ),
]
Temperature = Annotated[
    float | None, sampling(metavar="T", min=0, help="Sampling temperature (0 is greedy decoding).")
]
TopK = Annotated[
    int | None, sampling(metavar="K", min=1, help="Sample from the K most probable tokens only.")
]
TopP = Annotated[
    float | None,
    sampling(
        metavar="P",
        help="Nucleus sampling: smallest set of tokens with total probability >= P.",
    ),
]
MinP = Annotated[
    float | None,
    sampling(
        metavar="P",
        help="Drop tokens less probable than P times the most probable one.",
    ),
]
BestOf = Annotated[
    int | None,
    sampling(
        metavar="N",
        min=1,
        help="Sample N candidates per image and keep the one that the model would most likely caption "
        "with the prompt (1 disables it).",
    ),
]
MinTokens = Annotated[int | None, sampling(metavar="N", min=1, help="Minimum number of tokens per image.")]
MaxTokens = Annotated[int | None, sampling(metavar="N", min=1, help="Maximum number of tokens per image.")]
Like = Annotated[
    Path | None,
    files(
        metavar="FILE",
        help="Redraw the image in FILE from the settings stored in it; options given here override them.",
    ),
]
Grid = Annotated[Path | None, files(metavar="FILE", help="Also write all images as one grid (PNG).")]
SaveTokens = Annotated[bool, files("--save-tokens", help="Also write the tokens of each image.")]
BatchSize = Annotated[int, runtime(metavar="N", min=1, max=65_536, help="Number of images per batch.")]
Overwrite = Annotated[bool, files("--overwrite", help="Replace existing files.")]
Quiet = Annotated[bool, runtime("--quiet", help="Print errors only.")]
Steps = Annotated[
    int | None,
    decoder(
        metavar="N",
        min=0,
        max=1000,
        help="Number of denoising steps; 0 uses the preview decoder.",
    ),
]
PixelGuidance = Annotated[
    float | None,
    decoder(
        metavar="SCALE",
        min=0,
        max=100,
        help="Decoder classifier-free guidance scale (1 disables it).",
    ),
]
Scheduler = Annotated[
    str | None,
    decoder(
        metavar="CLASS",
        help="Name of a diffusers scheduler class, such as DDIMScheduler.",
    ),
]
