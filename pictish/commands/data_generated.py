"""`pictish data results` and `pictish data geneval`: folders of generated images for other programs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pictish.commands import options

if TYPE_CHECKING:
    from pictish.data.provenance import Origin

Generated = Annotated[
    Path, typer.Argument(metavar="GENERATED", help="Folder that pictish generate or edit wrote.")
]


def results(
    generated: Generated,
    *,
    out: Annotated[
        Path | None, options.files(metavar="FILE", help="JSONL file to write (default: standard output).")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a table of generated images as JSONL: file, prompt, seed, settings, number of codes, models.

    Images that do not say how they were generated are named and left out, the exit code is then 1.
    """
    from pictish.data.generated import row
    from pictish.io.files import write_atomic

    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"{out} already exists; give --overwrite to replace it")
    found, left_out = _read(generated)
    lines = "".join(json.dumps(row(path, origin), ensure_ascii=False) + "\n" for path, origin in found)
    if out is None:
        sys.stdout.write(lines)
    else:
        write_atomic(out, lines.encode("utf-8"))
    if left_out:
        raise typer.Exit(1)


def geneval(
    generated: Generated,
    metadata: Annotated[
        Path,
        typer.Argument(metavar="METADATA", help="GenEval's evaluation_metadata.jsonl, given to --prompts."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")],
    *,
    quiet: options.Quiet = False,
) -> None:
    """Arrange generated images as GenEval's evaluate_images.py reads them: OUT/00000/samples/00000.png.

    The images of a prompt are in the order of their seeds. Prompts without images, and images of no prompt,
    are named; the exit code is then 1.
    """
    from pictish.data.generated import read_metadata, write_geneval
    from pictish.io.files import printable
    from pictish.io.model_folder import whole_folder

    entries = read_metadata(metadata)
    found, left_out = _read(generated)
    images: dict[str, list[Path]] = {entry["prompt"].strip(): [] for entry in entries}
    for path, origin in sorted(found, key=lambda each: each[1].seed):
        if origin.prompt in images:
            images[origin.prompt].append(path)
        else:
            left_out += 1
            print(f"pictish: {printable(path)}: of none of the prompts", file=sys.stderr)
    missing = [prompt for prompt, paths in images.items() if not paths]
    for prompt in missing:
        print(f"pictish: no image of {printable(prompt)!r}", file=sys.stderr)
    with whole_folder(out, False, lambda name: False) as temp:
        write_geneval(images, entries, temp)
    if not quiet:
        count = sum(map(len, images.values()))
        print(f"{out}: {count:,} images of {len(entries) - len(missing):,} prompts")
    if left_out or missing:
        raise typer.Exit(1)


def _read(generated: Path) -> "tuple[list[tuple[Path, Origin]], int]":
    """The images of a folder that say how they were drawn; the others are named, and their number given."""
    from pictish.data.generated import origins

    found, left_out = [], 0
    for path, origin in origins(generated):
        if isinstance(origin, str):
            left_out += 1
            print(f"pictish: {origin}", file=sys.stderr)
        else:
            found.append((path, origin))
    if not found:
        raise ValueError(f"{generated}: no generated images found")
    return found, left_out
