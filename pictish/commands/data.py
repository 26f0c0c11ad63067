"""`pictish data`: the starter data set as captioned shards, and training samples built from it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pictish.commands.options import files, runtime


def starter(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Output folder for the shards and manifest.json.")
    ],
    sets: Annotated[
        list[str] | None,
        files("--set", metavar="SET", help="Set to build; repeat for more (default: all available sets)."),
    ] = None,
    cache: Annotated[
        Path | None,
        files(metavar="DIR", help="Cache of npm packages (default: OUT/.cache)."),
    ] = None,
    photos: Annotated[
        Path | None,
        files(metavar="DIR", help="Folder of photograph shards to add as the set photos."),
    ] = None,
    workers: Annotated[
        int, runtime(metavar="N", min=0, help="Rendering processes; 0 renders in the main process.")
    ] = 2,
    overwrite: Annotated[
        bool,
        files("--overwrite", help="Replace starter data built with other settings, and modified shards."),
    ] = False,
    quiet: Annotated[bool, runtime("--quiet", help="No progress bar and no table.")] = False,
) -> None:
    """Build the starter data set: emoji, icons and avatars from npm; clip art and stamps if installed.

    Requires npm, Node.js and resvg-py (pip install 'pictish[starter-data]'). An interrupted build resumes
    where it stopped.
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
        Path, typer.Argument(metavar="TOKENS", help="Token shards of one split of the starter data.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Output folder for the shards and manifest.json.")
    ],
    pictures: Annotated[
        Path | None,
        files(metavar="DIR", help="Image shards of the same samples; adds questions about colour."),
    ] = None,
    overwrite: Annotated[bool, files("--overwrite", help="Replace the training samples in OUT.")] = False,
    quiet: Annotated[bool, runtime("--quiet", help="No table.")] = False,
) -> None:
    """Build training samples for the language model: image-caption pairs, edits, questions and answers."""
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
