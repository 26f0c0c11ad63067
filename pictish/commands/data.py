"""`pictish data`: emoji, icons, avatars, clip art and photographs as captioned shards, and tasks of them."""

from pathlib import Path
from typing import Annotated, Any

import typer


def starter(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards and manifest.json.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SET", help="A set to build (repeat for more); else all that can be had."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where npm packages are kept; OUT/.cache if not given."),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Shards of photographs to add as the set photos."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0 draws in this one.")] = 2,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace starter data of other settings, and changed shards.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")] = False,
) -> None:
    """Build the starter data set in OUT: emoji, icons and avatars from npm, clip art and stamps if installed.

    Needs npm, Node.js and resvg-py (pip install 'pictish[starter-data]'). Run again, it continues.
    """
    from rich.console import Console

    from pictish.io.report import Bar
    from pictish.recipes.starter.build import build

    with Bar("pictures", quiet=quiet) as bar:
        manifest = build(
            out,
            cache,
            sets,
            photos=photos,
            workers=workers,
            overwrite=overwrite,
            progress=bar.update,
        )
    if not quiet:
        Console().print(_table(manifest))


def _table(manifest: dict[str, Any]) -> Any:
    from rich.table import Table

    counts = manifest["counts"]
    table = Table("set")
    for column in (*sorted(counts), "left-out"):
        table.add_column(column.replace("-", "\n"), justify="right")
    for name, left_out in manifest["left_out"].items():
        numbers = [counts[split].get(name, 0) for split in sorted(counts)]
        table.add_row(name, *(f"{number:,}" for number in (*numbers, sum(left_out.values()))))
    return table


def tasks(
    tokens: Annotated[
        Path, typer.Argument(metavar="TOKENS", help="Tokenized shards of one split of the starter data.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the shards and manifest.json.")],
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="RAW", help="Raw shards of the same samples: adds questions about colour."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tasks that are in OUT.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table.")] = False,
) -> None:
    """Turn tokenized starter data into training samples for the language model: pairs, edits, questions."""
    from rich.console import Console
    from rich.table import Table

    from pictish.recipes.starter.tasks import make_tasks

    manifest = make_tasks(tokens, out, pictures, overwrite)
    if quiet:
        return
    table = Table("task", "kind")
    table.add_column("number", justify="right")
    for task, kinds in manifest["counts"].items():
        for kind, number in sorted(kinds.items()):
            table.add_row(task, kind, f"{number:,}")
    Console().print(table)
