"""`pictish data shards`: images with captions, however they are stored, to raw shards."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import options
from pictish.commands.train_model import CaptionKey, Pictures, Val, Workers


def run(
    pictures: Pictures,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards; it must not exist.")],
    *,
    val: Val = "0.05",
    caption_key: CaptionKey = None,
    workers: Workers = None,
    quiet: Annotated[bool, options.runtime("--quiet", help="Only warnings and errors.")] = False,
) -> None:
    """Write OUT/train and OUT/validation, which `train`, `tokenize` and `evaluate` read.

    Images that cannot be used are named and left out, the exit code is then 1.
    """
    from pictish.data.collect import look, write_raw_shards
    from pictish.io.files import check_apart
    from pictish.recipes.own.prepare import described, fraction_or_source

    if out.exists():
        raise ValueError(f"{out}: exists already; choose another folder")
    fraction, other = fraction_or_source(val)
    check_apart(out, [pictures, *([other] if other else [])])
    decoders = min(4, os.cpu_count() or 1) if workers is None else workers
    found = look(pictures, caption_key, decoders)
    validation = fraction if other is None else look(other, caption_key, decoders)
    manifest = write_raw_shards(found, out, validation)
    if not quiet:
        print("\n".join(described(manifest)))
    if any(source["left_out"] for source in manifest["sources"]):
        raise typer.Exit(1)
