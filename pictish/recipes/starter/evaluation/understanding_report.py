"""What an evaluation of captions and answers writes, and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table

from pictish.data.images import png_bytes
from pictish.evaluation.bars import Bars, bar_chart
from pictish.io.files import write_atomic
from pictish.io.report import Report
from pictish.pipelines.describe import Describe
from pictish.recipes.starter.evaluation.answer_sheet import Said, answer_sheet
from pictish.recipes.starter.evaluation.emoji import image_of
from pictish.recipes.starter.evaluation.understanding import (
    Described,
    choose_some,
    describe_all,
    names_of,
    report_split,
    turns_of,
)
from pictish.recipes.starter.phrases import Picture

NUMBERS, CHART, SHEET = "understanding.json", "understanding.png", "understanding-sheet.png"
SHOWN = 4  # images of each kind on the sheet
TITLES = {"seen": "seen concepts", "unseen": "unseen concepts"}
MEASURES = {
    "exact_name": "caption: exact name",
    "any_synonym": "caption: or a synonym",
    "near_miss": "caption: near miss",
}


def measure(
    describe: Describe,
    found: Mapping[str, Sequence[Picture]],
    numbers: dict[str, Any],
    limit: int,
    seed: int,
    out: Path,
    quiet: bool,
) -> None:
    """Describe images of each split, put what is found into `numbers`, and write sheet and chart."""
    described = {}
    for title, pictures in found.items():
        chosen = choose_some(pictures, limit, seed)
        turns = turns_of(pictures, chosen)
        texts = len(chosen) + sum(map(len, turns.values()))
        with Report(TITLES[title], texts, quiet=quiet, strict=False) as report:
            described[title] = describe_all(describe, chosen, names_of(pictures), turns, report.done)
        numbers["splits"][title] = report_split(described[title], seed)
    write_atomic(out / SHEET, _sheet(described))
    write_atomic(out / CHART, _chart(numbers))


def _chart(numbers: dict[str, Any]) -> bytes:
    panels = []
    for title, split in numbers["splits"].items():
        kinds = _kinds(numbers)
        asked = [split["questions"].get(kind) for kind in kinds]
        model = [*(split["caption"][name] for name in MEASURES), *(one and one["right"] for one in asked)]
        commonest = [None for _ in MEASURES] + [one and one["commonest"]["right"] for one in asked]
        panels.append(
            Bars(
                f"{TITLES[title]} ({split['pictures']:,} images)",
                [*MEASURES.values(), *kinds],
                {"model": model, "most common answer": commonest},
            )
        )
    return bar_chart(panels, f"lines: {numbers['confidence']:.0%} intervals")


def _kinds(numbers: dict[str, Any]) -> list[str]:
    """Kinds of questions that were asked in any split."""
    return list(dict.fromkeys(kind for split in numbers["splits"].values() for kind in split["questions"]))


def _sheet(described: dict[str, list[Described]]) -> bytes:
    """PNG of the first images with a right and with a wrong caption."""
    columns = {}
    for title, all_of_it in described.items():
        right = [each for each in all_of_it if each.verdict in ("exact", "synonym")]
        near = [each for each in all_of_it if each.verdict == "near"]
        wrong = [each for each in all_of_it if each.verdict == "wrong"]
        groups = [("right captions", right), ("near misses", near), ("wrong captions", wrong)]
        columns[TITLES[title]] = [
            (f"{name}: {len(group)} of {len(all_of_it)}", _shown(group[:SHOWN])) for name, group in groups
        ]
    subtitle = "the first images of each kind; below each its caption, and answers with the true one if wrong"
    return png_bytes(answer_sheet("What the model says of images", subtitle, columns))


def _shown(described: Sequence[Described]) -> list[Said]:
    shown = []
    for each in described:
        lines = [(f'"{each.caption}"', each.verdict in ("exact", "synonym"))]
        for reply in each.replies:
            truth = "" if reply.right else f" (true: {reply.turn.answer})"
            lines.append((f"{reply.turn.question} {reply.said}{truth}", reply.right))
        name = f"{each.picture.facts['caption']} ({each.picture.set})"
        shown.append(Said(name, image_of(each.picture), lines))
    return shown


def tables(numbers: dict[str, Any]) -> list[RenderableType]:
    """One table of at most 80 columns, in percent."""
    heading = f"in percent, {numbers['confidence']:.0%} intervals; always: giving the most common answer"
    drawn = Table(title=heading, title_justify="left", title_style="", box=SIMPLE, padding=(0, 1, 0, 0))
    drawn.add_column("", no_wrap=True)
    for title, split in numbers["splits"].items():
        for name in (f"{title} ({split['pictures']})", "always", "asked"):
            drawn.add_column(name, justify="right", no_wrap=True)
    for name, words in MEASURES.items():
        cells = [(_share(s["caption"][name]), "", "") for s in numbers["splits"].values()]
        drawn.add_row(words, *(cell for split in cells for cell in split))
    for kind in _kinds(numbers):
        cells = []
        for split in numbers["splits"].values():
            one = split["questions"].get(kind)
            share = f"{100 * one['commonest']['right']:.0f}" if one else ""
            cells.append((_share(one["right"]), share, f"{one['asked']:,}") if one else ("-", "", "0"))
        drawn.add_row(f"{kind}?", *(cell for split in cells for cell in split))
    return [drawn]


def _share(number: dict[str, float]) -> str:
    return f"{100 * number['mean']:.0f} ({100 * number['low']:.0f}-{100 * number['high']:.0f})"
