"""A source of images (`sources.py`) looked through once, and written as raw shards for all other commands.

OUT/train/captioned-000000.tar      KEY.png and KEY.txt; KEY.json holds `captions` where there are several
OUT/train/uncaptioned-000000.tar    images without captions
OUT/train/edits-000000.tar          KEY.source.png, KEY.target.png and KEY.json, of `edits.jsonl`
OUT/train/questions-000000.tar      KEY.png and KEY.json, of `questions.jsonl`
OUT/validation/                     the same of the images that are held out
OUT/manifest.json                   what was found, and what was left out and why
"""

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pictish.data.annotations import (
    Annotations,
    edit_members,
    normal,
    question_members,
    read_annotations,
)
from pictish.data.images import load_image, png_bytes
from pictish.data.loader import ImageBytes, decode_images
from pictish.data.shards import ShardWriter, check_key, key_of
from pictish.data.sources import Item, Reading, read_source, reader_of
from pictish.io.files import one_line, read_regular_file, temp_path, write_atomic
from pictish.io.finding import File
from pictish.io.signatures import image_suffix

MANIFEST = "manifest.json"
FORMAT, VERSION = "pictish-pictures", 1
SPLITS = ("train", "validation")
PICTURES = ("captioned", "uncaptioned")
TASKS = ("edits", "questions")
KINDS = (*PICTURES, *TASKS)
_PER_SHARD = 1000  # samples
_NAMED = 100  # of those left out for a reason, in the manifest
_SIDE = 8  # pixels: images are decoded to see that they can be


@dataclass
class Found:
    """What a source holds. `digests` run over all its items, None where one cannot be used."""

    source: Path
    kind: str  # in words
    reading: Reading
    digests: list[str | None] = field(default_factory=list)  # sha256 of an image's file
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of each usable image
    with_captions: set[str] = field(default_factory=set)  # digests
    captioned: int = 0
    captions: int = 0
    said_in: Counter[str] = field(default_factory=Counter)  # where captions stand -> images
    annotations: Annotations = field(default_factory=Annotations)  # those whose images can be used

    @property
    def pictures(self) -> int:
        """How many can be used."""
        return len(self.sizes)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        used = [digest for digest in self.digests if digest]
        sides = sorted(self.sizes, key=max)
        return {
            "source": os.path.realpath(self.source),
            "kind": self.kind,
            "caption_key": self.reading.caption_key,
            "pictures": self.pictures,
            "captioned": self.captioned,
            "captions": self.captions,
            "captions_from": dict(self.said_in.most_common()),
            "edits": len(self.annotations.edits),
            "questions": len(self.annotations.questions),
            "copies": len(used) - len(set(used)),
            "sizes": {
                name: list(sides[round(part * (len(sides) - 1))])
                for name, part in (("smallest", 0.0), ("median", 0.5), ("largest", 1.0))
            },
            "left_out": {
                reason: {"count": len(names), "names": names[:_NAMED]}
                for reason, names in sorted(self.reading.report.skipped.items())
            },
            "ignored": dict(self.reading.ignored.most_common()),
        }


def look(
    source: Path,
    caption_key: str | None = None,
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Found:
    """Read all of a source and decode every image, in `workers` processes (0: in this one).

    `progress` is called with the images done. ValueError for what is no source, for one without a usable
    image, and for a `caption_key` that no sample has.
    """
    kind, _ = reader_of(source)
    found = Found(source, kind, Reading(caption_key))
    annotations = read_annotations(source, found.reading.report)
    wanted = annotations.pictures
    named: set[str] = set()  # of `wanted`
    usable: set[str] = set()
    waiting: deque[Item] = deque()
    for decoded in decode_images(_requests(found, waiting), _SIDE, workers):
        item = waiting.popleft()
        named |= {normal(item.name)} & wanted
        if decoded.size is None:
            found.reading.report.skip(item.name, decoded.error or "cannot be read")
            found.digests.append(None)
            continue
        assert decoded.sha256 is not None
        found.digests.append(decoded.sha256)
        found.sizes.append(decoded.size)
        found.reading.report.used += 1
        found.captions += len(item.captions)
        usable |= {normal(item.name)} & wanted
        if item.captions:
            found.captioned += 1
            found.with_captions.add(decoded.sha256)
            found.said_in[item.said_in or "captions"] += 1
        progress(len(found.digests))
    if not found.pictures:
        reasons = "; ".join(found.reading.report.lines(3)[:3])
        raise ValueError(f"{source}: no image could be used{f': {reasons}' if reasons else ''}")
    if caption_key is not None and not found.captioned:
        fields = ", ".join(found.reading.fields) or "none"
        raise ValueError(f"caption_key {caption_key!r}: no sample has captions there; fields found: {fields}")
    found.annotations = annotations.matched(usable, named, found.reading.report)
    return found


def _requests(found: Found, waiting: "deque[Item]") -> Iterator[File | ImageBytes]:
    for item in read_source(found.source, found.reading):
        waiting.append(item)
        if isinstance(item.picture, bytes):
            yield ImageBytes(item.picture, item.name)
        else:
            yield File(item.picture, item.name)


def write_raw_shards(
    found: Found,
    folder: Path,
    validation: "float | Found",
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Write `folder` as a whole; the manifest. `validation`: the fraction held out, or a source of its own.

    The fraction is chosen by hashes of the images' files, so that copies of one lie on one side; it is one
    image with captions at least. An edit is held out where one of its images is, and questions are with
    their image. ValueError when the source has changed since it was looked through, or is too small to hold
    one out.
    """
    held_out = _held_out(found, validation) if isinstance(validation, float) else frozenset[str]()
    temp = temp_path(folder)
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {
            (split, kind): stack.enter_context(ShardWriter(temp / split, _PER_SHARD, kind))
            for split in SPLITS
            for kind in KINDS
        }
        keys: dict[str, set[str]] = {}

        def write(split: str, kind: str, name: str, members: dict[str, bytes]) -> None:
            # images have different keys whether they have captions or not
            taken = keys.setdefault(f"{split}/{'pictures' if kind in PICTURES else kind}", set())
            writers[split, kind].write(_free_key(name, taken), members)
            counts[f"{split}/{kind}"] += 1

        sources = [(found, None), *([] if isinstance(validation, float) else [(validation, SPLITS[1])])]
        for each, always in sources:
            wanted = each.annotations.pictures
            kept: dict[str, tuple[str, Path]] = {}  # normal name: split, file
            for item, digest in _usable(each):
                split = always or SPLITS[digest in held_out]
                members = _members(item, digest)
                write(split, PICTURES[not item.captions], item.name, members)
                if (name := normal(item.name)) in wanted - kept.keys():
                    kept[name] = split, _keep(members, temp / ".named", len(kept))
                progress(sum(counts[f"{split}/{kind}"] for split in SPLITS for kind in PICTURES))
            for edit in each.annotations.edits:
                (before, source), (after, target) = kept[edit.source], kept[edit.target]
                split = SPLITS[SPLITS[1] in (before, after)]
                write(split, "edits", edit.source, edit_members(edit, source, target))
            for name, asked in each.annotations.questions_by_picture().items():
                split, picture = kept[name]
                write(split, "questions", name, question_members(asked, picture))
            shutil.rmtree(temp / ".named", ignore_errors=True)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "sources": [each.to_json() for each, _ in sources],
        "validation": validation if isinstance(validation, float) else "a source of its own",
        "samples": dict(sorted(counts.items())),
    }
    write_atomic(temp / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode("ascii"))
    temp.rename(folder)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder written by `write_raw_shards`; None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(read_regular_file(path))
        if (manifest["format"], manifest["version"]) == (FORMAT, VERSION):
            return dict(manifest)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path}: not the manifest of raw shards of version {VERSION}; choose another folder")


def _held_out(found: Found, fraction: float) -> frozenset[str]:
    """Digests of the images to hold out."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation: {fraction} asked for; a fraction above 0 and below 1 fits")
    distinct = sorted(found.with_captions or {digest for digest in found.digests if digest})
    if len(distinct) < 2:
        raise ValueError(
            f"{found.source}: holds {len(distinct)} different image, and one more is needed to validate on"
        )
    last = distinct[min(max(1, round(fraction * len(distinct))), len(distinct) - 1) - 1]
    return frozenset(digest for digest in found.digests if digest and digest <= last)


def _usable(found: Found) -> Iterator[tuple[Item, str]]:
    """The items that can be used, with their digests; ValueError where the source is not what it was."""
    again = Reading(found.reading.caption_key)
    changed = ValueError(f"{found.source}: was changed while it was read; start again")
    number = 0
    for number, item in enumerate(read_source(found.source, again), 1):
        if number > len(found.digests):
            raise changed
        if (digest := found.digests[number - 1]) is not None:
            yield item, digest
    if number != len(found.digests):
        raise changed


def _members(item: Item, digest: str) -> dict[str, bytes]:
    """What goes into a shard: the file as it is where it is PNG, JPEG or WebP, else as PNG."""
    try:
        blob = item.read()
        if hashlib.sha256(blob).hexdigest() != digest:
            raise ValueError("was changed while it was read; start again")
        suffix = _suffix_of(blob)
        members = {suffix or "png": blob if suffix else png_bytes(load_image(blob))}
    except (OSError, ValueError) as error:
        raise ValueError(f"{item.name}: {one_line(error)}") from error
    if item.captions:
        members["txt"] = item.captions[0].encode("utf-8", "replace")
    if len(item.captions) > 1:
        members["json"] = json.dumps({"captions": item.captions}).encode("ascii")
    return members


def _keep(members: dict[str, bytes], folder: Path, number: int) -> Path:
    """The image of a sample as a file, until the edits and questions that name it are written."""
    folder.mkdir(exist_ok=True)
    suffix = next(suffix for suffix in members if suffix not in ("txt", "json"))
    path = folder / f"{number}.{suffix}"
    path.write_bytes(members[suffix])
    return path


def _suffix_of(blob: bytes) -> str | None:
    suffix = image_suffix(blob)
    return suffix if suffix in ("jpg", "png", "webp") else None


def _free_key(name: str, taken: set[str]) -> str:
    """A key that says the name of an image, and that no other image has."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    wanted = key_of("/".join(parts)) if "." in (parts or [""])[-1] else "/".join(parts)
    try:
        check_key(wanted)
    except ValueError:
        wanted = f"picture-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    key, number = wanted, 1
    while key in taken:
        number += 1
        key = f"{wanted}-{number}"
    taken.add(key)
    return key
