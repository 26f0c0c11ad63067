"""`pictish evaluate understanding`: captions and answers as JSON, a chart, a contact sheet and a table."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pictish.commands import options
from pictish.commands.evaluate import Overwrite, Quiet, check_free, say_files, write_numbers
from pictish.commands.options import Device, Model, files

if TYPE_CHECKING:
    from pictish.recipes.starter.evaluation.understanding import Described

NUMBERS, CHART, SHEET = "understanding.json", "understanding.png", "understanding-sheet.png"
SHOWN = 4  # pictures of each kind on the sheet
TITLES = {"seen": "seen concepts", "unseen": "unseen concepts"}
MEASURES = {
    "exact_name": "caption: exact name",
    "any_synonym": "caption: or a synonym",
    "near_miss": "caption: near miss",
}


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
    from pictish.io.files import sha256_file, write_atomic
    from pictish.io.model_folder import fingerprint, locate_model
    from pictish.io.report import Report
    from pictish.pipelines.describe import Describe
    from pictish.recipes.starter.evaluation import understanding
    from pictish.recipes.starter.evaluation.emoji import read_emoji
    from pictish.training.runtime import resolve_device

    names = [NUMBERS, CHART, SHEET]
    check_free(out, names, overwrite)
    found = {title: read_emoji(data, split) for title, split in understanding.SPLITS.items()}
    manifest, language = sha256_file(data / "manifest.json"), fingerprint(locate_model(model, "lm"))
    describe = Describe.from_folder(model, resolve_device(device))
    tokenizer = describe.language.tokenizer.fingerprint
    numbers = understanding.header(tokenizer, language, manifest[:12], seed)
    described = {}
    for title, pictures in found.items():
        chosen = understanding.choose_some(pictures, limit, seed)
        turns = understanding.turns_of(pictures, chosen)
        texts = len(chosen) + sum(map(len, turns.values()))
        with Report(TITLES[title], texts, quiet=quiet, strict=False) as report:
            described[title] = understanding.describe_all(
                describe, chosen, understanding.names_of(pictures), turns, report.done
            )
        numbers["splits"][title] = understanding.report_split(described[title], seed)
    write_atomic(out / SHEET, _sheet(described))
    write_atomic(out / CHART, _chart(numbers))
    write_numbers(out / NUMBERS, numbers)
    if not quiet:
        _say(numbers, [out / name for name in names])


def _chart(numbers: dict[str, Any]) -> bytes:
    from pictish.evaluation.bars import Bars, bar_chart

    panels = []
    for title, split in numbers["splits"].items():
        kinds = _kinds(numbers)
        asked = [split["questions"].get(kind) for kind in kinds]
        model = [*(split["caption"][name] for name in MEASURES), *(one and one["right"] for one in asked)]
        commonest = [None for _ in MEASURES] + [one and one["commonest"]["right"] for one in asked]
        panels.append(
            Bars(
                f"{TITLES[title]} ({split['pictures']:,} pictures)",
                [*MEASURES.values(), *kinds],
                {"model": model, "most common answer": commonest},
            )
        )
    return bar_chart(panels, f"lines: {numbers['confidence']:.0%} intervals")


def _kinds(numbers: dict[str, Any]) -> list[str]:
    """Kinds of questions that were asked in any split."""
    return list(dict.fromkeys(kind for split in numbers["splits"].values() for kind in split["questions"]))


def _sheet(described: "dict[str, list[Described]]") -> bytes:
    """PNG of the first pictures with a right and with a wrong caption."""
    from pictish.data.images import png_bytes
    from pictish.recipes.starter.evaluation.answer_sheet import answer_sheet

    columns = {}
    for title, all_of_it in described.items():
        right = [each for each in all_of_it if each.verdict in ("exact", "synonym")]
        near = [each for each in all_of_it if each.verdict == "near"]
        wrong = [each for each in all_of_it if each.verdict == "wrong"]
        groups = [("right captions", right), ("near misses", near), ("wrong captions", wrong)]
        columns[TITLES[title]] = [
            (f"{name}: {len(group)} of {len(all_of_it)}", _shown(group[:SHOWN])) for name, group in groups
        ]
    subtitle = (
        "the first pictures of each kind; below each its caption, and answers with the true one if wrong"
    )
    return png_bytes(answer_sheet("What the model says of pictures", subtitle, columns))


def _shown(described: "Sequence[Described]") -> list[Any]:
    from pictish.recipes.starter.evaluation.answer_sheet import Said
    from pictish.recipes.starter.evaluation.emoji import image_of

    shown = []
    for each in described:
        lines = [(f'"{each.caption}"', each.verdict in ("exact", "synonym"))]
        for reply in each.replies:
            truth = "" if reply.right else f" (true: {reply.turn.answer})"
            lines.append((f"{reply.turn.question} {reply.said}{truth}", reply.right))
        name = f"{each.picture.facts['caption']} ({each.picture.set})"
        shown.append(Said(name, image_of(each.picture), lines))
    return shown


def _say(numbers: dict[str, Any], files: Iterable[Path]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False, markup=False)
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
    console.print(drawn)
    say_files(console, list(files))


def _share(number: dict[str, float]) -> str:
    return f"{100 * number['mean']:.0f} ({100 * number['low']:.0f}-{100 * number['high']:.0f})"
