"""`pictish evaluate tokenizer`: quality against token count as JSON, a chart, contact sheets and a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pictish.commands import options
from pictish.commands.evaluate import (
    Inputs,
    Limit,
    Overwrite,
    Photographs,
    Quiet,
    sources_of,
)
from pictish.commands.options import Device, Model, files

if TYPE_CHECKING:
    from pictish.evaluation.tokenizer import Evaluation


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
    from pictish.evaluation import tokenizer_report as report
    from pictish.evaluation.output import check_free, show
    from pictish.io.files import check_apart

    sources = sources_of(inputs, photographs, limit, flat)
    names = [report.NUMBERS, report.CHART, *(report.SHEET.format(name) for name in sources)]
    check_apart(out, inputs or [], inside=False)
    check_free(out, names, overwrite)
    evaluation = _load(model, device, seed)
    numbers, failures = report.measure(evaluation, sources, out, quiet)
    if not quiet:
        show(report.tables(numbers), [out / name for name in names])
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
