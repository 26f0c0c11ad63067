"""`pictish evaluate tokenizer`: quality against token count as JSON, a chart, contact sheets and a table."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pictish.commands.report import Report
    from pictish.evaluation.pictures import Broken, Picture, PictureSource
    from pictish.evaluation.tokenizer import Evaluation, PictureSet

DIGITS = {"cosine_loss": 4, "psnr": 2, "ssim": 4, "feature_distance": 4}
NUMBERS, CHART, SHEET = "tokenizer.json", "tokenizer.png", "tokenizer-{}.png"


def run(
    out: Annotated[
        Path, typer.Option(help="Folder for the numbers (JSON), the chart and the contact sheets (PNG).")
    ],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES", help="Pictures, folders of pictures, or shards."),
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Model folder, or `starter`.")] = "starter",
    photographs: Annotated[
        bool,
        typer.Option(
            "--photographs", help="Also evaluate the photographs inside scikit-image, as a set of their own."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the random selection and of the intervals.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier evaluation.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")] = False,
) -> None:
    """Measure a tokenizer: quality against token count, its selection against random and uniform ones."""
    from pictish.commands.report import Report
    from pictish.evaluation.pictures import PictureSource
    from pictish.evaluation.pictures import photographs as inside_scikit_image

    if not inputs and not photographs:
        raise ValueError("nothing to evaluate: give pictures, folders or shards, or --photographs")
    sources: dict[str, PictureSource] = {}
    if inputs:
        sources["pictures"] = PictureSource(inputs, limit)
    if photographs:
        sources["photographs"] = inside_scikit_image()
    names = [NUMBERS, CHART, *(SHEET.format(name) for name in sources)]
    taken = [name for name in names if (out / name).exists()]
    if taken and not overwrite:
        raise ValueError(
            f"{out} already holds {', '.join(taken)}; give --overwrite to replace, or another --out"
        )

    evaluation = _load(model, device, seed)
    measured, failures = {}, 0
    for name, source in sources.items():
        with Report(name, source.total, quiet=quiet, strict=False) as report:
            measured[name] = evaluation.measure(name, told(source.decode(), report), report.done)
        failures += report.failures
    numbers = evaluation.report(list(measured.values()))
    _write(out, numbers, evaluation, sources, measured)
    if not quiet:
        _say(numbers, [out / name for name in names])
    if failures:
        raise typer.Exit(1)


def _load(model: str, device: str, seed: int) -> "Evaluation":
    from pictish.decoder.preview import Preview
    from pictish.evaluation.metrics import FeatureDistance
    from pictish.evaluation.tokenizer import Evaluation
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.world import resolve_device

    where = resolve_device(device)
    tokenizer = Tokenizer.from_folder(model, device=where)
    preview = Preview.from_folder(model, tokenizer, device=where)
    return Evaluation(tokenizer, preview, FeatureDistance(where), seed=seed)


def told(pictures: "Iterable[Picture | Broken]", report: "Report") -> "Iterator[Picture | Broken]":
    """The same pictures; a broken one is told to the report as it passes."""
    from pictish.evaluation.pictures import Broken

    for each in pictures:
        if isinstance(each, Broken):
            report.failed(each.name, each.error)
        yield each


def _write(
    out: Path,
    report: dict[str, Any],
    evaluation: "Evaluation",
    sources: "dict[str, PictureSource]",
    measured: "dict[str, PictureSet]",
) -> None:
    """Pictures first and the numbers last: where the JSON is, the rest is there too."""
    from pictish.data.files import write_atomic
    from pictish.evaluation.plot import quality_chart
    from pictish.evaluation.sheets import contact_sheet_of
    from pictish.evaluation.tokenizer import rounded

    for name, source in sources.items():
        write_atomic(out / SHEET.format(name), contact_sheet_of(evaluation, measured[name], source))
    write_atomic(out / CHART, quality_chart(report))
    text = json.dumps(rounded(report), indent=2, sort_keys=True, allow_nan=False)
    write_atomic(out / NUMBERS, f"{text}\n".encode())


def _say(report: dict[str, Any], files: list[Path]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True, highlight=False)
    for measured in report["sets"]:
        console.print(_table(measured))
        console.print("\n".join(_gain_lines(measured["gain_over"], report["confidence"])) + "\n")
    console.print("written: " + escape(", ".join(str(file) for file in files)))


def _table(measured: dict[str, Any]) -> Any:
    """A table of at most 80 columns."""
    from rich.box import SIMPLE
    from rich.table import Table

    title = f"{measured['name']} ({measured['pictures']:,})"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("selection", no_wrap=True)
    for name in ("tokens", "p50", "p95", "cosine", "PSNR", "SSIM", "feature", "used", "perpl."):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(f"{point['budget']} best", point) for point in measured["budgets"]]
    rows += [("automatic", measured["automatic"]), *measured["baselines"].items()]
    for name, point in rows:
        tokens = point["tokens"]
        table.add_row(
            name,
            f"{tokens['mean']:.1f}",
            str(tokens["p50"]),
            str(tokens["p95"]),
            *(f"{point[metric]['mean']:.{digits}f}" for metric, digits in DIGITS.items()),
            f"{point['usage']:.1%}",
            f"{point['perplexity']:.0f}",
            style="bold" if name == "automatic" else None,
        )
    return table


def _gain_lines(gain_over: dict[str, Any], confidence: float) -> list[str]:
    """The learned selection against each baseline; "better" only when the whole interval says so."""
    lines = [f"learned selection against others of the same lengths, with {confidence:.0%} intervals"]
    for name, gains in gain_over.items():
        for metric, label, unit, sign in (("cosine_loss", "cosine loss", "", -1), ("psnr", "PSNR", " dB", 1)):
            gain, digits = gains[metric], DIGITS[metric]
            verdict = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear difference"
            low, high = sorted((sign * gain["low"], sign * gain["high"]))
            values = (sign * gain["mean"], low, high)
            mean, low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in values)
            lines.append(f"  {name}: {label} {mean}{unit} ({low} to {high}), {verdict}")
    return lines
