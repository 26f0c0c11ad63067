"""`pictish evaluate generation`: text-to-image generation, scored by a judge, next to upper bounds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pictish.commands import options
from pictish.commands.evaluate import (
    Cache,
    Overwrite,
    Quiet,
    check_free,
    judge_of,
    say_files,
    table,
    write_numbers,
)
from pictish.commands.options import Device, Model, Steps, files

if TYPE_CHECKING:
    from pictish.recipes.starter.evaluation.drawn import Shown
    from pictish.recipes.starter.evaluation.generation import Asked, GenerationEvaluation

NUMBERS, CHART, SHEET = "generation.json", "generation.png", "generation-pictures.png"
NOTES = """\
hit@k: the prompted concept is among the k concepts nearest to the image.
strict@k: its image in the prompted style is among the k nearest images.
true codes: the target image's own codes, rendered by the same decoder.
real: the target image itself, excluded from the references of hit@k.
composition: skin tone, gender and role are correct; all: the style as well.
range: {confidence:.0%} interval; vs. codes: generated relative to true codes."""


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
    from rich.console import Console

    from pictish.io.model_folder import fingerprint, locate_model
    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.recipes.starter.evaluation.generation import GenerationEvaluation
    from pictish.training.runtime import resolve_device

    names = [NUMBERS, CHART, SHEET]
    check_free(out, names, overwrite)
    where = resolve_device(device)
    language = fingerprint(locate_model(model, "lm"))
    drawer = TextToImage.from_folder(model, where, steps=steps)
    drawing = Drawing(steps, upscale=1)
    drawer.reconstructor.settled(drawing)
    judge = judge_of(data, cache, out, where, quiet)
    evaluation = GenerationEvaluation(drawer, judge, drawing, seed=seed)
    numbers = evaluation.header(language)
    numbers |= _measure(evaluation, limit, curve, out, quiet)
    write_numbers(out / NUMBERS, numbers)
    if not quiet:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for each in _tables(numbers):
            console.print(each)
        say_files(console, [out / name for name in names])


def _measure(
    evaluation: "GenerationEvaluation", limit: int, curve: bool, out: Path, quiet: bool
) -> dict[str, Any]:
    """Generate everything, write sheet and chart; returns the numbers by measure."""
    from pictish.io.files import write_atomic
    from pictish.recipes.starter.evaluation.generation import REAL, curve_size
    from pictish.recipes.starter.evaluation.generation_views import generation_chart, generation_sheet

    seen, held_out = evaluation.seen(limit), evaluation.held_out(limit)
    shown = _draw(evaluation, "seen captions", seen, quiet)
    similarities = {
        way: evaluation.concept_values(seen, each, way == REAL)[:, -1] for way, each in shown.items()
    }
    measured: dict[str, Any] = {"seen": evaluation.report_seen(seen, shown)}
    write_atomic(out / SHEET, generation_sheet(seen, shown, similarities))
    shown = _draw(evaluation, "held-out compositions", held_out, quiet)
    measured["held_out"] = evaluation.report_held_out(held_out, shown)
    measured["curve"] = _curve(evaluation, seen[: curve_size(len(seen))], quiet) if curve else None
    write_atomic(out / CHART, generation_chart(evaluation.header("") | measured))
    return measured


def _draw(
    evaluation: "GenerationEvaluation", name: str, asked: "Sequence[Asked]", quiet: bool
) -> "dict[str, Shown]":
    from pictish.io.report import Report
    from pictish.recipes.starter.evaluation.generation import WAYS

    with Report(name, len(asked) * len(WAYS), quiet=quiet, strict=False) as report:
        return {way: evaluation.draw(way, asked, report.done) for way in WAYS}


def _curve(evaluation: "GenerationEvaluation", asked: "Sequence[Asked]", quiet: bool) -> dict[str, Any]:
    from pictish.io.report import Report
    from pictish.recipes.starter.evaluation.generation import SCALES

    with Report("guidance", len(asked) * len(SCALES), quiet=quiet, strict=False) as report:
        return evaluation.curve(asked, report.done)


def _tables(numbers: dict[str, Any]) -> list[Any]:
    """Tables of at most 80 columns, in percent, and a legend."""
    from pictish.recipes.starter.evaluation.generation import COMPOSED, CONCEPT, STYLED

    seen, held_out, curve = numbers["seen"], numbers["held_out"], numbers["curve"]
    columns = {name: name for name in (*CONCEPT, *STYLED)}
    shown: list[Any] = [_ways("seen captions", seen, columns)]
    columns = {name: name for name in COMPOSED} | {"skin_tone": "skin tone"}
    shown.append(_ways("held-out compositions", held_out, columns))
    if curve:
        drawn = table({"name": "guidance scale", "pictures": curve["prompts"]}, "scale", CONCEPT)
        for point in curve["points"]:
            bold = point["scale"] == numbers["text_scale"]
            drawn.add_row(
                f"{point['scale']:g}",
                *(_percent(point[name]["mean"]) for name in CONCEPT),
                style="bold" if bold else None,
            )
        best = ", ".join(f"{scale:g} by {name}" for name, scale in curve["best"].items())
        shown += [drawn, f"best scale: {best}; default: {numbers['text_scale']:g}\n"]
    return [*shown, NOTES.format(**numbers) + "\n"]


def _ways(name: str, measured: dict[str, Any], columns: Mapping[str, str]) -> Any:
    """Generated images, their interval, the upper bounds, and the ratio to the true codes."""
    from pictish.recipes.starter.evaluation.generation import GENERATED, WAYS

    drawn = table({"name": name, "pictures": measured["prompts"]}, "in %", list(columns.values()))
    for way in WAYS:
        own = measured["ways"][way]
        means = [_percent(None if own[key] is None else own[key]["mean"]) for key in columns]
        drawn.add_row(way, *means, style="bold" if way == GENERATED else None)
        if way == GENERATED:
            ranges = (f"{100 * own[key]['low']:.0f}-{100 * own[key]['high']:.0f}" for key in columns)
            drawn.add_row("  range", *ranges, style="dim")
    drawn.add_row("vs. codes", *(_percent(measured["share"][key]) for key in columns))
    return drawn


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
