"""What an evaluation of a decoder measures and writes, and its tables."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from pictish.evaluation.decoder import Coded, DecoderEvaluation
from pictish.evaluation.output import gain_lines, means_of, report_broken, table, write_numbers
from pictish.evaluation.pictures import FlatPictures, PictureSource
from pictish.evaluation.plot import steps_chart
from pictish.evaluation.sheets import decoder_sheet_of
from pictish.io.files import write_atomic
from pictish.io.report import Report

NUMBERS, SHEET = "decoder.json", "decoder-{}.png"
CURVE_NUMBERS, CURVE_CHART = "decoder-curve.json", "decoder-curve.png"


def code(
    evaluation: DecoderEvaluation, sources: Mapping[str, PictureSource | FlatPictures], quiet: bool
) -> tuple[list[Coded], int]:
    """Tokenize every set; returns the sets and the number of unreadable images."""
    sets, failures = [], 0
    for name, source in sources.items():
        with Report(f"tokenizing {name}", source.total, quiet=quiet, strict=False) as report:
            sets.append(evaluation.code(name, report_broken(source.decode(), report), report.done))
        failures += report.failures
    return sets, failures


def measure(evaluation: DecoderEvaluation, sets: list[Coded], out: Path, quiet: bool) -> list[RenderableType]:
    """Write sheets and numbers; the tables and lines to show."""
    numbers = evaluation.header()
    for coded in sets:
        ways = evaluation.ways(coded)
        with Report(coded.name, len(coded.names) * len(ways), quiet=quiet, strict=False) as report:
            measured = evaluation.measure(coded, ways, report.done)
        write_atomic(out / SHEET.format(coded.name), decoder_sheet_of(coded, ways, measured))
        numbers["sets"].append(evaluation.report_set(coded, measured))
    write_numbers(out / NUMBERS, numbers)
    tables: list[RenderableType] = []
    for each in numbers["sets"]:
        rows = [(name, way, name == "decoder") for name, way in each["ways"].items()]
        heading = "diffusion decoder vs. baselines"
        lines = gain_lines(heading, each["gain_over"], evaluation.metrics, numbers["confidence"])
        tables += [_table(each, "way", rows, []), "\n".join(lines) + "\n"]
    return tables


def measure_curve(
    evaluation: DecoderEvaluation, sets: list[Coded], out: Path, quiet: bool
) -> list[RenderableType]:
    """Write the chart and the numbers; the tables to show."""
    numbers = evaluation.header()
    for coded in sets:
        ways = evaluation.curve_ways()
        with Report(coded.name, len(coded.names) * len(ways), quiet=quiet, strict=False) as report:
            numbers["sets"].append(evaluation.curve(coded, ways, report.done))
    write_atomic(out / CURVE_CHART, steps_chart(numbers))
    write_numbers(out / CURVE_NUMBERS, numbers)
    seconds = [("seconds", lambda point: f"{point['seconds']:.3f}")]
    tables: list[RenderableType] = []
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
