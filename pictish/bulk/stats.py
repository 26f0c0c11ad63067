"""Folders that many processes fill with shards at once: no list, but `NAME_stats.json` for each NAME.tar.

The stats are written after the shard: they mark that it is whole. `_header.json` says what all shards have in
common, and keeps two tokenizers or two settings out of one folder. Layout: docs/formats.md.
"""

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pictish.data.shards import read_shard
from pictish.data.token_folder import MANIFEST, PARTIAL, Header
from pictish.data.tokens import TokenizedImage
from pictish.io.files import lock, one_line, printable, temp_path
from pictish.io.finding import shard_name_of
from pictish.io.storage import (
    Stored,
    delete,
    is_remote,
    join,
    list_folder,
    read_bytes,
    sha256_of,
    size_of,
    write_bytes,
)

HEADER = "_header.json"
STATS = "_stats.json"
_PATIENCE = 100  # tenths of a second for the header


@dataclass(frozen=True)
class ShardStats:
    """What one shard holds and what it was made of; no time, host or number of processes."""

    source: str  # name of the raw shard
    source_bytes: int
    source_sha256: str
    bytes: int
    sha256: str
    samples: int
    pictures: int
    pixels: int  # of the originals, in all
    tokens: int
    bits: int  # of ids and cells, in all, rounded
    left_out: Mapping[str, str]  # keys of samples without tokens, and why
    ignored: Mapping[str, str] = field(default_factory=dict)  # members of no sample, and why
    hidden: int = 0  # members such as `._a.jpg`

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "ShardStats":
        """Undo `dataclasses.asdict`; ValueError for anything else."""
        texts = {name: facts.get(name) for name in ("source", "source_sha256", "sha256")}
        counts = {
            name: facts.get(name)
            for name in ("source_bytes", "bytes", "samples", "pictures", "pixels", "tokens", "bits")
        }
        wrong = [name for name, value in texts.items() if not isinstance(value, str)]
        wrong += [name for name, value in counts.items() if type(value) is not int or value < 0]
        counts["hidden"] = facts.get("hidden", 0)  # newer, as is `ignored`
        told = {"left_out": facts.get("left_out"), "ignored": facts.get("ignored", {})}
        wrong += [name for name, value in told.items() if not isinstance(value, dict)]
        wrong += ["hidden"] if type(counts["hidden"]) is not int else []
        if wrong:
            raise ValueError(f"damaged, {min(wrong)} is missing or of another type")
        texts_of = {
            name: {str(key): str(reason) for key, reason in value.items()}
            for name, value in told.items()
            if isinstance(value, dict)
        }
        given: dict[str, Any] = {**texts, **counts, **texts_of}
        return cls(**given)


def stats_name(shard: str) -> str:
    """Name of the stats of a shard, `raw-0_stats.json` for `raw-0.tar`."""
    return shard.removesuffix(".tar") + STATS


class BulkFolder:
    """A folder, local or remote, being filled with shards by any number of processes.

    Each shard has one writer at a time; where the file system has locks, a second one is refused.
    """

    def __init__(self, place: str, header: Header, overwrite: bool) -> None:
        self.place, self.header, self.overwrite = place, header, overwrite

    def prepare(self, planned: Collection[str]) -> None:
        """Write the header, or compare it; ValueError when what is there does not go with this run.

        `planned`: names of the shards that all processes together would write.
        """
        with self._claim_soon(HEADER):  # processes that start at once would write it at once
            self._settle_header(planned)

    def _settle_header(self, planned: Collection[str]) -> None:
        names = list_folder(self.place)
        if strange := [name for name in (MANIFEST, PARTIAL) if name in names]:
            raise ValueError(
                f"{printable(self.place)}: holds {strange[0]} of tokens that one process wrote; "
                "choose another folder"
            )
        if HEADER in names:
            difference = self._read_header().difference(self.header)
            if difference is None:
                return
            self._may_replace_all(difference, names, planned)
        write_bytes(join(self.place, HEADER), _canonical(self.header.to_json()))

    def finished(self, source: Stored, verify: bool = False) -> ShardStats | None:
        """Stats of the shard made of `source`; None when it is yet to be made.

        Sizes are compared, with `verify` every byte. ValueError when the source is not what it was.
        """
        if self.overwrite:
            return None
        name = shard_name_of(source.name)
        found = self._read_stats(name)
        if found is None or found[0].difference(self.header) is not None:
            return None
        stats, shard = found[1], join(self.place, name)
        if stats.source_bytes != source.size or (verify and sha256_of(source.place) != stats.source_sha256):
            raise ValueError("its images have changed since; --overwrite makes it anew")
        if size_of(shard) != stats.bytes or (verify and sha256_of(shard) != stats.sha256):
            return None
        return stats

    def may_write(self, name: str, written: Path, sha256: str) -> None:
        """ValueError when `name` is taken by something that no run with this tokenizer left there."""
        place = join(self.place, name)
        size = None if self.overwrite else size_of(place)
        if size is None or self._read_stats(name) is not None:
            return
        if size == written.stat().st_size and sha256_of(place) == sha256:
            return
        if is_remote(place) or not _is_of_tokenizer(Path(place), self.header.tokenizer):
            raise ValueError(f"{printable(name)} exists already and differs; --overwrite replaces it")

    def withdraw(self, name: str) -> None:
        """Take the mark from a shard that is about to be replaced."""
        delete(join(self.place, stats_name(name)))

    def commit(self, name: str, stats: ShardStats) -> None:
        """Mark a shard as whole."""
        facts = {**self.header.to_json(), **asdict(stats)}
        write_bytes(join(self.place, stats_name(name)), _canonical(facts))

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Hold a shard for this process; BlockingIOError when another one is writing it.

        The lock is the operating system's, on a file that a killed process may leave behind unlocked. An
        object store has none.
        """
        if is_remote(self.place):
            yield
            return
        path = temp_path(Path(self.place, f"{name}.lock"))
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                locked = lock(descriptor, path.parent)
                if not locked or (path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino):
                    break
            except BlockingIOError:
                os.close(descriptor)
                raise BlockingIOError(f"{printable(name)}: another process is writing it") from None
            os.close(descriptor)  # its holder has just removed it
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    @contextlib.contextmanager
    def _claim_soon(self, name: str) -> Iterator[None]:
        """`claim`, after waiting for its holder a while."""
        with contextlib.ExitStack() as stack:
            for attempt in range(_PATIENCE):
                try:
                    stack.enter_context(self.claim(name))
                    break
                except BlockingIOError:
                    if attempt == _PATIENCE - 1:
                        raise
                    time.sleep(0.1)
            yield

    def _read_header(self) -> Header:
        try:
            return Header.from_json(_parsed(read_bytes(join(self.place, HEADER))))
        except ValueError as error:
            where = printable(join(self.place, HEADER))
            raise ValueError(f"{where}: {one_line(error)}; choose another folder") from error

    def _may_replace_all(self, difference: str, names: Mapping[str, int], planned: Collection[str]) -> None:
        made = {name.removesuffix(STATS) + ".tar" for name in names if name.endswith(STATS)}
        if not made:
            return
        place = printable(self.place)
        if not self.overwrite:
            raise ValueError(f"{place}: {difference}; choose another folder or replace it with --overwrite")
        if kept := made - set(planned):
            raise ValueError(
                f"{place}: {difference}, and {len(kept)} of its shards ({printable(min(kept))} ...) "
                "would not be replaced; choose another folder"
            )

    def _read_stats(self, name: str) -> tuple[Header, ShardStats] | None:
        place = join(self.place, stats_name(name))
        try:
            facts = _parsed(read_bytes(place))
            return Header.from_json(facts), ShardStats.from_json(facts)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{printable(place)}: {one_line(error)}; --overwrite replaces it") from error


def _is_of_tokenizer(path: Path, tokenizer: str) -> bool:
    """Whether a shard begins with tokens of that tokenizer, as one does that was left without stats."""
    try:
        sample = next(read_shard(path))
        blob = next(sample[suffix] for suffix in sorted(sample) if suffix.endswith("tokens"))
        return TokenizedImage.from_bytes(blob).tokenizer == tokenizer
    except (ValueError, OSError, StopIteration):
        return False


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, indent=1).encode("ascii") + b"\n"


def _parsed(blob: bytes) -> Any:
    try:
        return json.loads(blob)
    except (ValueError, RecursionError):
        raise ValueError("not written by pictish, or damaged") from None
