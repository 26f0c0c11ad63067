"""`pictish tokenize` of raw shards: a shard of tokens for each, on one process or on many machines."""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pictish.bulk.batch_tokenizer import BatchTokenizerSettings, open_batch_tokenizer
from pictish.bulk.engine import Here, Worker, drive
from pictish.bulk.ranks import Rank, devices
from pictish.bulk.shard import Bulk, Outcome
from pictish.bulk.stats import BulkFolder, ShardStats
from pictish.bulk.token_shard import Totals
from pictish.data.token_folder import Header
from pictish.io.files import one_line, printable, write_atomic
from pictish.io.finding import Found, counted, shard_name_of
from pictish.io.report import Report
from pictish.io.storage import Stored, find_shards, is_remote, join

REPORT_FORMAT = 1
_READING = 16  # threads that look for finished shards


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do."""

    inputs: Sequence[str]
    out: str
    batch_tokenizer: BatchTokenizerSettings
    engine: str  # "local" or "ray"
    processes: int
    retries: int
    overwrite: bool
    verify: bool  # finished shards by every byte, not by size
    strict: bool
    report: Path | None  # JSON


@dataclass
class Result:
    """Sums over the shards of this process."""

    totals: Totals = field(default_factory=Totals)
    shards: dict[str, int] = field(default_factory=lambda: {"done": 0, "before": 0, "lost": 0})
    retried: dict[str, int] = field(default_factory=dict)  # attempts of shards that took more than one
    lost: dict[str, str] = field(default_factory=dict)  # shards, and why
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)  # by shard: samples, and why
    ignored: dict[str, dict[str, str]] = field(default_factory=dict)  # by shard: members, and why
    hidden: int = 0  # members of shards such as `._a.jpg`

    def add(self, stats: ShardStats) -> None:
        """Count a shard that was made in this run."""
        self.shards["done"] += 1
        self.totals.pictures += stats.pictures
        self.totals.tokens += stats.tokens
        self.totals.bits += stats.bits
        self.totals.pixels += stats.pixels

    def to_json(self, seconds: float, plan: Plan, rank: Rank) -> dict[str, Any]:
        """The report: what was done at which rate, and all that was lost."""
        pictures = self.totals.pictures
        return {
            "engine": plan.engine,
            "format": REPORT_FORMAT,
            "ignored": self.ignored,
            "left_out": self.left_out,
            "lost": self.lost,
            "pictures": pictures,
            "pictures_per_second": pictures / seconds if pictures else None,
            "processes": plan.processes,
            "rank": rank.number,
            "ranks": rank.count,
            "retried": self.retried,
            "seconds": seconds,
            "shards": self.shards,
            "tokens": self.totals.tokens,
        }


def find_sources(inputs: Sequence[str], out: str) -> tuple[list[Stored], Found]:
    """Raw shards of paths and URLs, sorted by the names of their tokens, and what else was found.

    Shards that would meet under one name are problems. ValueError when none is left.
    """
    shards, found = find_shards(inputs)
    by_name: dict[str, dict[str, Stored]] = {}
    for shard in shards:
        by_name.setdefault(shard_name_of(shard.name), {})[_real(shard.place)] = shard
    sources = []
    for name, meeting in sorted(by_name.items()):
        one, *more = meeting.values()
        if _real(join(out, name)) in meeting:
            raise ValueError(
                f"{printable(join(out, name))} would be replaced by its own tokens; choose another OUT"
            )
        if more:
            places = " and ".join(sorted(printable(shard.place) for shard in meeting.values()))
            found.problems.append((places, f"would both become {name}; rename one"))
        else:
            sources.append(one)
    if not sources:
        reason = "; ".join(f"{printable(name)}: {why}" for name, why in found.problems)
        raise ValueError(reason or f"no shards found ({', '.join(map(printable, inputs))})")
    return sources, found


def _real(place: str) -> str:
    return place if is_remote(place) else os.path.realpath(place)


def run(plan: Plan, quiet: bool) -> int:
    """Make what is missing; the number of failures: shards that are lost, samples that are left out."""
    rank = Rank.of(os.environ)
    sources, found = find_sources(plan.inputs, plan.out)
    if plan.engine == "ray" and rank.count > 1:
        raise ValueError(f"--engine ray under a launcher of {rank.count} processes; start it once")
    with _workers(plan, rank) as (header, make):
        folder = BulkFolder(plan.out, header, plan.overwrite)
        folder.prepare({shard_name_of(source.name) for source in sources})
        own = rank.share(sources)
        result = Result()
        with Report("tokenizing", None, quiet=quiet, strict=plan.strict) as report:
            try:
                if rank.number == 0:
                    report.tell(found)
                    _tell_names(sources, report)
                todo = _todo(folder, own, plan, report, result)
                bulk = Bulk(plan.batch_tokenizer, plan.out, header.to_json(), plan.overwrite, plan.strict)
                if todo:
                    with contextlib.closing(drive(make(bulk, report), todo, plan.retries)) as outcomes:
                        _collect(outcomes, report, result)
            finally:
                if plan.report:
                    facts = result.to_json(report.seconds, plan, rank)
                    text = json.dumps(facts, sort_keys=True, indent=1)
                    write_atomic(_own_report(plan.report, rank), text.encode("ascii") + b"\n")
        if result.hidden:
            report.note(f"ignored {counted(result.hidden, 'hidden member')} of shards")
    if not quiet:
        print(_summary(result, report, rank))
    rank.wait_for_others()
    return report.failures


def _todo(
    folder: BulkFolder, own: Sequence[Stored], plan: Plan, report: Report, result: Result
) -> list[Stored]:
    """The shards yet to be made; the finished ones are counted, and what is wrong with them reported."""

    def look(source: Stored) -> ShardStats | ValueError | None:
        try:
            return folder.finished(source, plan.verify)
        except ValueError as error:
            return error

    todo = []
    with ThreadPoolExecutor(_READING) as pool:
        for source, found in zip(own, pool.map(look, own), strict=True):
            if found is None:
                todo.append(source)
            elif isinstance(found, ValueError):
                result.shards["lost"] += 1
                result.lost[source.name] = one_line(found)
                report.failed(source.name, one_line(found))
            else:
                result.shards["before"] += 1
                result.totals.before += found.samples
                report.done(found.samples)
                _tell_left_out(source, found, report, result)
    return todo


def _collect(
    outcomes: Generator[tuple[Stored, Outcome], None, None],
    report: Report,
    result: Result,
) -> None:
    """Count what became of each shard; OSError for trouble that every other shard would meet too."""
    for source, outcome in outcomes:
        if outcome.attempts > 1:
            result.retried[source.name] = outcome.attempts
        if outcome.kind == "done":
            stats = outcome.shard_stats()
            result.add(stats)
            _tell_left_out(source, stats, report, result)
            continue
        result.shards["lost"] += 1
        result.lost[source.name] = outcome.reason
        if outcome.kind == "stop":
            raise OSError(f"{printable(source.name)}: {outcome.reason}")
        report.failed(source.name, outcome.reason)


def _tell_names(sources: Sequence[Stored], report: Report) -> None:
    """Note the shards whose tokens have another name."""
    other = {s.name: name for s in sources if (name := shard_name_of(s.name)) != s.name}
    if other:
        names = ", ".join(
            f"{printable(old)} becomes {printable(new)}" for old, new in list(other.items())[:3]
        )
        report.note(names + (f", and {len(other) - 3:,} more likewise" if len(other) > 3 else ""))


def _tell_left_out(source: Stored, stats: ShardStats, report: Report, result: Result) -> None:
    result.hidden += stats.hidden
    for told, names in ((result.left_out, stats.left_out), (result.ignored, stats.ignored)):
        if names:
            told[source.name] = dict(names)
        for name, reason in names.items():
            report.failed(f"{source.name}/{name}", reason)


@contextlib.contextmanager
def _workers(plan: Plan, rank: Rank) -> Iterator[tuple[Header, Callable[[Bulk, Report], list[Worker]]]]:
    """What all shards have in common, and how to make the workers.

    Only a process that tokenizes itself loads the tokenizer.
    """
    from pictish.tokenizer.config import read_tokenizer_config
    from pictish.training.runtime import resolve_device

    selection = plan.batch_tokenizer.selection
    own = devices(plan.batch_tokenizer.device, rank, plan.processes)
    if plan.engine == "local":
        resolve_device(own[0])
    config, name = read_tokenizer_config(plan.batch_tokenizer.model)
    selection.check(config)
    header = Header("token-shards", name, config.quantizer.codes, selection.settings())
    if plan.engine == "ray":
        from pictish.bulk import ray_engine

        ray_engine.start(plan.processes)
        try:
            yield header, lambda bulk, report: [_Told(ray_engine.RayWorker(bulk), report) for _ in own]
        finally:
            ray_engine.stop()
    elif plan.processes > 1:
        from pictish.bulk.local import LocalWorker

        threads = max(1, (os.cpu_count() or 1) // plan.processes)
        yield header, lambda bulk, report: [_Told(LocalWorker(bulk, one, threads), report) for one in own]
    else:
        with open_batch_tokenizer(replace(plan.batch_tokenizer, device=own[0])) as batch_tokenizer:
            yield header, lambda bulk, report: [Here(batch_tokenizer, bulk, report.done)]


class _Told:
    """A worker elsewhere, whose finished shards move the bar on."""

    def __init__(self, worker: Worker, report: Report) -> None:
        self._worker, self._report = worker, report
        self.stop = worker.stop

    def run(self, source: Stored) -> Outcome:
        """Do a shard."""
        outcome = self._worker.run(source)
        if outcome.kind == "done":
            self._report.done(outcome.shard_stats().pictures)
        return outcome


def _own_report(path: Path, rank: Rank) -> Path:
    return path if rank.count == 1 else path.with_stem(f"{path.stem}-{rank.number:04d}")


def _summary(result: Result, report: Report, rank: Rank) -> str:
    """One line for the end."""
    who = f"rank {rank.number} of {rank.count}: " if rank.count > 1 else ""
    line = who + result.totals.summary(report.failures, report.seconds)
    return f"{line}, {counted(len(result.lost), 'shard')} lost" if result.lost else line
