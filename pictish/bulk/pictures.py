"""The work of `pictish tokenize` on pictures: to token files, or to shards. Raw shards: run.py."""

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pictish.bulk.batch_tokenizer import BatchTokenizer
from pictish.data.images import images_of
from pictish.data.loader import Decoded
from pictish.data.shards import ShardFile, key_of, shard_name
from pictish.data.token_folder import Entry, OutputFolder, plan_outputs, sources_digest
from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line, printable, read_regular_file, sha256_file
from pictish.io.finding import File, Found, counted, find
from pictish.io.interrupt import in_units, stop_here
from pictish.io.report import Report, Writer
from pictish.io.storage import is_remote

_GO_ON = "interrupted; finished tokens are kept, and the same command resumes from there"


@dataclass
class Totals:
    """Sums over the images tokenized in this run, and how many were done before."""

    pictures: int = 0
    tokens: int = 0
    bits: float = 0.0
    pixels: int = 0
    before: int = 0

    def add(self, image: TokenizedImage) -> None:
        """Count one picture."""
        self.pictures += 1
        self.tokens += len(image)
        self.bits += image.bits
        self.pixels += image.size[0] * image.size[1]

    def summary(self, failures: int, seconds: float) -> str:
        """One line for the end."""
        parts = [f"{self.pictures:,} images tokenized in {seconds:.1f} s"]
        if self.pictures:
            parts.append(f"{self.tokens / self.pictures:.1f} tokens per image")
            parts.append(f"{self.bits / self.pixels:.2g} bits per pixel")
        if self.before:
            parts.append(f"{self.before:,} already done")
        parts.append(f"{failures:,} broken")
        return ", ".join(parts)


@dataclass(frozen=True)
class Job:
    """What is to be done, known before the model is loaded."""

    kind: str
    total: int | None  # pictures, None when they are not counted beforehand
    outputs: list[str]
    settings: dict[str, Any]
    found: Found  # what else the search for pictures met
    run: "Callable[[Work], None]"


@dataclass(frozen=True)
class Work:
    """What a job works with."""

    batch_tokenizer: BatchTokenizer
    output: OutputFolder
    report: Report
    totals: Totals


def plan(inputs: Sequence[Path], shards: bool, samples_per_shard: int) -> Job:
    """Find the pictures and name the outputs; ValueError for what cannot be done."""
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
    """Whether the inputs are raw shards; ValueError where some are, and others are pictures."""
    found = find([Path(entry) for entry in inputs if not is_remote(entry)])
    remote = [entry for entry in inputs if is_remote(entry)]
    shards = [*remote, *(file.name for file in found.shards)]
    if shards and found.images:
        raise ValueError(
            f"{counted(len(shards), 'shard')} ({printable(shards[0])} ...) and "
            f"{counted(len(found.images), 'picture')} ({printable(found.images[0].name)} ...) were found; "
            "tokenize them in separate runs"
        )
    return bool(shards)


def _fill_folder(work: Work, images: Sequence[File], outputs: Sequence[str]) -> None:
    """A token file for every picture."""
    output_of = {image.name: name for image, name in zip(images, outputs, strict=True)}

    def finished(name: str) -> str | None:
        entry = work.output.finished(output_of[name])
        return entry.source_sha256 if entry else None

    def store(source: str, sha256: str, image: TokenizedImage) -> None:
        blob = image.to_bytes()
        entry = Entry(source, sha256, hashlib.sha256(blob).hexdigest(), len(image))
        work.output.store(output_of[source], blob, entry)
        work.totals.add(image)

    with Writer(work.report) as writer, in_units("picture"):
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
    """A shard for every part of the pictures."""
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
            with ShardBuilder(work, name, replaces=incomplete) as shard:
                for decoded, image in itertools.islice(tokenized, len(part)):
                    shard.add(decoded, image)
                shard.source_sha256 = sources_digest(shard.sources)


class ShardBuilder:
    """One output shard under way: it is there as a whole when the block ends, or reported as failed.

    It `replaces` one of ours that a passing fault had left incomplete.
    """

    def __init__(self, work: Work, name: str, *, replaces: bool = False) -> None:
        self._work, self._name, self._replaces = work, name, replaces
        self._tokens = 0
        self._sha256 = ""
        self._left_out: list[str] = []
        self._unread: list[str] = []
        self.source_sha256 = ""
        self.sources: list[tuple[str, str | None]] = []

    def __enter__(self) -> "ShardBuilder":
        self._file = ShardFile(self._work.output.folder / self._name, approve=self._approve).__enter__()
        return self

    def add(self, decoded: Decoded, image: TokenizedImage | None) -> None:
        """Append a picture as a sample, or leave it out when broken."""
        name = decoded.file.name
        self.sources.append((name, decoded.sha256))
        if image is None:
            self._left_out.append(name)
            if decoded.transient:
                self._unread.append(name)
            self._work.report.failed(name, decoded.error or "no tokens")
            return
        self._file.write(key_of(name), {"tokens": image.to_bytes()})
        self._tokens += len(image)
        self._work.totals.add(image)
        self._work.report.done()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.__exit__(kind, error, trace)
        except ValueError as refused:  # by _approve
            self._work.report.failed(self._name, one_line(refused))
            return
        if kind is None:
            names = tuple(sorted(self._left_out)), tuple(sorted(self._unread))
            facts = None, self.source_sha256, self._sha256, self._tokens, self._file.samples, *names
            self._work.output.note(self._name, Entry(*facts))

    def _approve(self, written: Path) -> None:
        self._sha256 = sha256_file(written)
        if not self._replaces:
            self._work.output.may_write(self._name, self._sha256)


def _readable_now(entry: Entry, sources: Sequence[tuple[str, str | None]]) -> bool:
    """Whether a finished shard lacks pictures that could not be read when it was made, and can be now."""
    before = [(name, None if name in entry.unread else sha256) for name, sha256 in sources]
    return before != list(sources) and sources_digest(before) == entry.source_sha256


def _reuse(work: Work, name: str, entry: Entry, unchanged: bool) -> None:
    """Count a finished shard, or say that its sources are not what they were."""
    if not unchanged:
        work.report.failed(name, "its pictures have changed since; --overwrite makes it anew")
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
