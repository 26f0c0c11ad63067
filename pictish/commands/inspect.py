"""`pictish inspect`: what is kept of an image, which patches share a code, statistics of tokens."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from pictish.commands.options import Device, Model, Overwrite, Steps, Upscale, files, runtime, selection


def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|TOKENS", help="One image; or token files, token folders or token shards."
        ),
    ],
    *,
    out: Annotated[
        Path | None, files(metavar="FILE", help="Output figure, a PNG (default: NAME-inspect.png).")
    ] = None,
    codebook: Annotated[
        bool,
        files("--codebook", help="Show which patches of these images, folders or shards share a code."),
    ] = False,
    as_json: Annotated[bool, files("--json", help="Print JSON instead of text.")] = False,
    model: Model = "starter",
    overwrite: Overwrite = False,
    budget: Annotated[
        int | None, selection(metavar="N", min=1, help="Exact number of tokens per image.")
    ] = None,
    threshold: Annotated[
        float | None, selection(metavar="T", help="Keep patches whose selector score is above T.")
    ] = None,
    quality: Annotated[
        float | None,
        selection(metavar="DB", help="Fewest tokens expected to reach this reconstruction PSNR, in dB."),
    ] = None,
    caption_key: Annotated[
        str | None, files(metavar="KEY", help="Field of the samples' JSON that holds the captions.")
    ] = None,
    steps: Steps = None,
    upscale: Upscale = None,
    device: Device = "auto",
    quiet: Annotated[
        bool, runtime("--quiet", help="No progress bar, and no text when a figure is written.")
    ] = False,
) -> None:
    """Visualize the tokens of an image, or the patches that share a code; or summarize token files."""
    from pictish.io.report import Report

    settings = {"budget": budget, "threshold": threshold, "quality": quality}
    given = [f"--{name} {value}" for name, value in settings.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; give only one of them")
    for name, value in {"steps": steps, "upscale": upscale}.items():
        if codebook and value is not None:
            raise ValueError(f"--{name} {value} does not apply to --codebook, which decodes nothing")
    with Report("reading", None, quiet=quiet, strict=False) as report:
        if codebook:
            from pictish.evaluation.inspection import inspect_codes

            target = _free(out or Path("codebook.png"), overwrite)
            facts = inspect_codes(inputs, target, model, device, settings, report)
            lines = _code_lines(facts)
        elif _is_picture(inputs):
            from pictish.evaluation.inspection import inspect_image

            target = _free(out or Path(f"{inputs[0].stem}-inspect.png"), overwrite)
            facts = inspect_image(inputs[0], target, model, device, steps, upscale, settings)
            lines = _picture_lines(facts)
        else:
            options: dict[str, Any] = {"out": out, "steps": steps, "upscale": upscale, **settings}
            for name, setting in options.items():
                if setting is not None:
                    raise ValueError(f"--{name} applies to images; for tokens, only statistics are printed")
            from pictish.evaluation.contents import inspect_tokens

            facts = inspect_tokens(inputs, caption_key, report)
            lines = []
    if as_json:
        print(json.dumps(facts, indent=2, sort_keys=True))
    elif not lines:
        _print_statistics(facts)
    elif not quiet:
        print("\n".join(lines))
    if report.failures:
        raise typer.Exit(1)


def _is_picture(inputs: list[Path]) -> bool:
    """Whether one image is asked for; ValueError for several, or for a folder without tokens."""
    from pictish.io.files import printable
    from pictish.io.finding import find, kind_of

    pictures = [entry for entry in inputs if kind_of(entry.name) == "image" and not entry.is_dir()]
    if pictures and len(inputs) > 1:
        raise ValueError(
            f"expected a single image, got {len(inputs)} inputs; use --codebook for several images"
        )
    for entry in inputs:
        if not entry.is_dir():
            continue
        found = find([entry])
        if not found.shards and not any(name.endswith(".tokens") for name in found.others):
            raise ValueError(
                f"{printable(entry)}: no tokens in this folder (*.tokens, *.tar); "
                "give a single image, or several with --codebook"
            )
    return bool(pictures)


def _free(target: Path, overwrite: bool) -> Path:
    """The file to draw into; ValueError when it is no PNG by name, or exists and is not to be replaced."""
    if target.suffix.lower() != ".png":
        raise ValueError(f"--out {target}: figures are PNG files; give a name that ends in .png")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} already exists; give --overwrite to replace it, or another --out")
    return target


def _picture_lines(facts: dict[str, Any], shown: int = 16) -> list[str]:
    cells = facts["grid"][0] * facts["grid"][1]
    ids = " ".join(map(str, facts["ids"][:shown])) + (" ..." if len(facts["ids"]) > shown else "")
    return [
        f"{facts['picture']}: {facts['tokens']} of at most {cells} tokens, {facts['bits']:,.0f} bits, "
        f"{facts['bits_per_pixel']:.2g} bits per pixel",
        f"ids: {ids}",
        f"figure: {facts['drawing']}",
    ]


def _code_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"{facts['pictures']:,} images, {facts['tokens']['total']:,} tokens, {facts['codes_used']:,} of "
        f"{facts['codebook_size']:,} codes used, perplexity {facts['perplexity']:,.0f}",
        f"figure: {facts['drawing']}",
    ]


def _print_statistics(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pictish.evaluation.contents import shard_lines

    console = Console()
    for shard in facts.get("shards", []):
        for line in shard_lines(shard):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if "tokens" not in facts:
        return
    tokens = facts["tokens"]
    rows = [
        ("images", f"{facts['pictures']:,}"),
        ("tokenizer", facts["tokenizer"]),
        ("tokens", f"{tokens['total']:,}"),
        (
            "tokens per image",
            f"mean {tokens['mean']:.1f}, median {tokens['p50']}, 95th percentile {tokens['p95']}",
        ),
        ("codes used", f"{facts['codes_used']:,} of {facts['codebook_size']:,} ({facts['usage']:.1%})"),
        ("perplexity", f"{facts['perplexity']:,.1f}"),
        ("bits per image", f"{facts['bits_per_picture']:,.1f} ({facts['bits_per_token']:.4g} per token)"),
        ("bits per pixel", f"{facts['bits_per_pixel']:.3g}"),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    console.print("\ntokens per image", highlight=False)
    for line in histogram_lines({int(key): number for key, number in facts["lengths"].items()}):
        console.print(line, highlight=False, markup=False)


def histogram_lines(lengths: dict[int, int], bins: int = 16, width: int = 40) -> list[str]:
    """A line for each bin of equal width, empty ones too, with a bar of at most `width` characters."""
    low, high = min(lengths), max(lengths)
    step = math.ceil((high - low + 1) / bins)
    counts = [0] * math.ceil((high - low + 1) / step)
    for length, number in lengths.items():
        counts[(length - low) // step] += number
    names = [
        f"{start}" if step == 1 else f"{start} to {start + step - 1}"
        for start in range(low, low + step * len(counts), step)
    ]
    label, digits = max(map(len, names)), len(f"{max(counts):,}")
    lines = []
    for name, count in zip(names, counts, strict=True):
        eighths = round(8 * width * count / max(counts))
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        lines.append(f"{name:>{label}}  {count:>{digits},}  {bar or '▏' * bool(count)}".rstrip())
    return lines
