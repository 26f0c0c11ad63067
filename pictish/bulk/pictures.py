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

from pictish.bulk.batch_tokenizer import Machine
from pictish.data.images import ImageFile, find_images, holds_images
from pictish.data.loader import Decoded
from pictish.data.shards import ShardFile, key_of, shard_name
from pictish.data.token_folder import Entry, OutputFolder, plan_outputs, sources_digest
from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line, printable, sha256_file
from pictish.io.interrupt import in_units, stop_here
from pictish.io.report import Report, Writer
from pictish.io.storage import holds_shards, is_remote

_GO_ON = "interrupted; what was tokenized is kept, and the same command goes on from there"


@dataclass
class Totals:
    """Sums over the pictures tokenized in this run, and how many were done before."""

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
        parts = [f"{self.pictures:,} pictures tokenized in {seconds:.1f} s"]
        if self.pictures:
            parts.append(f"{self.tokens / self.pictures:.1f} tokens a picture")
            parts.append(f"{self.bits / self.pixels:.2g} bits per pixel")
        if self.before:
            parts.append(f"{self.before:,} were done before")
        parts.append(f"{failures:,} broken")
        return ", ".join(parts)


@dataclass(frozen=True)
class Job:
    """What is to be done, known before the model is loaded."""

    kind: str
    total: int | None  # pictures, None when they are not counted beforehand
    outputs: list[str]
    settings: dict[str, Any]
    run: "Callable[[Work], None]"


@dataclass(frozen=True)
class Work:
    """What a job works with."""

    machine: Machine
    output: OutputFolder
    report: Report
    totals: Totals


def plan(inputs: Sequence[Path], shards: bool, samples_per_shard: int) -> Job:
    """Find the pictures and name the outputs; ValueError for what cannot be done."""
    images = find_images(inputs)
    outputs = plan_outputs(images)
    if not shards:
        return Job("token-folder", len(images), outputs, {}, lambda work: _fill_folder(work, images, outputs))
    parts = [images[start : start + samples_per_shard] for start in range(0, len(images), samples_per_shard)]
    names = [shard_name(number) for number in range(len(parts))]
    settings = {"samples_per_shard": samples_per_shard}
    return Job("token-shards", len(images), names, settings, lambda work: _fill_shards(work, parts, names))


def hold_shards(inputs: Sequence[str]) -> bool:
    """Whether the inputs are raw shards; ValueError where some are and others are not."""
    raw = [entry for entry in inputs if is_remote(entry) or holds_shards(Path(entry), unless=holds_images)]
    if raw and len(raw) < len(inputs):
        raise ValueError(f"{printable(raw[0])} is shards, other inputs are not; tokenize them apart")
    return bool(raw)


def _fill_folder(work: Work, images: Sequence[ImageFile], outputs: Sequence[str]) -> None:
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
        for decoded, image in work.machine.tokenize(images, skip=finished):
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


def _fill_shards(work: Work, parts: Sequence[Sequence[ImageFile]], names: Sequence[str]) -> None:
    """A shard for every part of the pictures."""
    todo = []
    for name, part in zip(names, parts, strict=True):
        entry = work.output.finished(name)
        if entry is None:
            todo.append((name, part))
        else:
            digest = sources_digest([(image.name, _sha256(image.path)) for image in part])
            _reuse(work, name, entry, digest == entry.source_sha256)
    pictures = (image for _, part in todo for image in part)
    with contextlib.closing(work.machine.tokenize(pictures)) as tokenized, in_units("shard"):
        for name, part in todo:
            stop_here(_GO_ON)
            with ShardBuilder(work, name) as shard:
                for decoded, image in itertools.islice(tokenized, len(part)):
                    shard.add(decoded, image)
                shard.source_sha256 = sources_digest(shard.sources)


class ShardBuilder:
    """One output shard under way: it is there as a whole when the block ends, or reported as failed."""

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._name = work, name
        self._tokens = 0
        self._sha256 = ""
        self._left_out: list[str] = []
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
            left_out = tuple(sorted(self._left_out))
            facts = None, self.source_sha256, self._sha256, self._tokens, self._file.samples, left_out
            self._work.output.note(self._name, Entry(*facts))

    def _approve(self, written: Path) -> None:
        self._sha256 = sha256_file(written)
        self._work.output.may_write(self._name, self._sha256)


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
        return sha256_file(path)
    except OSError:
        return None
