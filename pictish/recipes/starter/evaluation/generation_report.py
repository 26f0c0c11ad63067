"""What an evaluation of generation draws and writes, and its tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from pictish.evaluation.output import table
from pictish.io.files import write_atomic
from pictish.io.report import Report
from pictish.recipes.starter.evaluation.drawn import Shown
from pictish.recipes.starter.evaluation.generation import (
    COMPOSED,
    CONCEPT,
    GENERATED,
    REAL,
    SCALES,
    STYLED,
    WAYS,
    Asked,
    GenerationEvaluation,
    curve_size,
)
from pictish.recipes.starter.evaluation.generation_views import generation_chart, generation_sheet

NUMBERS, CHART, SHEET = "generation.json", "generation.png", "generation-pictures.png"
NOTES = """\
hit@k: the prompted concept is among the k concepts nearest to the image.
strict@k: its image in the prompted style is among the k nearest images.
true codes: the target image's own codes, as many as the language model was
trained on, rendered alike.
real: the target image itself, excluded from the references of hit@k.
composition: skin tone, gender and role are correct; all: the style as well.
range: {confidence:.0%} interval; vs. codes: generated relative to true codes."""
RANKED = "generated: the best of {best_of} candidates, ranked by the model."


def measure(
    evaluation: GenerationEvaluation, limit: int, curve: bool, out: Path, quiet: bool
) -> dict[str, Any]:
    """Generate everything, write sheet and chart; returns the numbers by measure."""
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
    evaluation: GenerationEvaluation, name: str, asked: Sequence[Asked], quiet: bool
) -> dict[str, Shown]:
    with Report(name, len(asked) * len(WAYS), quiet=quiet, strict=False) as report:
        return {way: evaluation.draw(way, asked, report.done) for way in WAYS}


def _curve(evaluation: GenerationEvaluation, asked: Sequence[Asked], quiet: bool) -> dict[str, Any]:
    with Report("guidance", len(asked) * len(SCALES), quiet=quiet, strict=False) as report:
        return evaluation.curve(asked, report.done)


def tables(numbers: dict[str, Any]) -> list[RenderableType]:
    """Tables of at most 80 columns, in percent, and a legend."""
    seen, held_out, curve = numbers["seen"], numbers["held_out"], numbers["curve"]
    columns = {name: name for name in (*CONCEPT, *STYLED)}
    shown: list[RenderableType] = [_ways("seen captions", seen, columns)]
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
    notes = [NOTES, RANKED] if numbers["best_of"] > 1 else [NOTES]
    return [*shown, "\n".join(notes).format(**numbers) + "\n"]


def _ways(name: str, measured: dict[str, Any], columns: Mapping[str, str]) -> Table:
    """Generated images, their interval, the upper bounds, and the ratio to the true codes."""
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
