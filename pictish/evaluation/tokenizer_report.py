"""What an evaluation of a tokenizer measures and writes, and its tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from pictish.evaluation.output import DIGITS, gain_lines, means_of, report_broken, table, write_numbers
from pictish.evaluation.pictures import FlatPictures, PictureSource
from pictish.evaluation.plot import quality_chart
from pictish.evaluation.sheets import contact_sheet_of
from pictish.evaluation.tokenizer import Evaluation
from pictish.io.files import write_atomic
from pictish.io.report import Report

NUMBERS, CHART, SHEET = "tokenizer.json", "tokenizer.png", "tokenizer-{}.png"


def measure(
    evaluation: Evaluation, sources: Mapping[str, PictureSource | FlatPictures], out: Path, quiet: bool
) -> tuple[dict[str, Any], int]:
    """Measure every set, write sheets, chart and numbers; the numbers, and how many images are broken."""
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
    return numbers, failures


def tables(numbers: dict[str, Any]) -> list[RenderableType]:
    """For each set a table, and what is gained over the baselines."""
    heading = "learned selection vs. baselines of equal length, and a thumbnail of equal bits"
    shown = {metric: numbers["better"][metric] for metric in ("psnr", "feature_distance")}
    found: list[RenderableType] = []
    for measured in numbers["sets"]:
        lines = gain_lines(heading, measured["gain_over"], shown, numbers["confidence"])
        found += [_table(measured), "\n".join(lines) + "\n"]
    return found


def _table(measured: dict[str, Any]) -> Table:
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
