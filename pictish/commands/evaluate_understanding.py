"""`pictish evaluate understanding`: captions and answers as JSON, a chart, a contact sheet and a table."""

from pathlib import Path
from typing import Annotated

from pictish.commands import options
from pictish.commands.evaluate import Overwrite, Quiet
from pictish.commands.options import Device, Model, files


def run(
    data: Annotated[Path, files(metavar="DIR", help="Starter data set, built by `pictish data starter`.")],
    out: Annotated[Path, files(metavar="DIR", help="Output folder for the report (JSON) and figures (PNG).")],
    *,
    model: Model = "starter",
    limit: Annotated[
        int, files(metavar="N", min=1, help="Number of images per split, divided among the emoji sets.")
    ] = 200,
    seed: Annotated[
        int,
        options.seed(help="Random seed of the chosen images and the bootstrap."),
    ] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure captions and answers about images of seen and unseen concepts."""
    from pictish.evaluation.output import check_free, show, write_numbers
    from pictish.io.files import sha256_file
    from pictish.io.model_folder import fingerprint, locate_model
    from pictish.pipelines.describe import Describe
    from pictish.recipes.starter.evaluation import understanding
    from pictish.recipes.starter.evaluation import understanding_report as report
    from pictish.recipes.starter.evaluation.emoji import read_emoji
    from pictish.training.runtime import resolve_device

    names = [report.NUMBERS, report.CHART, report.SHEET]
    check_free(out, names, overwrite)
    found = {title: read_emoji(data, split) for title, split in understanding.SPLITS.items()}
    manifest, language = sha256_file(data / "manifest.json"), fingerprint(locate_model(model, "lm"))
    describe = Describe.from_folder(model, resolve_device(device))
    tokenizer = describe.language.tokenizer.fingerprint
    numbers = understanding.header(tokenizer, language, manifest[:12], seed)
    report.measure(describe, found, numbers, limit, seed, out, quiet)
    write_numbers(out / report.NUMBERS, numbers)
    if not quiet:
        show(report.tables(numbers), [out / name for name in names])
