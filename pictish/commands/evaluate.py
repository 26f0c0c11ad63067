"""What the commands of `pictish evaluate` share: options, image sources, output files and tables."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands.options import files, runtime

if TYPE_CHECKING:
    from pictish.evaluation.metrics import Better
    from pictish.evaluation.pictures import Broken, FlatPictures, Picture, PictureSource
    from pictish.io.report import Report
    from pictish.recipes.starter.evaluation.judge import Judge

DIGITS = {"psnr": 2, "ssim": 4, "feature_distance": 4}
LABELS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "feature_distance": "feature distance",
}
UNITS = {"psnr": " dB"}

Inputs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="IMAGES", help="Images, folders of images, or WebDataset shards."),
]
Photographs = Annotated[
    bool,
    files(
        "--photographs", help="Also evaluate the photographs shipped with scikit-image, as a separate set."
    ),
]
Limit = Annotated[int | None, files(metavar="N", min=1, help="Evaluate only the first N images.")]
Overwrite = Annotated[bool, files("--overwrite", help="Replace the files of an earlier evaluation.")]
Quiet = Annotated[bool, runtime("--quiet", help="No progress bar and no table.")]
Cache = Annotated[
    Path | None,
    files(metavar="FILE", help="Cache of the judge's embeddings (default: judge.safetensors in OUT)."),
]


def sources_of(
    inputs: list[Path] | None, photographs: bool, limit: int | None, flat: bool = False
) -> "dict[str, PictureSource | FlatPictures]":
    """The image sets to evaluate, by name; ValueError when there is none."""
    from pictish.evaluation.pictures import FlatPictures, PictureSource
    from pictish.evaluation.pictures import photographs as inside_scikit_image

    if not inputs and not photographs and not flat:
        raise ValueError("nothing to evaluate: give images, folders or shards, or --photographs")
    sources: dict[str, PictureSource | FlatPictures] = {}
    if inputs:
        sources["pictures"] = PictureSource(inputs, limit)
    if photographs:
        sources["photographs"] = inside_scikit_image()
    if flat:
        sources["flat"] = FlatPictures()
    return sources


def check_free(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """ValueError when files of these names are in `out`, unless `overwrite`."""
    taken = [name for name in names if (out / name).exists()]
    if taken and not overwrite:
        raise ValueError(
            f"{out} already contains {', '.join(taken)}; give --overwrite to replace them, or another --out"
        )


def judge_of(data: Path, cache: Path | None, out: Path, device: Any, quiet: bool) -> "Judge":
    """The judge that starter data in `data` makes, kept in `cache` or in the folder of the evaluation."""
    from pictish.io.report import Report
    from pictish.recipes.starter.evaluation.judge import Judge

    with Report("embedding the judge's references", None, quiet=quiet, strict=False) as report:
        return Judge.from_data(data, cache or out / "judge.safetensors", device, report.done)


def report_broken(pictures: "Iterable[Picture | Broken]", report: "Report") -> "Iterator[Picture | Broken]":
    """The same pictures; each broken one is reported as it passes."""
    from pictish.evaluation.pictures import Broken

    for each in pictures:
        if isinstance(each, Broken):
            report.failed(each.name, each.error)
        yield each


def write_numbers(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, the last file of an evaluation: where it is, the rest is there too."""
    from pictish.evaluation.metrics import rounded
    from pictish.io.files import write_atomic

    text = json.dumps(rounded(report), indent=2, sort_keys=True, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def table(measured: dict[str, Any], first: str, columns: Sequence[str]) -> Any:
    """An empty table for a set: a column of names, then numbers."""
    from rich.box import SIMPLE
    from rich.table import Table

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
    heading: str, gain_over: dict[str, Any], better: "dict[str, Better]", level: float
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


def say_files(console: Any, files: Sequence[Path]) -> None:
    """Print one line with the files that were written."""
    from rich.markup import escape

    console.print("wrote " + escape(", ".join(str(file) for file in files)))
