"""`pictish evaluate decoder`: decoded images next to baselines, or quality and time per step count."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pictish.commands import options
from pictish.commands.evaluate import (
    Inputs,
    Limit,
    Overwrite,
    Photographs,
    Quiet,
    check_free,
    gain_lines,
    means_of,
    report_broken,
    say_files,
    sources_of,
    table,
    write_numbers,
)
from pictish.commands.options import Device, Model, PixelGuidance, Scheduler, decoder, files

if TYPE_CHECKING:
    import torch

    from pictish.evaluation.decoder import Coded, DecoderEvaluation
    from pictish.evaluation.pictures import FlatPictures, PictureSource
    from pictish.pipelines.settings import Drawing

NUMBERS, SHEET = "decoder.json", "decoder-{}.png"
CURVE_NUMBERS, CURVE_CHART = "decoder-curve.json", "decoder-curve.png"


def run(
    out: Annotated[Path, files(metavar="DIR", help="Output folder for the report (JSON) and figures (PNG).")],
    inputs: Inputs = None,
    *,
    model: Model = "starter",
    photographs: Photographs = False,
    limit: Limit = None,
    steps: Annotated[
        int | None,
        decoder(metavar="N", min=1, max=1000, help="Number of denoising steps (default: the decoder's own)."),
    ] = None,
    pixel_guidance: PixelGuidance = None,
    scheduler: Scheduler = None,
    upscale: Annotated[
        Literal[1, 2, 4],
        decoder(help="Compare at this multiple of the decoder's resolution, with and without the upscaler."),
    ] = 1,
    curve: Annotated[
        bool, decoder("--curve", help="Measure 1 to 50 steps with two schedulers instead, and draw a chart.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, options.seed(help="Random seed of the noise and the bootstrap.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compare a decoder with its preview, with thumbnails of equal bits, and with a mean image."""
    from rich.console import Console

    from pictish.io.files import check_apart
    from pictish.pipelines.settings import Drawing
    from pictish.training.runtime import resolve_device

    if curve and steps is not None:
        raise ValueError("--curve sweeps the number of steps; do not give --steps")
    if curve and upscale != 1:
        raise ValueError(f"--curve measures the decoder alone; do not give --upscale {upscale}")
    sources = sources_of(inputs, photographs, limit)
    names = [CURVE_NUMBERS, CURVE_CHART] if curve else [NUMBERS, *(SHEET.format(name) for name in sources)]
    check_apart(out, inputs or [], inside=False)
    check_free(out, names, overwrite)
    drawing = Drawing(steps, pixel_guidance, scheduler, upscale)
    evaluation = _load(model, resolve_device(device), drawing, seed)
    sets, failures = _code(evaluation, sources, quiet)
    tables = (_curve if curve else _measure)(evaluation, sets, out, quiet)
    if not quiet:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for each in tables:
            console.print(each)
        say_files(console, [out / name for name in names])
    if failures:
        raise typer.Exit(1)


def _load(model: str, device: "torch.device", drawing: "Drawing", seed: int) -> "DecoderEvaluation":
    from pictish.evaluation.decoder import DecoderEvaluation
    from pictish.evaluation.metrics import FeatureDistance
    from pictish.evaluation.renderers import preview_of
    from pictish.io.model_folder import find_decoder
    from pictish.pipelines.reconstruct import Reconstructor

    if find_decoder(model, "diffusion") is None:
        raise ValueError(f"{model}: has no diffusion decoder to evaluate")
    reconstructor = Reconstructor.from_folder(model, device)
    preview = preview_of(model, reconstructor.tokenizer, device)
    return DecoderEvaluation(reconstructor, preview, FeatureDistance(device), drawing, seed=seed)


def _code(
    evaluation: "DecoderEvaluation", sources: "dict[str, PictureSource | FlatPictures]", quiet: bool
) -> "tuple[list[Coded], int]":
    """Tokenize every set; returns the sets and the number of unreadable images."""
    from pictish.io.report import Report

    sets, failures = [], 0
    for name, source in sources.items():
        with Report(f"tokenizing {name}", source.total, quiet=quiet, strict=False) as report:
            sets.append(evaluation.code(name, report_broken(source.decode(), report), report.done))
        failures += report.failures
    return sets, failures


def _measure(evaluation: "DecoderEvaluation", sets: "list[Coded]", out: Path, quiet: bool) -> list[Any]:
    """Write sheets and numbers; the tables and lines to show."""
    from pictish.evaluation.sheets import decoder_sheet_of
    from pictish.io.files import write_atomic
    from pictish.io.report import Report

    numbers = evaluation.header()
    for coded in sets:
        ways = evaluation.ways(coded)
        with Report(coded.name, len(coded.names) * len(ways), quiet=quiet, strict=False) as report:
            measured = evaluation.measure(coded, ways, report.done)
        write_atomic(out / SHEET.format(coded.name), decoder_sheet_of(coded, ways, measured))
        numbers["sets"].append(evaluation.report_set(coded, measured))
    write_numbers(out / NUMBERS, numbers)
    tables: list[Any] = []
    for each in numbers["sets"]:
        rows = [(name, way, name == "decoder") for name, way in each["ways"].items()]
        heading = "diffusion decoder vs. baselines"
        lines = gain_lines(heading, each["gain_over"], evaluation.metrics, numbers["confidence"])
        tables += [_table(each, "way", rows, []), "\n".join(lines) + "\n"]
    return tables


def _curve(evaluation: "DecoderEvaluation", sets: "list[Coded]", out: Path, quiet: bool) -> list[Any]:
    """Write the chart and the numbers; the tables to show."""
    from pictish.evaluation.plot import steps_chart
    from pictish.io.files import write_atomic
    from pictish.io.report import Report

    numbers = evaluation.header()
    for coded in sets:
        ways = evaluation.curve_ways()
        with Report(coded.name, len(coded.names) * len(ways), quiet=quiet, strict=False) as report:
            numbers["sets"].append(evaluation.curve(coded, ways, report.done))
    write_atomic(out / CURVE_CHART, steps_chart(numbers))
    write_numbers(out / CURVE_NUMBERS, numbers)
    seconds = [("seconds", lambda point: f"{point['seconds']:.3f}")]
    tables = []
    for each in numbers["sets"]:
        for scheduler in dict.fromkeys(point["scheduler"] for point in each["points"]):
            own = [point for point in each["points"] if point["scheduler"] == scheduler]
            rows = [(str(point["steps"]), point, point["steps"] == numbers["steps"]) for point in own]
            rows += [("preview", each["preview"], False)] if each["preview"] else []
            titled = {**each, "name": f"{each['name']}, {scheduler}"}
            tables.append(_table(titled, "steps", rows, seconds))
    return tables


def _table(
    measured: dict[str, Any],
    first: str,
    rows: list[tuple[str, dict[str, Any], bool]],
    further: list[tuple[str, Callable[[dict[str, Any]], str]]],
) -> Any:
    """A table of at most 80 columns; KID in thousandths. A row is its name, its numbers, and whether bold."""
    columns = ("PSNR", "SSIM", "feature", f"FID-small({measured['pictures']})", "KID x1000")
    drawn = table(measured, first, [*columns, *(name for name, _ in further)])
    for name, numbers, bold in rows:
        fid, kid = numbers["fid_small"], numbers["kid"]
        drawn.add_row(
            name,
            *means_of(numbers, ("psnr", "ssim", "feature_distance")),
            "-" if fid is None else f"{fid:.3f}",
            "-" if kid is None else f"{1000 * kid['mean']:.2f} ±{1000 * kid['std']:.2f}",
            *(text(numbers) for _, text in further),
            style="bold" if bold else None,
        )
    return drawn
