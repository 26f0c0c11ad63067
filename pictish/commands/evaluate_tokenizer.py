"""`pictish evaluate tokenizer`: quality against token count as JSON, a chart, contact sheets and a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands import options
from pictish.commands.evaluate import (
    DIGITS,
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
from pictish.commands.options import Device, Model, files

if TYPE_CHECKING:
    from pictish.evaluation.tokenizer import Evaluation

NUMBERS, CHART, SHEET = "tokenizer.json", "tokenizer.png", "tokenizer-{}.png"


def run(
    out: Annotated[Path, files(metavar="DIR", help="Output folder for the report (JSON) and figures (PNG).")],
    inputs: Inputs = None,
    *,
    model: Model = "starter",
    photographs: Photographs = False,
    flat: Annotated[
        bool, files("--flat", help="Also evaluate 16 single-colour images, as a separate set.")
    ] = False,
    limit: Limit = None,
    device: Device = "auto",
    seed: Annotated[
        int,
        options.seed(help="Random seed of the random-selection baseline and the bootstrap."),
    ] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure reconstruction quality as a function of token count, and token selection against baselines."""
    from pictish.evaluation.plot import quality_chart
    from pictish.evaluation.sheets import contact_sheet_of
    from pictish.io.files import check_apart, write_atomic
    from pictish.io.report import Report

    sources = sources_of(inputs, photographs, limit, flat)
    names = [NUMBERS, CHART, *(SHEET.format(name) for name in sources)]
    check_apart(out, inputs or [], inside=False)
    check_free(out, names, overwrite)
    evaluation = _load(model, device, seed)
    measured, failures = {}, 0
    for name, source in sources.items():
        with Report(name, source.total, quiet=quiet, strict=False) as report:
            measured[name] = evaluation.measure(name, report_broken(source.decode(), report), report.done)
        failures += report.failures
    numbers = evaluation.report(list(measured.values()))
    for name, source in sources.items():
        write_atomic(out / SHEET.format(name), contact_sheet_of(evaluation, measured[name], source))
    write_atomic(out / CHART, quality_chart(numbers))
    write_numbers(out / NUMBERS, numbers)
    if not quiet:
        _say(numbers, [out / name for name in names])
    if failures:
        raise typer.Exit(1)


def _load(model: str, device: str, seed: int) -> "Evaluation":
    from pictish.evaluation.metrics import FeatureDistance
    from pictish.evaluation.renderers import renderer_of
    from pictish.evaluation.tokenizer import Evaluation
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.runtime import resolve_device

    where = resolve_device(device)
    tokenizer = Tokenizer.from_folder(model, device=where)
    return Evaluation(tokenizer, renderer_of(model, tokenizer, where), FeatureDistance(where), seed=seed)


def _say(report: dict[str, Any], files: list[Path]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    heading = "learned selection vs. baselines of equal length, and a thumbnail of equal bits"
    shown = {metric: report["better"][metric] for metric in ("psnr", "feature_distance")}
    for measured in report["sets"]:
        console.print(_table(measured))
        lines = gain_lines(heading, measured["gain_over"], shown, report["confidence"])
        console.print("\n".join(lines) + "\n")
    say_files(console, files)


def _table(measured: dict[str, Any]) -> Any:
    """A table of at most 80 columns."""
    columns = ("tokens", "p50", "p95", "bits", "PSNR", "SSIM", "feature", "used", "perpl.")
    drawn = table(measured, "selection", columns)
    rows = [(f"{point['budget']} best", point) for point in measured["budgets"]]
    rows += [("automatic", measured["automatic"]), *measured["baselines"].items()]
    for name, point in rows:
        tokens = point["tokens"]
        drawn.add_row(
            name,
            f"{tokens['mean']:.1f}",
            str(tokens["p50"]),
            str(tokens["p95"]),
            f"{point['bits']:.0f}",
            *means_of(point, DIGITS),
            f"{point['usage']:.1%}",
            f"{point['perplexity']:.0f}",
            style="bold" if name == "automatic" else None,
        )
    thumbnail = measured["thumbnail"]
    drawn.add_row("thumbnail", "", "", "", f"{thumbnail['bits']:.0f}", *means_of(thumbnail, DIGITS), "", "")
    return drawn
