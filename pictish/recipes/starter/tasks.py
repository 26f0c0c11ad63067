"""Training samples for the language model from the starter data's tokenized shards: pairs, edits, questions.

    drawings-000000.tar   pairs: every way to ask for the image      (train with `caption: 0`)
    captions-000000.tar   pairs: what the image shows, no requests   (train with `caption: 1`)
    edits-000000.tar      edits from true pairs
    questions-000000.tar  questions with short answers
    mixes-000000.tar      documents: two images, words, and the image that comes of them

Every choice follows from the keys of the images, so neither the order of the shards nor of their samples
matters. The folder is written beside its place and renamed: it is whole or absent.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pictish.data.shards import ShardWriter, find_shards, read_shard
from pictish.io.files import one_line, only_writer, printable, sha256_file, temp_path, write_atomic
from pictish.io.finding import IMAGES
from pictish.recipes.starter.captions import descriptions, prompts
from pictish.recipes.starter.colours import main_colour
from pictish.recipes.starter.concepts import composition_of, split_of
from pictish.recipes.starter.edits import Change, changes
from pictish.recipes.starter.mixes import Mix, mixes
from pictish.recipes.starter.phrases import PHOTO, Picture, rank
from pictish.recipes.starter.questions import questions

FORMAT, FORMAT_VERSION = "pictish-tasks", 1
MANIFEST = "manifest.json"
_FACTS = ("set", "style", "concept", "name", "license", "attribution", "split")  # that go with every sample
_SAMPLES_PER_SHARD = 2000

Sample = tuple[str, dict[str, bytes]]  # key, members


def make_tasks(
    tokens: Path, out: Path, pictures: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write the training samples of the tokenized shards in `tokens` to `out`; returns the manifest.

    `pictures` holds the raw shards of the same samples; without it nothing is asked about colour. ValueError
    for samples of two splits or of another one than their JSON says, samples without facts of the starter
    data, an image that is missing, and an `out` that is not empty, unless it holds tasks and `overwrite`.
    """
    full = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if full and not (overwrite and _is_ours(out)):
        raise ValueError(f"{printable(out)} is not empty; choose another folder, or --overwrite tasks")
    found = read_pictures(tokens)
    colours = {} if pictures is None else read_colours(pictures, {picture.key for picture in found})
    temp = temp_path(out)
    shutil.rmtree(temp, ignore_errors=True)
    with only_writer(temp):
        manifest = _write(temp, found, colours)
        old = temp_path(out.with_name(f"{out.name}.old"))
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():  # renamed first: a kill while it is deleted would leave half of it
            out.rename(old)
        temp.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def read_pictures(tokens: Path) -> list[Picture]:
    """The images of all shards in a folder, in the order of their keys; ValueError as from `make_tasks`."""
    found: dict[str, Picture] = {}
    for shard in find_shards([tokens]):
        for sample in read_shard(shard):
            key = sample["__key__"]
            try:
                picture = Picture(key, sample["tokens"], json.loads(sample["json"]))
                _check_split(picture)
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else one_line(error)
                raise ValueError(f"{printable(shard.name)}/{printable(key)}: {reason}") from error
            if key in found:
                raise ValueError(f"{printable(shard.name)}: two samples are called {printable(key)!r}")
            found[key] = picture
    splits = sorted({picture.facts["split"] for picture in found.values()})
    if len(splits) != 1:
        raise ValueError(
            f"{printable(tokens)} holds samples of the splits {', '.join(splits)}; give those of one"
        )
    return [found[key] for key in sorted(found)]


def _check_split(picture: Picture) -> None:
    """ValueError when the split in the JSON is not the one that follows from the words."""
    facts = picture.facts
    if picture.kind == PHOTO:  # which say themselves where they belong
        return
    split = split_of(facts["concept"], composition_of(facts), facts["split"] == "style-test")
    if split != facts["split"]:
        raise ValueError(f"its JSON says split {facts['split']!r}, but its concept belongs to {split!r}")


def read_colours(pictures: Path, keys: set[str]) -> dict[str, str]:
    """The colour of each image that plainly has one; ValueError when one of `keys` is not among them."""
    colours, missing = {}, set(keys)
    for shard in find_shards([pictures]):
        for sample in read_shard(shard):
            key = sample["__key__"]
            if key in missing and (suffix := next((s for s in IMAGES if s in sample), None)):
                missing.remove(key)
                if suffix == "png" and (colour := main_colour(sample["png"])):
                    colours[key] = colour
    if missing:
        raise ValueError(f"{printable(pictures)} lacks {len(missing):,} pictures, such as {min(missing)}.png")
    return colours


def _write(out: Path, pictures: list[Picture], colours: Mapping[str, str]) -> dict[str, Any]:
    """Write shards and manifest."""
    mixed = sorted(pictures, key=lambda picture: rank("pair", picture.key))
    edits = changes(pictures)
    asked = questions(pictures, colours)
    mixed_pairs = mixes(pictures)
    shards = [
        *_shards(
            out, "drawings", (_pair(picture, prompts(picture, colours.get(picture.key))) for picture in mixed)
        ),
        *_shards(out, "captions", (_pair(picture, descriptions(picture)) for picture in mixed)),
        *_shards(out, "edits", map(_edit, edits)),
        *_shards(out, "mixes", map(_mix, mixed_pairs)),
        *_shards(out, "questions", (_question(p, asked[p.key]) for p in mixed if p.key in asked)),
    ]
    turns = [turn for of_picture in asked.values() for turn in of_picture]
    counts = {
        "drawings": Counter(picture.set for picture in pictures),
        "captions": Counter(picture.set for picture in pictures),
        "edits": Counter(change.kind for change in edits),
        "mixes": Counter(mix.kind for mix in mixed_pairs),
        "questions": Counter(turn.kind for turn in turns),
        "answers": Counter(turn.answer for turn in turns if turn.answer in ("yes", "no")),
        "colours": Counter(turn.answer for turn in turns if turn.kind == "colour"),
    }
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "split": pictures[0].facts["split"],
        "samples": {
            "drawings": len(mixed),
            "captions": len(mixed),
            "edits": len(edits),
            "mixes": len(mixed_pairs),
            "questions": len(asked),
        },
        "counts": counts,
        "shards": {path.name: sha256_file(path) for path in shards},
    }
    write_atomic(out / MANIFEST, f"{json.dumps(manifest, sort_keys=True, indent=1)}\n".encode())
    return manifest


def _shards(out: Path, name: str, samples: Iterable[Sample]) -> Iterator[Path]:
    with ShardWriter(out, _SAMPLES_PER_SHARD, name) as shards:
        for key, members in samples:
            shards.write(key, members)
    yield from shards.shards


def _pair(picture: Picture, captions: list[str]) -> Sample:
    facts = {name: picture.facts[name] for name in _FACTS}
    return picture.key, {"json": _json({**facts, "captions": captions}), "tokens": picture.tokens}


def _edit(change: Change) -> Sample:
    edit = {"source": "source.tokens", "instruction": change.instruction, "target": "target.tokens"}
    facts = {
        "kind": change.kind,
        "split": change.after.facts["split"],
        "source_key": change.before.key,
        "target_key": change.after.key,
    }
    members = {"source.tokens": change.before.tokens, "target.tokens": change.after.tokens}
    return change.key, {"json": _json({**facts, "edit": edit}), **members}


def _mix(mix: Mix) -> Sample:
    pictures = {"first": mix.first, "second": mix.second, "target": mix.target}
    document: list[dict[str, Any]] = [
        {"image": "first.tokens", "given": True},
        {"image": "second.tokens", "given": True},
        {"text": mix.instruction, "given": True},
        {"image": "target.tokens"},
    ]
    facts = {"kind": mix.kind, "split": mix.target.facts["split"]}
    facts |= {f"{name}_key": picture.key for name, picture in pictures.items()}
    members = {f"{name}.tokens": picture.tokens for name, picture in pictures.items()}
    return mix.key, {"json": _json({**facts, "document": document}), **members}


def _question(picture: Picture, turns: list[Any]) -> Sample:
    facts = {name: picture.facts[name] for name in _FACTS}
    listed = [{"question": turn.question, "answer": turn.answer, "kind": turn.kind} for turn in turns]
    return picture.key, {"json": _json({**facts, "questions": listed}), "tokens": picture.tokens}


def _json(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, sort_keys=True, ensure_ascii=False)}\n".encode()


def _is_ours(out: Path) -> bool:
    try:
        return bool(json.loads((out / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False
