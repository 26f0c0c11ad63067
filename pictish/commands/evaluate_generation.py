"""`pictish evaluate generation`: text-to-image generation, scored by a judge, next to upper bounds."""

from pathlib import Path
from typing import Annotated

from pictish.commands import options
from pictish.commands.evaluate import (
    Cache,
    Overwrite,
    Quiet,
    judge_of,
)
from pictish.commands.options import Device, Model, Steps, files


def run(
    data: Annotated[Path, files(metavar="DIR", help="Starter data set, built by `pictish data starter`.")],
    out: Annotated[Path, files(metavar="DIR", help="Output folder for the report (JSON) and figures (PNG).")],
    *,
    model: Model = "starter",
    limit: Annotated[int, files(metavar="N", min=1, help="Maximum number of prompts per measure.")] = 200,
    steps: Steps = None,
    curve: Annotated[bool, files(help="Also sweep the guidance scale.")] = True,
    cache: Cache = None,
    device: Device = "auto",
    seed: Annotated[
        int,
        options.seed(help="Random seed of the chosen prompts, the generated images and the bootstrap."),
    ] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate images from seen captions and held-out compositions; a judge scores what they show."""
    from pictish.evaluation.output import check_free, show, write_numbers
    from pictish.io.model_folder import fingerprint, locate_model
    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.recipes.starter.evaluation import generation_report as report
    from pictish.recipes.starter.evaluation.generation import GenerationEvaluation
    from pictish.training.runtime import resolve_device

    names = [report.NUMBERS, report.CHART, report.SHEET]
    check_free(out, names, overwrite)
    where = resolve_device(device)
    language = fingerprint(locate_model(model, "lm"))
    drawer = TextToImage.from_folder(model, where, steps=steps)
    drawing = Drawing(steps, upscale=1)
    drawer.reconstructor.settled(drawing)
    judge = judge_of(data, cache, out, where, quiet)
    evaluation = GenerationEvaluation(drawer, judge, drawing, seed=seed)
    numbers = evaluation.header(language)
    numbers |= report.measure(evaluation, limit, curve, out, quiet)
    write_numbers(out / report.NUMBERS, numbers)
    if not quiet:
        show(report.tables(numbers), [out / name for name in names])
