"""What an evaluation of edits and of prompts with images draws and writes, and its tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from pictish.evaluation.output import table
from pictish.io.files import write_atomic
from pictish.io.report import Report
from pictish.recipes.starter.evaluation.editing import (
    EDITED,
    MEASURES,
    WAYS,
    WITH_IMAGE,
    WITH_TEXT,
    EditingEvaluation,
)
from pictish.recipes.starter.evaluation.editing_views import editing_chart, editing_sheet, mixed_sheet

NUMBERS, CHART, SHEET, PROMPTS = "editing.json", "editing.png", "editing-edits.png", "editing-prompts.png"
SHORT = {"edited": "edited", "true codes": "codes", "real": "real", "source": "source"}
NOTES = """\
asked: the requested change was made; for controls, the source is nearest.
kept: apart from the request, one of the {nearest} nearest concepts is
the source or the target. style: the target's style. codes: the target's own
codes, as many as the language model was trained on, decoded.
real: the target itself, excluded from the references.
source: the source, reconstructed."""


def measure_edits(
    evaluation: EditingEvaluation, limit: int, header: Mapping[str, Any], out: Path, quiet: bool
) -> dict[str, Any]:
    """Generate the edits in every way, write chart and sheet; returns their numbers."""
    edits = evaluation.edits(limit)
    with Report("edits", len(edits) * len(WAYS), quiet=quiet, strict=False) as report:
        shown = {way: evaluation.draw(way, edits, report.done) for way in WAYS}
    scores = {way: evaluation.scores(way, edits, each.embeddings) for way, each in shown.items()}
    numbers = evaluation.report(edits, scores)
    write_atomic(out / SHEET, editing_sheet(evaluation, edits, shown, scores))
    write_atomic(out / CHART, editing_chart({**header, **numbers}))
    return numbers


def measure_prompts(evaluation: EditingEvaluation, limit: int, out: Path, quiet: bool) -> dict[str, Any]:
    """Generate from multimodal prompts, write their sheet; returns their numbers, None without prompts."""
    texts, images = evaluation.texts(limit), evaluation.images(limit)
    with Report("multimodal prompts", len(texts) + len(images), quiet=quiet, strict=False) as report:
        of_texts, of_images = (evaluation.draw_mixed(prompts, report.done) for prompts in (texts, images))
    with_text = evaluation.scores_with_text(texts, of_texts.embeddings)
    with_image = evaluation.scores_with_image(images, of_images.embeddings)
    parts: dict[str, Any] = {"all": evaluation.report_mixed(texts, with_text, WITH_TEXT)}
    groups = {}
    for name, sheet in (("style", "another style"), ("skin_tone", "another tone")):
        own = [place for place, prompt in enumerate(texts) if prompt.asked and prompt.asked[0] == name]
        some = [texts[place] for place in own]
        parts[name] = evaluation.report_mixed(some, with_text[own], WITH_TEXT)
        groups[sheet] = [(texts[place], of_texts.pictures[place], with_text[place, -1]) for place in own]
    groups["two images"] = list(zip(images, of_images.pictures, with_image[:, -1], strict=True))
    write_atomic(out / PROMPTS, mixed_sheet(evaluation, groups))
    return {
        "image_and_text": parts,
        "image_and_image": evaluation.report_mixed(images, with_image, WITH_IMAGE),
    }


def tables(numbers: dict[str, Any]) -> list[RenderableType]:
    """Tables of at most 80 columns, in percent, and a legend."""
    shown: list[RenderableType] = []
    for name in ("changes", "controls"):
        if group := numbers[name]:
            drawn = table({"name": name, "pictures": group["edits"]}, "in %", MEASURES)
            for way in WAYS:
                cells = [_range(group["ways"][way][measure]) for measure in MEASURES]
                drawn.add_row(way, *cells, style="bold" if way == EDITED else None)
            shown.append(drawn)
    edits = sum(group["edits"] for group in numbers["kinds"].values())
    for measure in ("asked", "kept"):
        drawn = table({"name": f"{measure}, by kind", "pictures": edits}, "in %", ["edits", *SHORT.values()])
        for kind, group in numbers["kinds"].items():
            cells = [_percent(group["ways"][way][measure]) for way in SHORT]
            drawn.add_row(kind, str(group["edits"]), *cells)
        shown.append(drawn)
    for name, columns in (("image_and_text", WITH_TEXT), ("image_and_image", WITH_IMAGE)):
        parts = numbers[name] if name == "image_and_text" else {"all": numbers[name]}
        whole = parts["all"]
        if whole:
            drawn = table({"name": name.replace("_", " "), "pictures": whole["prompts"]}, "in %", columns)
            for part, one in parts.items():
                if one:
                    drawn.add_row(part.replace("_", " "), *(_range(one[column]) for column in columns))
            shown.append(drawn)
    return [*shown, NOTES.format(**numbers) + "\n"]


def _percent(number: dict[str, float]) -> str:
    return f"{100 * number['mean']:.0f}"


def _range(number: dict[str, float]) -> str:
    return f"{_percent(number)} ({100 * number['low']:.0f}-{100 * number['high']:.0f})"
