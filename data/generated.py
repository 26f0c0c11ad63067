"""Folders of generated images: what they say of themselves, as a table, and in the layout of GenEval."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pictish.data.provenance import Origin, read_origin
from pictish.io.files import one_line, printable, read_regular_file

_LARGEST_METADATA = 1 << 28  # bytes


def origins(folder: Path) -> Iterator[tuple[Path, Origin | str]]:
    """The PNGs directly in a folder, by name, each with how it was drawn, or why that is not known."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".png" and not path.name.startswith("."):
            try:
                yield path, read_origin(path)
            except (ValueError, OSError) as error:
                yield path, one_line(error)


def row(path: Path, origin: Origin) -> dict[str, Any]:
    """An image as a row of a table: its file, the number of its codes, and what it says of itself."""
    facts = origin.model_dump(mode="json", exclude={"tokens", "format"})
    return {"file": path.name, "words": origin.words, "codes": len(origin.image()), **facts}


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The entries of GenEval's evaluation_metadata.jsonl: a JSON object with a `prompt` on each line.

    ValueError naming the first line that is something else.
    """
    entries = []
    lines = read_regular_file(path, _LARGEST_METADATA).decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ValueError(f"{printable(path)}, line {number}: not a JSON object with a prompt")
        entries.append(entry)
    if not entries:
        raise ValueError(f"{printable(path)}: holds no prompts")
    return entries


def write_geneval(
    images: Mapping[str, Sequence[Path]], entries: Sequence[Mapping[str, Any]], out: Path
) -> None:
    """OUT/00000/metadata.jsonl and OUT/00000/samples/00000.png: a folder for each entry, in their order.

    `images` are those of each prompt; they are linked where that is possible, else copied.
    """
    for number, entry in enumerate(entries):
        folder = out / f"{number:05}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps(entry) + "\n", encoding="utf-8")
        for place, path in enumerate(images.get(entry["prompt"].strip(), ())):
            _link(path, folder / "samples" / f"{place:05}.png")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        target.write_bytes(source.read_bytes())
