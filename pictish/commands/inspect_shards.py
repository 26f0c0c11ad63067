"""`pictish inspect` of shards: which samples they hold, and what is ignored."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pictish.data.samples import Sample
    from pictish.io.report import Report

_SHOWN = 3  # names of samples for each reason


def inspect_shards(shards: Sequence[Path], caption_key: str | None, report: "Report") -> list[dict[str, Any]]:
    """How each shard is understood; what is ignored or damaged is a failure of `report`."""
    from pictish.io.files import one_line

    found = []
    for path in shards:
        try:
            found.append(_inspect(path, caption_key, report))
        except (ValueError, OSError) as error:
            report.failed(path.name, one_line(error).removeprefix(f"{path.name}: "))
    return found


def _inspect(path: Path, caption_key: str | None, report: "Report") -> dict[str, Any]:
    from pictish.data.members import image_members
    from pictish.data.samples import DamagedSample, parse_sample
    from pictish.data.shards import open_shard

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


def _kind(sample: "Sample") -> str:
    from pictish.data import samples

    match sample:
        case samples.Pair():
            return "captioned image"
        case samples.Edit():
            return "edit"
        case samples.Question():
            return "question"
        case samples.Document():
            return "document"
        case samples.PlainText():
            return "text"


def shard_lines(facts: dict[str, Any]) -> list[str]:
    """The facts about a shard as text."""
    from pictish.io.files import printable
    from pictish.io.finding import counted

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
