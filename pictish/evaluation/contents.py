"""What token files and shards hold, how it is understood, and what is ignored: `pictish inspect`."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pictish.data import samples
from pictish.data.members import image_members
from pictish.data.samples import DamagedSample, parse_sample
from pictish.data.shards import find_shards, open_shard
from pictish.data.token_folder import find_tokens, read_tokens
from pictish.data.tokens import TokenizedImage
from pictish.evaluation.metrics import CodeStatistics
from pictish.evaluation.pictures import Broken
from pictish.io.files import one_line, printable
from pictish.io.finding import Found, counted, find, shard_suffix
from pictish.io.report import Report

_SHOWN = 3  # names of samples for each reason


def inspect_tokens(inputs: Sequence[Path], caption_key: str | None, report: Report) -> dict[str, Any]:
    """Statistics of token files, token folders and shards; damaged ones are reported, not counted.

    Of shards also how they are understood, which is all there is of raw ones.
    """
    beside = Found()
    shards, others = _sorted(inputs, beside)
    report.tell(beside)
    understood = {"shards": inspect_shards(shards, caption_key, report)} if shards else {}
    statistics: CodeStatistics | None = None
    for each in _read_tokens(shards, others):
        if isinstance(each, Broken):
            report.failed(each.name, each.error)
            continue
        if statistics is None:
            statistics = CodeStatistics(each.codebook_size, each.tokenizer)
        statistics.add(each)
        report.done()
    if statistics is None and understood:
        return understood
    if statistics is None:
        raise ValueError("no readable tokens found")
    lengths = {str(length): number for length, number in statistics.length_histogram().items()}
    return {**statistics.summary(), "tokenizer": statistics.tokenizer, "lengths": lengths, **understood}


def _sorted(inputs: Sequence[Path], beside: Found) -> tuple[list[Path], list[Path]]:
    """The shards among the inputs and in their folders, and the inputs without any."""
    holders = [
        entry
        for entry in inputs
        if (find([entry]).shards if entry.is_dir() else shard_suffix(entry.name) is not None)
    ]
    return (find_shards(holders, beside) if holders else []), [
        entry for entry in inputs if entry not in holders
    ]


def _read_tokens(shards: Sequence[Path], others: Sequence[Path]) -> Iterator[TokenizedImage | Broken]:
    """Tokens of token files and of the samples of shards that have any."""
    beside = Found()
    files = find_tokens(others, beside) if others else []
    yield from (Broken(name, reason) for name, reason in beside.problems)
    for file in files:
        try:
            yield read_tokens(file.path)
        except (ValueError, OSError) as error:
            yield Broken(file.name, one_line(error))
    for path in shards:
        with (
            contextlib.suppress(ValueError, OSError),
            open_shard(path) as shard,
        ):  # reported by inspect_shards
            tokens = {key: [s for s in one if s.endswith("tokens")] for key, one in shard.samples.items()}
            for key, names in tokens.items() if any(tokens.values()) else []:
                if not names:
                    yield Broken(f"{path.name}/{key}", "this sample has no tokens")
                for name in names:
                    try:
                        yield TokenizedImage.from_bytes(shard.read(key, images=False)[name])
                    except ValueError as error:
                        yield Broken(f"{path.name}/{key}.{name}", one_line(error))


def inspect_shards(shards: Sequence[Path], caption_key: str | None, report: Report) -> list[dict[str, Any]]:
    """How each shard is understood; what is ignored or damaged is a failure of `report`."""
    found = []
    for path in shards:
        try:
            found.append(_inspect(path, caption_key, report))
        except (ValueError, OSError) as error:
            report.failed(path.name, one_line(error).removeprefix(f"{path.name}: "))
    return found


def _inspect(path: Path, caption_key: str | None, report: Report) -> dict[str, Any]:
    members, kinds = Counter[str](), Counter[str]()
    captions = images = 0
    unusable: dict[str, list[str]] = {}
    with open_shard(path) as shard:
        with_images = any(image_members(one, tokens=True) for one in shard.samples.values())
        for key, places in shard.samples.items():
            members.update(places.keys())
            images += len(image_members(places, tokens=True))
            for used, *more in image_members(places).values():
                for other in more:
                    report.failed(f"{path.name}/{key}.{other}", f"its sample has .{used} too, which is read")
            try:
                blobs = shard.read(key, images=False)
                sample = parse_sample(
                    path.name, key, blobs, text_alone=not with_images, caption_key=caption_key
                )
            except DamagedSample as error:
                unusable.setdefault(error.reason, []).append(key)
            else:
                kinds[_kind(sample)] += 1
                captions += len(getattr(sample, "captions", ()))
        for name, reason in shard.ignored.items():
            report.failed(f"{path.name}/{name}", reason)
        if shard.damage is not None:
            report.failed(path.name, f"{shard.damage}; the samples behind it are lost")
        return {
            "shard": path.name,
            "samples": len(shard.samples),
            "images": images,
            "captions": captions,
            "kinds": dict(sorted(kinds.items())),
            "members": dict(members.most_common()),
            "hidden": shard.hidden,
            "ignored": dict(shard.ignored),
            "unusable_for_training": unusable,
            "damage": shard.damage,
        }


def _kind(sample: samples.Sample) -> str:
    match sample:
        case samples.Pair():
            return "captioned image"
        case samples.Edit():
            return "edit"
        case samples.Question():
            return "question"
        case samples.Document():
            return "document"
        case samples.Dialogue():
            return "dialogue"
        case samples.PlainText():
            return "text"
        case samples.Preference():
            return "preference"


def shard_lines(facts: dict[str, Any]) -> list[str]:
    """The facts about a shard as text."""
    members = ", ".join(f"{number:,} .{printable(suffix)}" for suffix, number in facts["members"].items())
    lines = [
        f"{printable(facts['shard'])}: {counted(facts['samples'], 'sample')}, "
        f"{counted(facts['images'], 'image')}, {counted(facts['captions'], 'caption')}",
        f"  members: {members or 'none'}",
    ]
    if facts["kinds"]:
        kinds = ", ".join(counted(number, kind) for kind, number in facts["kinds"].items())
        lines.append(f"  for training: {kinds}")
    for reason, keys in facts["unusable_for_training"].items():
        more = f" and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
        names = ", ".join(map(printable, keys[:_SHOWN]))
        lines.append(
            f"  not for training: {counted(len(keys), 'sample')}, {printable(reason)} ({names}{more})"
        )
    if facts["hidden"]:
        lines.append(f"  ignored: {counted(facts['hidden'], 'hidden member')}")
    return lines
