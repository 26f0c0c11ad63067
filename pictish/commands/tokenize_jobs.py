"""The work of `pictish tokenize`: pictures to token files, to shards, or raw shards to shards."""

import contextlib
import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pictish.commands.report import Report, Writer
from pictish.data.files import one_line, printable, sha256_file
from pictish.data.images import ImageFile, find_images, holds_images
from pictish.data.interrupt import in_units, stop_here
from pictish.data.loader import Decoded, ImageBytes, decode_images
from pictish.data.shards import PICTURES, ShardFile, find_shards, key_of, read_shard, shard_name
from pictish.data.token_folder import Entry, OutputFolder, plan_outputs, sources_digest
from pictish.data.tokens import TokenizedImage

if TYPE_CHECKING:
    from pictish.commands.tokenize import Selection
    from pictish.tokenizer.dynamic import Tokenizer

_GO_ON = "interrupted; what was tokenized is kept, and the same command goes on from there"
CARRIED = ("txt", "json")  # members of a raw sample that go into the tokens' shard


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

    tokenizer: "Tokenizer"
    selection: "Selection"
    decoding: dict[str, Any]
    batch_size: int
    output: OutputFolder
    report: Report
    totals: Totals

    def tokenize(
        self, files: Iterable[ImageFile | ImageBytes], skip: Callable[[str], str | None] | None = None
    ) -> Generator[tuple[Decoded, TokenizedImage | None], None, None]:
        """Each picture in order, with its tokens unless it is broken or skipped; decoding runs ahead.

        Two batches are under way, so that no core waits where one of them has little to do.
        """
        under_way: deque[Future[list[tuple[Decoded, TokenizedImage | None]]]] = deque()
        with (
            ThreadPoolExecutor(2, thread_name_prefix="pictish-batch") as pool,
            contextlib.closing(decode_images(files, skip=skip, **self.decoding)) as decoded,
        ):
            batch: list[Decoded] = []
            pictures = 0
            for one in decoded:
                batch.append(one)
                pictures += one.pixels is not None
                if pictures in (0, self.batch_size) or len(batch) >= 8 * self.batch_size:
                    under_way.append(pool.submit(self._batch, batch))
                    batch, pictures = [], 0
                    if len(under_way) == 2:
                        yield from under_way.popleft().result()
            under_way.append(pool.submit(self._batch, batch))
            while under_way:
                yield from under_way.popleft().result()

    def _batch(self, batch: list[Decoded]) -> list[tuple[Decoded, TokenizedImage | None]]:
        import numpy as np
        import torch

        whole = [one for one in batch if one.pixels is not None and one.size is not None]
        tokens: Iterator[TokenizedImage] = iter(())
        if whole:
            pixels = torch.from_numpy(np.stack([one.pixels for one in whole if one.pixels is not None]))
            sizes = [one.size for one in whole if one.size is not None]
            arguments = self.selection.arguments([one.file.name for one in whole])
            tokens = iter(self.tokenizer.tokenize_pixels(pixels, sizes, **arguments))
        return [(one, next(tokens) if one.pixels is not None else None) for one in batch]


def plan(inputs: Sequence[Path], out: Path, shards: bool | None, samples_per_shard: int) -> Job:
    """Find the pictures and name the outputs; ValueError for what cannot be done.

    `shards`: whether shards are to be written, None for whatever suits the inputs.
    """
    raw = [entry for entry in inputs if _holds_shards(entry)]
    if raw:
        place = printable(raw[0])
        if len(raw) < len(inputs):
            raise ValueError(f"{place} is shards, other inputs are not; tokenize them apart")
        if shards is False:
            raise ValueError(f"{place}: raw shards become shards; --format folder is for pictures")
        return _plan_raw_shards(find_shards(inputs), out)
    images = find_images(inputs)
    outputs = plan_outputs(images)
    if not shards:
        return Job("token-folder", len(images), outputs, {}, lambda work: _fill_folder(work, images, outputs))
    parts = [images[start : start + samples_per_shard] for start in range(0, len(images), samples_per_shard)]
    names = [shard_name(number) for number in range(len(parts))]
    settings = {"samples_per_shard": samples_per_shard}
    return Job("token-shards", len(images), names, settings, lambda work: _fill_shards(work, parts, names))


def _holds_shards(entry: Path) -> bool:
    """A tar file, or a folder with tar files and no pictures."""
    if not entry.is_dir():
        return entry.suffix == ".tar"
    return next(entry.rglob("*.tar"), None) is not None and not holds_images(entry)


def _plan_raw_shards(shards: Sequence[Path], out: Path) -> Job:
    by_name: dict[str, Path] = {}
    for shard in shards:
        if shard.name in by_name:
            first, second = printable(by_name[shard.name]), printable(shard)
            raise ValueError(f"{first} and {second} would both become {printable(shard.name)}; rename one")
        if (out / shard.name).resolve() == shard.resolve():
            raise ValueError(f"{printable(shard)} would be replaced by its own tokens; choose another OUT")
        by_name[shard.name] = shard
    return Job("token-shards", None, list(by_name), {}, lambda work: _fill_from_shards(work, shards))


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
        for decoded, image in work.tokenize(images, skip=finished):
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
    with contextlib.closing(work.tokenize(pictures)) as tokenized, in_units("shard"):
        for name, part in todo:
            stop_here(_GO_ON)
            with ShardBuilder(work, name) as shard:
                for decoded, image in itertools.islice(tokenized, len(part)):
                    shard.add(decoded, image, key_of(decoded.file.name), decoded.file.name)
                shard.source_sha256 = sources_digest(shard.sources)


def _fill_from_shards(work: Work, shards: Sequence[Path]) -> None:
    """A shard for every raw shard: its pictures become tokens, its captions and JSON are carried over."""
    for path in shards:
        stop_here(_GO_ON)
        sha256 = _sha256(path)
        if sha256 is None:
            work.report.failed(path.name, "cannot be read")
            continue
        entry = work.output.finished(path.name)
        if entry is not None:
            _reuse(work, path.name, entry, sha256 == entry.source_sha256)
            continue
        with in_units("shard"), ShardBuilder(work, path.name, source=path.name) as shard:
            shard.source_sha256 = sha256
            with contextlib.closing(work.tokenize(_pictures(path, shard))) as tokenized:
                for decoded, image in tokenized:
                    shard.add_member(decoded, image)


@dataclass(frozen=True)
class SamplePicture(ImageBytes):
    """One of the pictures of a raw shard's sample; `name` is the sample's key."""

    member: str  # what its tokens are called: `tokens`, or `source.tokens` for `source.png`
    last: bool  # of its sample
    others: dict[str, bytes]  # what goes with the sample, the same for all of its pictures


def _pictures(path: Path, shard: "ShardBuilder") -> Iterator[SamplePicture]:
    """Pictures of a raw shard; samples without one, and damage, are told to `shard`.

    A sample has one picture, or several with names, as edits and documents have.
    """
    try:
        for sample in read_shard(path):
            key = sample["__key__"]
            named = sorted(s for s in sample if "." in s and s.rsplit(".", 1)[1] in PICTURES)
            found = {f"{s.rsplit('.', 1)[0]}.tokens": sample[s] for s in named}
            plain = next((suffix for suffix in PICTURES if suffix in sample), None)
            if plain is not None:
                found["tokens"] = sample[plain]
            if not found:
                error = f"holds no picture; known are {' '.join(PICTURES)}"
                shard.leave_out(key, f"{path.name}/{key}", error)
                continue
            others = {name: sample[name] for name in CARRIED if name in sample}
            last = max(found)
            for member in sorted(found):
                yield SamplePicture(found[member], key, member, member == last, others)
    except ValueError as error:
        shard.damage = one_line(error).removeprefix(f"{path.name}: ")


class ShardBuilder:
    """One output shard under way: it is there as a whole when the block ends, or reported as failed."""

    def __init__(self, work: Work, name: str, source: str | None = None) -> None:
        self._work, self._name, self._source = work, name, source
        self._tokens = 0
        self._sha256 = ""
        self._left_out: list[str] = []
        self._members: dict[str, bytes] = {}  # tokens of the sample under way
        self._images: list[TokenizedImage] = []
        self._broken: str | None = None  # why that sample has no tokens
        self.source_sha256 = ""
        self.sources: list[tuple[str, str | None]] = []
        self.damage: str | None = None  # of the raw shard: then there is no output

    def __enter__(self) -> "ShardBuilder":
        self._file = ShardFile(self._work.output.folder / self._name, approve=self._approve).__enter__()
        return self

    def add(self, decoded: Decoded, image: TokenizedImage | None, key: str, called: str) -> None:
        """Append a picture as a sample, or leave it out when broken; `called` is its name in reports."""
        self.sources.append((decoded.file.name, decoded.sha256))
        if image is None:
            self.leave_out(decoded.file.name, called, decoded.error or "no tokens")
        else:
            self._write(key, {"tokens": image.to_bytes()}, [image])

    def add_member(self, decoded: Decoded, image: TokenizedImage | None) -> None:
        """Take in one picture of a raw sample; the last one of a sample writes it, or leaves it out."""
        picture = decoded.file
        assert isinstance(picture, SamplePicture)
        if image is None:
            self._broken = self._broken or decoded.error or "no tokens"
        else:
            self._images.append(image)
            self._members[picture.member] = image.to_bytes()
        if not picture.last:
            return
        if self._broken is not None:
            self.leave_out(picture.name, f"{self._source}/{picture.name}", self._broken)
        else:
            self._write(picture.name, {**self._members, **picture.others}, self._images)
        self._members, self._images, self._broken = {}, [], None

    def _write(self, key: str, members: dict[str, bytes], images: list[TokenizedImage]) -> None:
        self._file.write(key, members)
        for image in images:
            self._tokens += len(image)
            self._work.totals.add(image)
            self._work.report.done()

    def leave_out(self, name: str, called: str, error: str) -> None:
        """Note a sample that has no tokens."""
        self._left_out.append(name)
        self._work.report.failed(called, error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.damage is not None:
            self._file.__exit__(ValueError, None, None)
            self._work.report.failed(self._name, self.damage)
            return
        try:
            self._file.__exit__(kind, error, trace)
        except ValueError as refused:  # by _approve
            self._work.report.failed(self._name, one_line(refused))
            return
        if kind is None:
            left_out = tuple(sorted(self._left_out))
            facts = self._source, self.source_sha256, self._sha256, self._tokens, self._file.samples, left_out
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
