"""`pictish generate`: images from text, or from text and images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pictish.commands import draw, options
from pictish.io.model_folder import Part

if TYPE_CHECKING:
    from pictish.data.provenance import Request


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
    output_projector: Annotated[
        Path | None,
        options.files(
            metavar="DIR",
            help="Output projector to draw through instead of codes; the image then stores no recipe.",
        ),
    ] = None,
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
    best_of: options.BestOf = None,
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
    if output_projector is not None:
        _without_codes(ctx, jobs, output_projector)
        return
    others: dict[Part, Path | None] = {"lm": lm, "decoder": decoder}
    chosen = {name: folder for name, folder in others.items() if folder is not None}
    if not chosen:
        draw.carry_out(ctx, jobs, given, origin)
        return
    from pictish.pipelines.assemble import with_parts

    with with_parts(model, chosen) as together:
        ctx.params["model"] = str(together)
        draw.carry_out(ctx, jobs, given, origin)


OF_CODES = (
    "image",
    "like",
    "save_tokens",
    "adaptor",
    "adaptor_folder",
    "aspect",
    "quantize",
    "official_quirks",
    "lowres",
)
"""Options that are about codes, beside those of sampling."""


def _without_codes(ctx: typer.Context, jobs: "Sequence[tuple[str, Request]]", projector: Path) -> None:
    """Draw through an output projector; ValueError for options that are about codes."""
    from contextlib import nullcontext

    from pictish.data.images import png_bytes
    from pictish.io.files import write_atomic
    from pictish.io.interrupt import in_units, stop_here
    from pictish.pipelines.assemble import with_parts
    from pictish.pipelines.continuous import generate
    from pictish.pipelines.recipe import CONFIG
    from pictish.training.runtime import resolve_device

    given = ctx.params
    for name in (*OF_CODES, *(CONFIG[setting] for setting in generate.OF_CODES)):
        if not draw.is_default(ctx, name):
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option}: applies to codes, which --output-projector does not write; omit it"
            )
    files = draw.files_of(ctx)
    files.check([name for name, _ in jobs])
    config = draw.config_of(jobs[0][1])
    decoder = given["decoder"]
    with (
        with_parts(given["model"], {"decoder": decoder}) if decoder else nullcontext(given["model"]) as model
    ):
        generator = generate.ContinuousGenerator.from_folder(
            projector,
            model,
            given["lm"],
            resolve_device(given["device"]),
            steps=config.num_inference_steps,
            precision=jobs[0][1].precision,
        )
    drawn = []
    with in_units("batch"):
        for start in range(0, len(jobs), given["batch_size"]):
            stop_here(f"interrupted; {start} of {len(jobs)} images are in {files.out}")
            part = jobs[start : start + given["batch_size"]]
            words = [request.words or "" for _, request in part]
            made = generator(words, [request.seed for _, request in part], config)
            for (name, request), image in zip(part, made, strict=True):
                write_atomic(files.out / f"{name}.png", png_bytes(image))
                if not files.quiet:
                    print(f"{files.out / name}.png  seed {request.seed}")
            drawn += made if files.grid else []
    if files.grid:
        files.store_grid(drawn)


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
