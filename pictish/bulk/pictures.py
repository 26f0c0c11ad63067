"""The work of `pictish tokenize` on images: to token files, or to shards. Raw shards: run.py."""

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pictish.bulk.batch_tokenizer import BatchTokenizer, BatchTokenizerSettings, open_batch_tokenizer
from pictish.bulk.token_shard import Part, Refused, TokenShard, Totals
from pictish.data.images import images_of
from pictish.data.loader import Decoded
from pictish.data.shards import key_of, shard_name
from pictish.data.token_folder import Entry, Header, OutputFolder, plan_outputs, sources_digest
from pictish.data.tokens import TokenizedImage
from pictish.io.files import check_apart, one_line, printable, read_regular_file
from pictish.io.finding import File, Found, counted, find
from pictish.io.interrupt import in_units, stop_here
from pictish.io.report import Report, Writer
from pictish.io.storage import is_remote

_GO_ON = "interrupted; finished tokens are kept, and the same command resumes from there"


@dataclass(frozen=True)
class Job:
    """What is to be done, known before the model is loaded."""

    kind: str
    total: int | None  # images, None when they are not counted beforehand
    outputs: list[str]
    settings: dict[str, Any]
    found: Found  # what else the search for images met
    run: "Callable[[Work], None]"


@dataclass(frozen=True)
class Work:
    """What a job works with."""

    batch_tokenizer: BatchTokenizer
    output: OutputFolder
    report: Report
    totals: Totals


def run(
    inputs: Sequence[str],
    out: str,
    settings: BatchTokenizerSettings,
    samples_per_shard: int | None,
    overwrite: bool,
    strict: bool,
    quiet: bool,
) -> int:
    """Write a token folder, or shards of `samples_per_shard` samples; returns the number of failures.

    ValueError where nothing can be done, as for an OUT that is a URL.
    """
    if is_remote(out):
        raise ValueError(
            f"{out}: tokens of images are written to a local folder; only token shards can go to a URL"
        )
    check_apart(Path(out), [Path(entry) for entry in inputs], inside=False)
    job = plan([Path(entry) for entry in inputs], samples_per_shard is not None, samples_per_shard or 1)
    totals = Totals()
    with open_batch_tokenizer(settings) as batch_tokenizer:
        tokenizer = batch_tokenizer.tokenizer
        decided = {**settings.selection.settings(), **job.settings}
        header = Header(job.kind, tokenizer.fingerprint, tokenizer.codebook_size, decided)
        with (
            Report("tokenizing", job.total, quiet=quiet, strict=strict) as report,
            OutputFolder(Path(out), header, job.outputs, overwrite) as output,
        ):
            report.tell(job.found)
            job.run(Work(batch_tokenizer, output, report, totals))
            output.finish()
    if not quiet:
        print(totals.summary(report.failures, report.seconds))
    return report.failures


def plan(inputs: Sequence[Path], shards: bool, samples_per_shard: int) -> Job:
    """Find the images and name the outputs; ValueError for what cannot be done."""
    found = find(inputs)
    planned, problems = plan_outputs(images_of(found, inputs))
    found.problems += problems
    images, outputs = list(planned.values()), list(planned)
    if not shards:
        fill = functools.partial(_fill_folder, images=images, outputs=outputs)
        return Job("token-folder", len(images), outputs, {}, found, fill)
    parts = [images[start : start + samples_per_shard] for start in range(0, len(images), samples_per_shard)]
    names = [shard_name(number) for number in range(len(parts))]
    settings = {"samples_per_shard": samples_per_shard}
    fill = functools.partial(_fill_shards, parts=parts, names=names)
    return Job("token-shards", len(images), names, settings, found, fill)


def hold_shards(inputs: Sequence[str]) -> bool:
    """Whether the inputs are raw shards; ValueError where some are, and others are images."""
    found = find([Path(entry) for entry in inputs if not is_remote(entry)])
    remote = [entry for entry in inputs if is_remote(entry)]
    shards = [*remote, *(file.name for file in found.shards)]
    if shards and found.images:
        raise ValueError(
            f"{counted(len(shards), 'shard')} ({printable(shards[0])} ...) and "
            f"{counted(len(found.images), 'image')} ({printable(found.images[0].name)} ...) were found; "
            "tokenize them in separate runs"
        )
    return bool(shards)


def _fill_folder(work: Work, images: Sequence[File], outputs: Sequence[str]) -> None:
    """A token file for every image."""
    output_of = {image.name: name for image, name in zip(images, outputs, strict=True)}

    def finished(name: str) -> str | None:
        entry = work.output.finished(output_of[name])
        return entry.source_sha256 if entry else None

    def store(source: str, sha256: str, image: TokenizedImage) -> None:
        blob = image.to_bytes()
        entry = Entry(source, sha256, hashlib.sha256(blob).hexdigest(), len(image))
        work.output.store(output_of[source], blob, entry)
        work.totals.add(image)

    with Writer(work.report) as writer, in_units("image"):
        for decoded, image in work.batch_tokenizer.tokenize(images, skip=finished):
            stop_here(_GO_ON)
            name, sha256 = decoded.file.name, decoded.sha256
            if decoded.error is not None:
                work.report.failed(name, decoded.error)
            elif image is None:
                work.totals.before += 1
                work.report.done()
            else:
                assert sha256 is not None
                writer.put(name, functools.partial(store, name, sha256, image))


def _fill_shards(work: Work, parts: Sequence[Sequence[File]], names: Sequence[str]) -> None:
    """A shard for every part of the images."""
    todo = []
    for name, part in zip(names, parts, strict=True):
        entry = work.output.finished(name)
        sources = [] if entry is None else [(image.name, _sha256(image.path)) for image in part]
        if entry is None or _readable_now(entry, sources):
            todo.append((name, part, entry is not None))
        else:
            _reuse(work, name, entry, sources_digest(sources) == entry.source_sha256)
    pictures = (image for _, part, _ in todo for image in part)
    with contextlib.closing(work.batch_tokenizer.tokenize(pictures)) as tokenized, in_units("shard"):
        for name, part, incomplete in todo:
            stop_here(_GO_ON)
            _fill_shard(work, name, itertools.islice(tokenized, len(part)), replaces=incomplete)


def _fill_shard(
    work: Work, name: str, tokenized: Iterable[tuple[Decoded, TokenizedImage | None]], *, replaces: bool
) -> None:
    """One shard; it `replaces` one of ours that a passing fault had left incomplete."""
    sources: list[tuple[str, str | None]] = []
    left_out: list[str] = []
    unread: list[str] = []

    def approve(written: Path, sha256: str) -> None:
        if not replaces:
            work.output.may_write(name, sha256)

    try:
        with TokenShard(work.output.folder / name, approve) as shard:
            for decoded, image in tokenized:
                source = decoded.file.name
                sources.append((source, decoded.sha256))
                sample = shard.add(Part(key_of(source)), decoded, image)
                assert sample is not None
                if sample.reason is not None:
                    left_out.append(source)
                    unread += [source] * sample.transient
                    work.report.failed(source, sample.reason)
                for one in sample.images:
                    work.totals.add(one)
                    work.report.done()
    except Refused as refused:
        work.report.failed(name, one_line(refused))
        return
    names = tuple(sorted(left_out)), tuple(sorted(unread))
    facts = None, sources_digest(sources), shard.sha256, shard.totals.tokens, shard.samples, *names
    work.output.note(name, Entry(*facts))


def _readable_now(entry: Entry, sources: Sequence[tuple[str, str | None]]) -> bool:
    """Whether a finished shard lacks images that could not be read when it was made, and can be now."""
    before = [(name, None if name in entry.unread else sha256) for name, sha256 in sources]
    return before != list(sources) and sources_digest(before) == entry.source_sha256


def _reuse(work: Work, name: str, entry: Entry, unchanged: bool) -> None:
    """Count a finished shard, or say that its sources are not what they were."""
    if not unchanged:
        work.report.failed(name, "its images have changed since; --overwrite makes it anew")
        return
    work.totals.before += entry.samples
    work.report.done(entry.samples)
    for left_out in entry.left_out:
        work.report.failed(left_out, f"is not in {name}: it could not be read when that was made")


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(read_regular_file(path)).hexdigest()
    except (OSError, ValueError):
        return None
