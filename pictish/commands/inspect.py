"""`pictish inspect`: what is kept of a picture, which patches share a code, statistics of tokens."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands.options import Steps, Upscale

if TYPE_CHECKING:
    from pictish.data.tokens import TokenizedImage
    from pictish.evaluation.pictures import Broken
    from pictish.io.report import Report


def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|TOKENS", help="One picture; or token files, token folders, shards."),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Where the drawing goes (PNG); NAME-inspect.png here unless given.")
    ] = None,
    codebook: Annotated[
        bool,
        typer.Option(
            "--codebook", help="Draw patches of these pictures, folders or shards that share a code."
        ),
    ] = False,
    model: Annotated[str, typer.Option(help="Model folder, or `starter`; not used for tokens.")] = "starter",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    steps: Steps = None,
    upscale: Upscale = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Keep exactly so many patches.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Keep patches with a score above this.")] = None,
    quality: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Keep as few patches as are expected to reach this PSNR, in dB."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing drawing.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bar, and no text about a drawing.")
    ] = False,
) -> None:
    """Draw what is kept of a picture, or patches that share a code; or print statistics of tokens."""
    from pictish.io.report import Report

    settings = {"budget": budget, "threshold": threshold, "quality": quality}
    given = [f"--{name} {value}" for name, value in settings.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given; give one of them")
    for name, value in {"steps": steps, "upscale": upscale}.items():
        if codebook and value is not None:
            raise ValueError(f"--{name} {value} is for one picture; with --codebook nothing is decoded")
    with Report("reading", None, quiet=quiet, strict=False) as report:
        if codebook:
            target = _free(out or Path("codebook.png"), overwrite)
            facts = _codebook(inputs, target, model, device, settings, report)
            lines = _code_lines(facts)
        elif _is_picture(inputs):
            target = _free(out or Path(f"{inputs[0].stem}-inspect.png"), overwrite)
            facts = _picture(inputs[0], target, model, device, steps, upscale, settings)
            lines = _picture_lines(facts)
        else:
            options: dict[str, Any] = {"out": out, "steps": steps, "upscale": upscale, **settings}
            for name, setting in options.items():
                if setting is not None:
                    raise ValueError(f"--{name} is for pictures; of tokens, given here, numbers are printed")
            facts = _tokens(inputs, report)
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
    """Whether one picture is asked for; ValueError for several, or for a folder without tokens."""
    from pictish.data.images import SUFFIXES
    from pictish.io.files import printable
    from pictish.io.storage import holds_shards

    pictures = [entry for entry in inputs if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    if pictures and len(inputs) > 1:
        raise ValueError(
            f"one picture is drawn at a time, {len(inputs)} inputs came; --codebook takes many pictures"
        )
    for entry in inputs:
        if entry.is_dir() and not holds_shards(entry) and next(entry.rglob("*.tokens"), None) is None:
            raise ValueError(
                f"{printable(entry)}: no tokens in this folder (*.tokens, *.tar); "
                "give one picture to draw, or pictures with --codebook"
            )
    return bool(pictures)


def _free(target: Path, overwrite: bool) -> Path:
    """The file to draw into; ValueError when it is no PNG by name, or exists and is not to be replaced."""
    if target.suffix.lower() != ".png":
        raise ValueError(f"--out {target}: the drawing is a PNG; give a name that ends in .png")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists already; give --overwrite to replace it, or another --out")
    return target


def _picture(
    source: Path,
    target: Path,
    model: str,
    device: str,
    steps: int | None,
    upscale: int | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Tokenize one picture, write its drawing, return its facts."""
    from pictish.data.images import load_image, png_bytes
    from pictish.evaluation.drawing import Panels, four_panels
    from pictish.io.files import one_line, printable, write_atomic
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.settings import Drawing
    from pictish.training.world import resolve_device

    try:
        picture = load_image(source)
    except ValueError as error:
        raise ValueError(f"{printable(source)}: {one_line(error)}") from error
    draw = Reconstructor.from_folder(model, resolve_device(device), steps=steps)
    tokenizer = draw.tokenizer
    (token,) = tokenizer.tokenize([picture], **settings)
    assert token.cells is not None, "the tokenizer always says which cells it kept"
    scores = _scores(tokenizer, picture)[token.cells]
    cells = tokenizer.grid[0] * tokenizer.grid[1]
    drawing = four_panels(
        Panels(
            picture=picture,
            reconstruction=draw([token], drawing=Drawing(steps, upscale=upscale))[0],
            grid=token.grid,
            cells=token.cells,
            scores=scores,
            ids=token.ids,
            title=f"{printable(source.name)}  ·  {picture.width} by {picture.height} px",
            caption=f"{len(token)} tokens, one for each kept patch of {cells}  ·  {token.bits:,.0f} bits  ·  "
            f"{token.bits_per_pixel:.2g} bits per pixel",
        )
    )
    write_atomic(target, png_bytes(drawing))
    return {
        "picture": printable(source.name),
        "size": list(token.size),
        "grid": list(token.grid),
        "tokenizer": token.tokenizer,
        "codebook_size": token.codebook_size,
        "tokens": len(token),
        "ids": token.ids.tolist(),
        "cells": token.cells.tolist(),
        "scores": [round(float(score), 4) for score in scores],
        "bits": token.bits,
        "bits_per_pixel": token.bits_per_pixel,
        "drawing": printable(target),
    }


def _scores(tokenizer: Any, picture: Any) -> Any:
    """The selector's keep probability of every cell, (cells,) float."""
    import torch

    pixels = torch.from_numpy(tokenizer.squash(picture)[None])
    return tokenizer.scores(pixels)[0].float().cpu().numpy()


def _picture_lines(facts: dict[str, Any], shown: int = 16) -> list[str]:
    cells = facts["grid"][0] * facts["grid"][1]
    ids = " ".join(map(str, facts["ids"][:shown])) + (" ..." if len(facts["ids"]) > shown else "")
    return [
        f"{facts['picture']}: {facts['tokens']} tokens of at most {cells}, {facts['bits']:,.0f} bits, "
        f"{facts['bits_per_pixel']:.2g} bits per pixel",
        f"ids: {ids}",
        f"drawing: {facts['drawing']}",
    ]


def _codebook(
    inputs: list[Path], target: Path, model: str, device: str, settings: dict[str, Any], report: "Report"
) -> dict[str, Any]:
    """Tokenize all pictures, draw the code sheet, return the codes' statistics."""
    from pictish.commands.evaluate import told
    from pictish.evaluation.codebook import draw_codes, gather_codes
    from pictish.evaluation.pictures import PictureSource
    from pictish.io.files import printable, write_atomic
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.world import resolve_device

    source = PictureSource(inputs)
    tokenizer = Tokenizer.from_folder(model, device=resolve_device(device))
    examples = gather_codes(told(source.decode(), report), tokenizer, **settings, advance=report.done)
    write_atomic(target, draw_codes(examples, source))
    return {**examples.statistics.summary(), "drawing": printable(target)}


def _code_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"{facts['pictures']:,} pictures, {facts['tokens']['total']:,} tokens, {facts['codes_used']:,} of "
        f"{facts['codebook_size']:,} codes used, perplexity {facts['perplexity']:,.0f}",
        f"drawing: {facts['drawing']}",
    ]


def _tokens(inputs: list[Path], report: "Report") -> dict[str, Any]:
    """Statistics of token files, token folders and shards; damaged ones are told, not counted."""
    from pictish.evaluation.metrics import CodeStatistics
    from pictish.evaluation.pictures import Broken

    statistics: CodeStatistics | None = None
    for each in _read_tokens(inputs):
        if isinstance(each, Broken):
            report.failed(each.name, each.error)
            continue
        if statistics is None:
            statistics = CodeStatistics(each.codebook_size, each.tokenizer)
        statistics.add(each)
        report.done()
    if statistics is None:
        raise ValueError("no statistics: no readable tokens")
    lengths = {str(length): number for length, number in statistics.length_histogram().items()}
    return {**statistics.summary(), "tokenizer": statistics.tokenizer, "lengths": lengths}


def _read_tokens(inputs: list[Path]) -> "Iterator[TokenizedImage | Broken]":
    from pictish.data.shards import find_shards, read_shard
    from pictish.data.token_folder import find_tokens, read_tokens
    from pictish.data.tokens import TokenizedImage
    from pictish.evaluation.pictures import Broken
    from pictish.io.files import one_line
    from pictish.io.storage import holds_shards

    shards = [entry for entry in inputs if holds_shards(entry)]
    others = [entry for entry in inputs if entry not in shards]
    for file in find_tokens(others) if others else []:
        try:
            yield read_tokens(file.path)
        except (ValueError, OSError) as error:
            yield Broken(file.name, one_line(error))
    for shard in find_shards(shards) if shards else []:
        for sample in read_shard(shard):
            if "tokens" not in sample:
                yield Broken(f"{shard.name}/{sample['__key__']}", "this sample has no tokens")
                continue
            try:
                yield TokenizedImage.from_bytes(sample["tokens"])
            except ValueError as error:
                yield Broken(f"{shard.name}/{sample['__key__']}", one_line(error))


def _print_statistics(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    tokens = facts["tokens"]
    rows = [
        ("pictures", f"{facts['pictures']:,}"),
        ("tokenizer", facts["tokenizer"]),
        ("tokens", f"{tokens['total']:,}"),
        (
            "tokens a picture",
            f"mean {tokens['mean']:.1f}, median {tokens['p50']}, 95th percentile {tokens['p95']}",
        ),
        ("codes used", f"{facts['codes_used']:,} of {facts['codebook_size']:,} ({facts['usage']:.1%})"),
        ("perplexity", f"{facts['perplexity']:,.1f}"),
        ("bits a picture", f"{facts['bits_per_picture']:,.1f} ({facts['bits_per_token']:.4g} a token)"),
        ("bits per pixel", f"{facts['bits_per_pixel']:.3g}"),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    console.print("\ntokens a picture", highlight=False)
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
