"""`pictish plan`: the cost of a large run, extrapolated from a measured one (docs/scale.md)."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pictish.commands.options import files, runtime

_BLOCK = 512  # bytes: every header and content of a tar is padded to a multiple
_END = 1024 + 10_240 // 2  # of a tar: two empty blocks and, on average, half of what fills it up to 10,240
_CARRIED = 2 * _BLOCK  # bytes of a caption or JSON of up to 512 bytes


def tokenize(
    images: Annotated[float, files(metavar="N", min=1, help="Total number of images, such as 1e9.")],
    rate: Annotated[
        float | None, runtime(metavar="R", help="Images per second of one process (or use --report).")
    ] = None,
    tokens: Annotated[
        float | None, files(metavar="N", min=1, help="Mean number of tokens per image (or use --like).")
    ] = None,
    codes: Annotated[int | None, files(metavar="N", min=2, help="Codebook size (default: 65536).")] = None,
    processes: Annotated[
        int, runtime(metavar="N", min=1, help="Number of parallel processes, one per GPU.")
    ] = 1,
    per_shard: Annotated[
        int | None, files(metavar="N", min=1, help="Samples per shard (default: 10000, or as in --like).")
    ] = None,
    carried: Annotated[
        int | None,
        files(
            metavar="N", min=0, help="Caption and JSON members per sample, up to 512 bytes each (default: 1)."
        ),
    ] = None,
    like: Annotated[
        str | None, files(metavar="OUT", help="Take sizes from token shards that pictish tokenize wrote.")
    ] = None,
    report: Annotated[
        list[Path] | None,
        runtime(metavar="FILE", help="Take the rate from pictish tokenize --report; repeat for each rank."),
    ] = None,
    as_json: Annotated[bool, files("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Estimate the hours, bytes and shards of a large tokenize run.

    Sizes are computed from the token count, or measured on finished shards (--like); the rate is given, or
    measured by an earlier run (--report).
    """
    if (rate is None) == (not report):
        raise ValueError("give either --rate or --report")
    if (tokens is None) == (like is None):
        raise ValueError("give either --tokens or --like")
    if like is not None and (codes is not None or carried is not None):
        raise ValueError("--like already determines --codes and --carried; do not give them")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"--rate {rate:g}: must be positive")
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
        raise ValueError(f"{place}: shards of different runs ({different}); give shards of a single run")
    stats = [one for _, one in found]
    pictures = sum(one.pictures for one in stats)
    if not pictures:
        raise ValueError(f"{place}: the shards contain no images")
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
        raise ValueError("no image was tokenized in these runs; measure the rate with an empty OUT")
    return pictures / busy


def table(facts: dict[str, Any]) -> str:
    """The estimate as a table."""
    rows = [
        ("images", f"{facts['images']:,}"),
        ("tokens", f"{facts['tokens']:,} ({facts['tokens_per_picture']:.1f} per image)"),
        (
            "process-hours",
            f"{facts['process_hours']:,.1f} ({facts['rate_per_process']:,.1f} images/s each)",
        ),
        ("wall clock", f"{facts['wall_hours']:,.1f} h with {facts['processes']:,} processes"),
        ("token ids", size(facts["id_bytes"])),
        ("shards", f"{size(facts['shard_bytes'])} in {facts['shards']:,} shards, {facts['files']:,} files"),
        ("per image", f"{facts['bytes_per_picture']:,.0f} bytes in a shard"),
    ]
    if "source_bytes" in facts:
        each = size(facts["read_bytes_per_second"])
        rows.append(("input shards", f"{size(facts['source_bytes'])}, read at {each}/s in total"))
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.3g} {unit}" if unit != "B" else f"{count:,.0f} B"
        count /= 1000
    return f"{count:,.3g} PB"
