"""`pictish generate`: words, or words and pictures, to pictures."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import draw, options
from pictish.io.model_folder import Part


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
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Prompts from a file, one a line; - reads standard input."
        ),
    ] = None,
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
    lm: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Language model to use instead of the model's own.")
    ] = None,
    decoder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Decoder to use instead of the model's own.")
    ] = None,
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
    listed = [*(prompts or []), *(_prompts_in(prompts_file) if prompts_file is not None else [])]
    texts: list[str | None] = [*listed] if listed else [origin.prompt if origin else None]
    requests = [draw.asked(ctx, text, given, origin) for text in texts]
    if not (requests[0].prompt is not None or requests[0].pictures):
        raise ValueError("nothing to draw: give a PROMPT, an --image, or both")
    stems = " ".join(path.stem for path in image or [])
    jobs = [
        (f"{draw.slug(request.words or stems)}-{each.seed}", each)
        for request in requests
        for each in draw.with_seeds(request, count)
    ]
    others: dict[Part, Path | None] = {"lm": lm, "decoder": decoder}
    chosen = {name: folder for name, folder in others.items() if folder is not None}
    if not chosen:
        draw.carry_out(ctx, jobs, given, origin)
        return
    from pictish.pipelines.assemble import with_parts

    with with_parts(model, chosen) as together:
        ctx.params["model"] = str(together)
        draw.carry_out(ctx, jobs, given, origin)


def _prompts_in(file: Path) -> list[str]:
    """The prompts of a file, or of standard input: lines that are not blank.

    ValueError where there are none, or for text that is not UTF-8.
    """
    import sys

    from pictish.io.files import printable, read_regular_file

    try:
        blob = sys.stdin.buffer.read() if str(file) == "-" else read_regular_file(file)
        found = [line.strip() for line in blob.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"--prompts {printable(file)}: not UTF-8 text") from None
    if not any(found):
        raise ValueError(f"--prompts {printable(file)}: holds no prompt; one a line would fit")
    return list(filter(None, found))
