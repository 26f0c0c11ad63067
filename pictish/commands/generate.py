"""`pictish generate`: images from text, or from text and images."""

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
            metavar="PROMPT", help="Text to draw; one image per prompt. Optional with --image or --like."
        ),
    ] = None,
    *,
    prompts_file: Annotated[
        Path | None,
        options.files(
            "--prompts",
            metavar="FILE",
            help="Prompts from a file: one per line, or `prompt` of the rows of .jsonl or .csv; - is stdin.",
        ),
    ] = None,
    out: Annotated[Path, options.files(metavar="DIR", help="Output folder.")] = Path("generated"),
    image: Annotated[
        list[Path] | None,
        options.files(metavar="FILE", help="Input image placed before the prompt; repeat for more."),
    ] = None,
    like: options.Like = None,
    grid: options.Grid = None,
    save_tokens: options.SaveTokens = False,
    model: options.Model = "starter",
    lm: Annotated[
        Path | None, options.files(metavar="DIR", help="Language model to use instead of the model's own.")
    ] = None,
    decoder: Annotated[
        Path | None, options.files(metavar="DIR", help="Decoder to use instead of the model's own.")
    ] = None,
    adaptor: options.Adaptor = None,
    adaptor_folder: options.AdaptorFolders = None,
    overwrite: options.Overwrite = False,
    style: Annotated[
        str | None,
        options.sampling(
            metavar="NAME",
            help="Style appended to the prompt; the starter model knows noto, twemoji, fluent-emoji-flat "
            "and openclipart.",
        ),
    ] = None,
    count: options.Count = 1,
    seed: options.Seed = 0,
    aspect: Annotated[
        str | None,
        options.sampling(metavar="W:H", help="Aspect ratio, width to height, such as 3:2 (default: square)."),
    ] = None,
    guidance: options.Guided = None,
    image_guidance: options.ImageGuided = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    min_tokens: options.MinTokens = None,
    max_tokens: options.MaxTokens = None,
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
    """Generate one image per PROMPT, written to OUT/words-of-the-prompt-SEED.png.

    Unset options use the model's defaults. The same prompt, seed and model give the same image on the same
    machine. Each image file stores its settings and tokens, so --like can redraw it; the stored tokens are
    reused unless the prompt, the seed or a sampling option changes.
    """
    from pictish.pipelines.image_requests import names_of

    origin = draw.origin_of(like, "generate")
    if adaptor is None and adaptor_folder:
        from pictish.pipelines.adaptors import choose_adaptor

        chosen_adaptor = choose_adaptor(None, model, adaptor_folder)
        ctx.params["adaptor"] = None if chosen_adaptor is None else chosen_adaptor[0]
    given = [draw.given_picture(path) for path in image or []]
    listed = [*(prompts or []), *(_prompts_in(prompts_file) if prompts_file is not None else [])]
    texts: list[str | None] = [*listed] if listed else [origin.prompt if origin else None]
    requests = [draw.asked(ctx, text, given, origin) for text in texts]
    if not (requests[0].prompt is not None or requests[0].pictures):
        raise ValueError("nothing to generate: give a PROMPT, an --image, or both")
    stems = " ".join(path.stem for path in image or [])
    names = names_of([request.words or stems for request in requests])
    jobs = [
        (f"{name}-{each.seed}", each)
        for name, request in zip(names, requests, strict=True)
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
    """The prompts of a file, or of standard input: lines that are not blank, or a table's column `prompt`.

    ValueError where there are none, for text that is not UTF-8 and for rows without a prompt.
    """
    import csv
    import io
    import sys

    from pictish.data.generated import read_metadata
    from pictish.io.files import printable, read_regular_file

    try:
        blob = sys.stdin.buffer.read() if str(file) == "-" else read_regular_file(file)
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"--prompts {printable(file)}: not UTF-8 text") from None
    match file.suffix.lower():
        case ".jsonl":
            found = [entry["prompt"].strip() for entry in read_metadata(file)]
        case ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            found = [(row.get("prompt") or "").strip() for row in rows]
            if "" in found:
                row = found.index("") + 1
                raise ValueError(f"--prompts {printable(file)}: row {row} has no prompt")
        case _:
            found = [line.strip() for line in text.splitlines()]
    if not any(found):
        raise ValueError(f"--prompts {printable(file)}: holds no prompt")
    return list(filter(None, found))
