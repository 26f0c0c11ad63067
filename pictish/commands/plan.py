"""`pictish plan`: what a large run would take, from what a small one was measured to (docs/scale.md)."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

_BLOCK = 512  # bytes: every header and content of a tar is padded to a multiple
_END = 1024 + 10_240 // 2  # of a tar: two empty blocks and, on average, half of what fills it up to 10,240
_CARRIED = 2 * _BLOCK  # bytes of a caption or JSON of up to 512 bytes


def tokenize(
    images: Annotated[float, typer.Option(min=1, help="Pictures in all, such as 1e9.")],
    rate: Annotated[
        float | None, typer.Option(help="Pictures a second of one process, where no report tells them.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, help="Tokens a picture, where no shards tell them.")
    ] = None,
    codes: Annotated[int | None, typer.Option(min=2, help="Codes of the tokenizer (default 65536).")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many work at once, one a GPU.")] = 1,
    per_shard: Annotated[
        int | None, typer.Option(min=1, help="Samples a shard (default 10000, or as --like has them).")
    ] = None,
    carried: Annotated[
        int | None, typer.Option(min=0, help="Captions and JSON a sample, of up to 512 bytes (default 1).")
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="OUT", help="Measured shards: what pictish tokenize made of shards.")
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Measured rate: of pictish tokenize --report; repeat for ranks."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what it takes to tokenize so many pictures: hours, bytes and shards.

    Sizes are worked out, or those of measured shards; so is the rate, or that of a report.
    """
    if (rate is None) == (not report):
        raise ValueError("the rate comes from --rate or from --report; give one of them")
    if (tokens is None) == (like is None):
        raise ValueError("sizes come from --tokens or from --like; give one of them")
    if like is not None and (codes is not None or carried is not None):
        raise ValueError("--like says what --codes and --carried would; leave them away")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"--rate {rate:g}: must be more than 0")
    speed = measured_rate(report) if report else rate
    assert speed is not None
    if like is not None:
        sizes = measured_shards(like)
    else:
        assert tokens is not None
        sizes = worked_out(tokens, codes or 65_536, 1 if carried is None else carried)
    measured = round(sizes.pop("samples_per_shard", 10_000))
    facts = estimate(math.ceil(images), speed, processes, per_shard or measured, **sizes)
    print(json.dumps(facts, sort_keys=True, indent=1) if as_json else table(facts))


def estimate(
    images: int,
    rate: float,
    processes: int,
    per_shard: int,
    *,
    tokens: float,
    id_bytes: int,
    bytes_per_picture: float,
    source_bytes_per_picture: float | None = None,
) -> dict[str, Any]:
    """The numbers of a run; bytes and hours are linear in the number of pictures, as docs/scale.md measures.

    `rate`: pictures a second of one process.
    """
    hours = images / rate / 3600
    shards = math.ceil(images / per_shard)
    facts: dict[str, Any] = {
        "images": images,
        "tokens": round(images * tokens),
        "tokens_per_picture": tokens,
        "processes": processes,
        "rate_per_process": rate,
        "process_hours": hours,
        "wall_hours": hours / processes,
        "id_bytes": round(images * tokens * id_bytes),
        "shard_bytes": math.ceil(images * bytes_per_picture) + shards * _END,
        "bytes_per_picture": bytes_per_picture,
        "pictures_per_shard": per_shard,
        "shards": shards,
        "files": 2 * shards + 1,
    }
    if source_bytes_per_picture is not None:
        facts["source_bytes"] = round(images * source_bytes_per_picture)
        facts["read_bytes_per_second"] = source_bytes_per_picture * rate * processes
    return facts


def worked_out(tokens: float, codes: int, carried: int) -> dict[str, Any]:
    """Sizes of samples of so many tokens, from the layout of token files and tars."""
    import numpy as np

    from pictish.data.tokens import TokenizedImage

    count = math.ceil(tokens)
    side = math.isqrt(count - 1) + 1
    ids = np.zeros(count, dtype=np.int64)
    image = TokenizedImage(ids, np.arange(count), (side, side), (1024, 1024), "0" * 12, codes)
    blob = math.ceil(len(image.to_bytes()) / _BLOCK) * _BLOCK
    return {
        "tokens": tokens,
        "id_bytes": 2 if codes <= 1 << 16 else 4,
        "bytes_per_picture": float(_BLOCK + blob + carried * _CARRIED),
    }


def measured_shards(place: str) -> dict[str, Any]:
    """The same, and samples a shard, as finished shards have them; ValueError where there is none."""
    from pictish.bulk.stats import read_stats

    found = read_stats(place)
    header = found[0][0]
    different = next(filter(None, (one.difference(header) for one, _ in found)), None)
    if different is not None:
        raise ValueError(f"{place}: {different} in another shard; measure shards of one run")
    stats = [one for _, one in found]
    pictures = sum(one.pictures for one in stats)
    if not pictures:
        raise ValueError(f"{place}: its shards hold no pictures")
    return {
        "tokens": sum(one.tokens for one in stats) / pictures,
        "id_bytes": 2 if header.codebook_size <= 1 << 16 else 4,
        "bytes_per_picture": sum(max(0, one.bytes - _END) for one in stats) / pictures,
        "source_bytes_per_picture": sum(one.source_bytes for one in stats) / pictures,
        "samples_per_shard": pictures / len(stats),
    }


def measured_rate(reports: list[Path]) -> float:
    """Pictures a second of one process, of the reports of a run's ranks; ValueError when they do not say."""
    pictures, busy = 0, 0.0
    for path in reports:
        try:
            facts = json.loads(path.read_bytes())
            if facts["format"] != 1:
                raise ValueError(f"format version {facts['format']!r}; this program reads version 1")
            pictures += int(facts["pictures"])
            busy += float(facts["seconds"]) * int(facts["processes"])
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{path}: not a report of pictish tokenize") from None
    if pictures == 0 or busy <= 0:
        raise ValueError("no picture was tokenized in these runs; measure the rate with a fresh OUT")
    return pictures / busy


def table(facts: dict[str, Any]) -> str:
    """The numbers for people."""
    rows = [
        ("pictures", f"{facts['images']:,}"),
        ("tokens", f"{facts['tokens']:,} ({facts['tokens_per_picture']:.1f} a picture)"),
        (
            "process-hours",
            f"{facts['process_hours']:,.1f} ({facts['rate_per_process']:,.1f} pictures/s each)",
        ),
        ("wall clock", f"{facts['wall_hours']:,.1f} h with {facts['processes']:,} at once"),
        ("ids alone", size(facts["id_bytes"])),
        ("shards", f"{size(facts['shard_bytes'])} in {facts['shards']:,} shards, {facts['files']:,} files"),
        ("a picture", f"{facts['bytes_per_picture']:,.0f} bytes in a shard"),
    ]
    if "source_bytes" in facts:
        each = size(facts["read_bytes_per_second"])
        rows.append(("raw shards", f"{size(facts['source_bytes'])}, read at {each}/s in all"))
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.3g} {unit}" if unit != "B" else f"{count:,.0f} B"
        count /= 1000
    return f"{count:,.3g} PB"
