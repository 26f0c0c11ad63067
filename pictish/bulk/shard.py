"""One raw shard to one shard of tokens: the unit of bulk work, the same bytes whoever does it."""

import contextlib
import errno
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pictish.bulk.batch_tokenizer import BatchTokenizer, BatchTokenizerSettings
from pictish.bulk.stats import BulkFolder, ShardStats
from pictish.bulk.token_shard import Part, Sample, TokenShard
from pictish.data.loader import ImageBytes
from pictish.data.members import image_members, is_image
from pictish.data.shards import open_shard
from pictish.data.token_folder import Header
from pictish.io.files import one_line, printable, sha256_file
from pictish.io.finding import shard_name_of, supported
from pictish.io.storage import Stored, download, is_remote, join, upload

_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of the output: every other shard would fail alike


@dataclass(frozen=True)
class Bulk:
    """All that a process needs to take part in a run; plain JSON by `dataclasses.asdict`."""

    batch_tokenizer: BatchTokenizerSettings
    out: str
    header: Mapping[str, Any]
    overwrite: bool
    strict: bool  # a shard with a broken sample is lost as a whole

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Bulk":
        """Undo `dataclasses.asdict`."""
        return cls(**{**facts, "batch_tokenizer": BatchTokenizerSettings.from_json(facts["batch_tokenizer"])})

    def folder(self) -> BulkFolder:
        """Where the shards go."""
        return BulkFolder(self.out, Header.from_json(dict(self.header)), self.overwrite)


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: `done` with stats, `lost`, `again` worth a try, or `stop` the run."""

    kind: str
    stats: Mapping[str, Any] | None = None
    reason: str = ""
    attempts: int = 1

    def shard_stats(self) -> ShardStats:
        """Of a shard that is done."""
        assert self.stats is not None
        return ShardStats.from_json(self.stats)


class Incomplete(OSError):
    """A shard was written without samples that a passing fault kept out, and so is not marked as whole."""


def attempt(
    batch_tokenizer: BatchTokenizer,
    bulk: Bulk,
    source: Stored,
    done: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Tokenize one shard and commit it; nothing is raised, a bug leaves its traceback on stderr."""
    try:
        return Outcome("done", asdict(tokenize_shard(batch_tokenizer, bulk, source, done)))
    except ValueError as error:
        return Outcome("lost", reason=one_line(error).removeprefix(f"{printable(source.name)}: "))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return Outcome("lost", reason="file name too long for this file system")
        named = error.filename is not None and error.strerror
        reason = f"{error.filename}: {error.strerror}" if named else one_line(error)
        return Outcome("stop" if error.errno in _HOPELESS else "again", reason=reason)
    except Exception as error:
        if out_of_memory(error):
            return Outcome("again", reason=f"not enough memory: {one_line(error)}")
        traceback.print_exc()
        return Outcome("lost", reason=f"a bug, {type(error).__name__}: {one_line(error)}")


def out_of_memory(error: Exception) -> bool:
    """Whether Python, torch or CUDA says so; torch's CPU allocator raises a plain RuntimeError."""
    import torch

    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def tokenize_shard(
    batch_tokenizer: BatchTokenizer,
    bulk: Bulk,
    source: Stored,
    done: Callable[[int], None] = lambda count: None,
) -> ShardStats:
    """The shard of tokens of a raw shard, written and committed; `done` hears of images as they are done.

    ValueError for a damaged shard, or a place taken by something else; OSError for trouble with files, and
    Incomplete when samples are missing that another try may well read.
    """
    folder = bulk.folder()
    name = shard_name_of(source.name)
    with folder.claim(name), contextlib.ExitStack() as stack:
        local, target = Path(source.place), Path(join(bulk.out, name))
        if is_remote(source.place):
            local = _scratch(stack) / source.name
            download(source.place, local)
        if remote := is_remote(bulk.out):
            target = _scratch(stack) / name
        account = _Account(bulk.strict)
        source_sha256 = sha256_file(local)

        def approve(written: Path, sha256: str) -> None:
            folder.may_write(name, written, sha256)
            folder.withdraw(name)

        with TokenShard(target, approve) as shard:
            pictures = _pictures(local, account)
            with contextlib.closing(batch_tokenizer.tokenize(pictures)) as tokenized:
                for decoded, image in tokenized:
                    assert isinstance(decoded.file, SamplePicture)
                    if sample := shard.add(decoded.file.part, decoded, image):
                        account.take(sample)
                        if sample.reason is None:
                            done(len(sample.images))
        if remote:
            upload(target, join(bulk.out, name))
        account.check_complete()
        stats = ShardStats(
            source=source.name,
            source_bytes=local.stat().st_size,
            source_sha256=source_sha256,
            bytes=target.stat().st_size,
            sha256=shard.sha256,
            samples=shard.samples,
            pictures=shard.totals.pictures,
            pixels=shard.totals.pixels,
            tokens=shard.totals.tokens,
            bits=round(shard.totals.bits),
            left_out=dict(sorted(account.left_out.items())),
            ignored=dict(sorted(account.ignored.items())),
            hidden=account.hidden,
        )
        folder.commit(name, stats)
        return stats


def _scratch(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pictish-")))


@dataclass(frozen=True)
class SamplePicture(ImageBytes):
    """One of the images of a raw shard's sample; `name` is the sample's key."""

    part: Part


def _pictures(path: Path, account: "_Account") -> Iterator[SamplePicture]:
    """Images of a raw shard; what is not tokenized is reported to `account`. ValueError for a damaged shard.

    A sample has one image, or several with names, as edits and documents have. Its texts are carried over.
    """
    with open_shard(path) as shard:
        if shard.damage is not None:
            raise ValueError(shard.damage)
        account.ignored, account.hidden = dict(shard.ignored), shard.hidden
        for key in shard.samples:
            try:
                sample = shard.read(key)
            except ValueError as error:
                account.leave_out(key, one_line(error))
                continue
            images = image_members(sample)
            if not images:
                account.leave_out(key, f"holds no image; supported formats: {supported()}")
                continue
            found = {f"{name}.tokens".removeprefix("."): same for name, same in images.items()}
            for used, *more in found.values():
                for other in more:
                    account.ignored[f"{key}.{other}"] = f"its sample has .{used} too, which is tokenized"
            others = {suffix: blob for suffix, blob in sample.items() if not is_image(suffix)}
            last = max(found)
            for member in sorted(found):
                part = Part(key, member, member == last, others)
                yield SamplePicture(sample[found[member][0]], key, part)


class _Account:
    """What a raw shard has that does not become tokens."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.left_out: dict[str, str] = {}
        self.ignored: dict[str, str] = {}  # members of no sample, and why
        self.hidden = 0
        self._missing: list[str] = []  # samples that another try may read, and why this one could not

    def take(self, sample: Sample) -> None:
        """Note a sample that is not in the shard of tokens; ValueError or Incomplete under --strict."""
        if sample.reason is None:
            return
        if not sample.transient:
            self.leave_out(sample.key, sample.reason)
            return
        self._missing.append(f"{printable(sample.key)}: {sample.reason}")
        if self._strict:
            self.check_complete()

    def leave_out(self, key: str, reason: str) -> None:
        """Note a sample that has no tokens; ValueError under --strict."""
        if self._strict:
            raise ValueError(f"{printable(key)}: {reason}")
        self.left_out[key] = reason

    def check_complete(self) -> None:
        """Incomplete when samples are missing that are not known to be broken."""
        if self._missing:
            more = f", and {len(self._missing) - 1:,} more samples" if len(self._missing) > 1 else ""
            raise Incomplete(f"{self._missing[0]}{more}; the shard is not marked as finished")
