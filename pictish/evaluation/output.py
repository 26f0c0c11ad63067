"""What evaluations write and print: their files, and tables of at most 80 columns."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table

from pictish.evaluation.metrics import Better, rounded
from pictish.evaluation.pictures import Broken, Picture
from pictish.io.files import write_atomic
from pictish.io.report import Report

DIGITS = {"psnr": 2, "ssim": 4, "feature_distance": 4}
LABELS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "feature_distance": "feature distance",
}
UNITS = {"psnr": " dB"}


def check_free(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """ValueError when files of these names are in `out`, unless `overwrite`."""
    taken = [name for name in names if (out / name).exists()]
    if taken and not overwrite:
        raise ValueError(
            f"{out} already contains {', '.join(taken)}; give --overwrite to replace them, or another --out"
        )


def report_broken(pictures: Iterable[Picture | Broken], report: Report) -> Iterator[Picture | Broken]:
    """The same images; each broken one is reported as it passes."""
    for each in pictures:
        if isinstance(each, Broken):
            report.failed(each.name, each.error)
        yield each


def write_numbers(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, the last file of an evaluation: where it is, the rest is there too."""
    text = json.dumps(rounded(report), indent=2, sort_keys=True, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def table(measured: dict[str, Any], first: str, columns: Sequence[str]) -> Table:
    """An empty table for a set: a column of names, then numbers."""
    title = f"{measured['name']} ({measured['pictures']:,})"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def means_of(point: dict[str, Any], metrics: Iterable[str]) -> list[str]:
    """A report's means of these metrics as text."""
    return [f"{point[metric]['mean']:.{DIGITS[metric]}f}" for metric in metrics]


def gain_lines(
    heading: str, gain_over: dict[str, Any], better: Mapping[str, Better], level: float
) -> list[str]:
    """Ours against each of the others; "better" only when the whole interval says so."""
    lines = [f"{heading}, with {level:.0%} intervals"]
    for name, gains in gain_over.items():
        for metric, which in better.items():
            gain, digits, sign = gains[metric], DIGITS[metric], 1 if which == "higher" else -1
            verdict = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear difference"
            low, high = sorted((sign * gain["low"], sign * gain["high"]))
            values = (sign * gain["mean"], low, high)
            mean, low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in values)
            unit = UNITS.get(metric, "")
            lines.append(f"  {name}: {LABELS[metric]} {mean}{unit} ({low} to {high}), {verdict}")
    return lines


def show(tables: Iterable[RenderableType], files: Sequence[Path]) -> None:
    """Print tables and lines, and then the files that were written."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for each in tables:
        console.print(each)
    console.print("wrote " + ", ".join(str(file) for file in files))
