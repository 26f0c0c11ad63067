"""The training stream: a weighted mixture of sources in an order that seed and position alone decide.

Each epoch of a source is a permutation of all its samples, so the whole source is the shuffle buffer and a
sample comes exactly once an epoch. That takes an index of where samples lie and reading by seek: shards must
be local files. A lane takes every so-many-th sample of one global order; the processes of a run share out the
lanes, so that what a step learns from does not depend on how many they are.
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pictish.data.samples import (
    DamagedSample,
    Sample,
    SampleIndex,
    index_folder,
    index_shard,
    sample_name,
    stamp_of,
)
from pictish.data.shards import find_shards
from pictish.io.files import one_line, printable, write_atomic
from pictish.io.finding import Found, counted, find

_BLOCK = 1024  # samples whose sources are drawn at once
_HOPELESS = 1000  # samples of one source that cannot be used, none between: something is wrong with all
_CACHE_FORMAT = "pictish-index-2"
_ARRAYS = ("names", "name_ends", "member_ends", "kinds", "offsets", "sizes")


@dataclass(frozen=True)
class Source:
    """Samples that are drawn together: shards, folders of shards, or image folders."""

    name: str
    paths: tuple[Path, ...]
    weight: float = 1.0  # share of the stream's samples, relative to the other sources'
    caption_key: str | None = None  # field of the JSON that holds captions, see `sample_captions`

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"source {printable(self.name)!r}: a name is letters, digits, - and _")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"source {self.name}: its weight is {self.weight}; it must be above 0")


@dataclass
class Report:
    """How many samples were used, and the names of those that could not be, by reason."""

    used: int = 0
    hidden: int = 0  # files of the sources that are left out by their names
    skipped: dict[str, list[str]] = field(default_factory=dict)
    _known: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    def skip(self, name: str, reason: str) -> None:
        """Note what cannot be used; a sample that comes again the next epoch is noted once."""
        if (name, reason) not in self._known:
            self._known.add((name, reason))
            self.skipped.setdefault(reason, []).append(name)

    def add(self, other: "Report") -> None:
        """Take over what another rank reports."""
        self.used += other.used
        self.note(other.skipped)

    def note(self, skipped: Mapping[str, Sequence[str]]) -> None:
        """Take over names by reason, each once, while another thread may still add to them."""
        for reason, names in list(skipped.items()):
            for name in list(names):
                self.skip(name, reason)

    def lines(self, most: int = 10) -> list[str]:
        """A line for each reason, naming at most `most` of the samples; none when everything was used."""
        found = []
        for reason, names in sorted(self.skipped.items()):
            more = f" and {len(names) - most:,} more" if len(names) > most else ""
            found.append(f"{len(names):,} skipped, {reason}: {', '.join(names[:most])}{more}")
        if self.hidden:
            found.append(f"{counted(self.hidden, 'hidden file')} ignored")
        return found


@dataclass(frozen=True)
class Slot:
    """A place in the global order, and which sample comes there."""

    number: int  # in the global order, from 0
    source: str
    epoch: int  # of the source
    row: int  # of the sample in its source


@dataclass(frozen=True)
class Drawn:
    """A sample, its place, and the position of the stream behind it."""

    slot: Slot
    sample: Sample
    position: dict[str, Any]


class Mixture:
    """An endless iterator over the samples of one lane of `lanes`.

    `position` (plain JSON, from `Drawn.position` or `Mixture.position`) makes it go on with the very next
    sample. That costs the reading of an index, one permutation a source and at most 1,023 draws; no sample is
    read again.

    Samples that cannot be used are left out, which moves no other, and named in `report`; `strict` makes the
    first of them a ValueError. `cache`: folder for the indices, so that shards are scanned once; with
    `shared` somebody else writes there, and it is only read. `tokenizer`: fingerprint of token files.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        *,
        lane: int = 0,
        lanes: int = 1,
        position: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        strict: bool = False,
        cache: Path | None = None,
        shared: bool = False,
    ) -> None:
        if not sources or len({source.name for source in sources}) < len(sources):
            names = ", ".join(source.name for source in sources) or "none"
            raise ValueError(f"a mixture has one source or more, each of its own name; came: {names}")
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be 0 to 2**63 - 1, not {seed}")
        assert 0 <= lane < lanes
        self.seed, self.lane, self.lanes, self.tokenizer, self.strict = seed, lane, lanes, tokenizer, strict
        self.report = Report()
        sources = sorted(sources, key=lambda source: source.name)  # their order in a config means nothing
        own_cache = None if shared else cache  # two may not write one file
        self._pools = {s.name: _Pool(s, seed, self._indices(s, cache, own_cache)) for s in sources}
        self._drawn = dict.fromkeys(self._pools, 0)
        self._next = 0
        self._names = tuple(self._pools)
        weights = np.array([source.weight for source in sources], np.float64)
        self._bounds = np.cumsum(weights / weights.sum())[:-1]
        self._block: tuple[int, list[int]] = (-1, [])
        self._unusable: dict[str, set[int]] = {name: set() for name in self._pools}  # rows since the last use
        if position is not None:
            self._go_to(position)

    def beside(self, lane: int, position: Mapping[str, Any] | None = None) -> "Mixture":
        """Another lane of the same samples, which shares index and report with this one."""
        assert 0 <= lane < self.lanes
        other = copy.copy(self)
        other.lane, other._next, other._drawn = lane, 0, dict.fromkeys(self._pools, 0)
        other._unusable = {name: set() for name in self._pools}
        if position is not None:
            other._go_to(position)
        return other

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of each source, which is the length of its epoch."""
        return {name: pool.size for name, pool in self._pools.items()}

    @property
    def digests(self) -> dict[str, str]:
        """Of each source: 12 hex digits over the names of its samples, wherever they lie."""
        return {name: str(pool.facts["digest"]) for name, pool in self._pools.items()}

    @property
    def position(self) -> dict[str, Any]:
        """The state behind the sample drawn last, as plain JSON."""
        sources = {name: {**pool.facts, "drawn": self._drawn[name]} for name, pool in self._pools.items()}
        return {"sample": self._next, "seed": self.seed, "sources": sources}

    def __iter__(self) -> Iterator[Drawn]:
        return self

    def __next__(self) -> Drawn:
        while True:
            slot = self.draw()
            try:
                sample = self.read(slot)
            except DamagedSample as error:
                self.skip(slot, error)
                continue
            self.use(slot)
            return Drawn(slot, sample, self.position)

    def draw(self) -> Slot:
        """This lane's next slot, unread: for a caller who reads ahead in threads; see `read`."""
        while True:
            number, source = self._next, self._source_at(self._next)
            turn = self._drawn[source]
            self._next, self._drawn[source] = number + 1, turn + 1
            if number % self.lanes == self.lane:
                pool = self._pools[source]
                epoch, place = divmod(turn, pool.size)
                return Slot(number, source, epoch, int(pool.order(epoch)[place]))

    def read(self, slot: Slot) -> Sample:
        """The sample of a slot, from any thread and at any time; DamagedSample when it cannot be used.

        Whoever calls this hands the outcome to `use` or `skip`, in the order of the slots.
        """
        pool = self._pools[slot.source]
        index, row = pool.place(slot.row)
        return index.read(row, self.tokenizer, pool.caption_key)

    def use(self, slot: Slot) -> None:
        """Count a sample as used."""
        self.report.used += 1
        self._unusable[slot.source].clear()

    def skip(self, slot: Slot, error: DamagedSample) -> None:
        """Note a sample that cannot be used; the error itself when strict.

        ValueError when all samples of a source, or 1,000 of them in a row, cannot be used.
        """
        if self.strict:
            raise error
        self.report.skip(error.name, error.reason)
        unusable = self._unusable[slot.source]
        unusable.add(slot.row)
        if len(unusable) >= min(self._pools[slot.source].size, _HOPELESS):
            raise ValueError(
                f"source {slot.source}: {len(unusable):,} samples, no other could be used; the last: {error}"
            )

    def name_of(self, slot: Slot) -> str:
        """What the sample of a slot is called in reports, for a DamagedSample of the caller's own."""
        index, row = self._pools[slot.source].place(slot.row)
        return sample_name(index.source, index.key(row))

    def _source_at(self, number: int) -> str:
        """Which source gives the sample of that number: drawn in blocks from a counter-based generator."""
        block, place = divmod(number, _BLOCK)
        if self._block[0] != block:
            # Raw bits are the same in every version of numpy, and each block has a counter of its own.
            bits = np.random.Philox(key=self.seed, counter=[0, block, 0, 0]).random_raw(_BLOCK)
            uniform = (bits >> np.uint64(11)) * 2.0**-53
            self._block = block, np.searchsorted(self._bounds, uniform, side="right").tolist()
        return self._names[self._block[1][place]]

    def _indices(self, source: Source, cache: Path | None, own_cache: Path | None) -> list[SampleIndex]:
        """The shards and folders of a source; damage is reported, or a ValueError when strict."""
        indices, found = _load(source, cache, own_cache)
        self.report.hidden += len(found.hidden)
        for name, reason in found.problems:
            if self.strict:
                raise ValueError(f"{printable(name)}: {reason}")
            self.report.skip(printable(name), reason)
        for index in indices:
            self.report.hidden += index.hidden
            for name, reason in index.ignored.items():
                self.report.skip(sample_name(index.source, name), reason)
            if index.damage is not None:
                if self.strict:
                    raise ValueError(f"{index.source}: {index.damage}")
                self.report.skip(f"{index.source} after sample {len(index):,}", index.damage)
        if not any(map(len, indices)):
            damage = "".join(f"; {index.source}: {index.damage}" for index in indices[:1] if index.damage)
            places = ", ".join(map(printable, source.paths)) or "nothing was given"
            raise ValueError(f"source {source.name}: no samples in {places}{damage}")
        return indices

    def _go_to(self, position: Mapping[str, Any]) -> None:
        try:
            number, seed, sources = position["sample"], position["seed"], dict(position["sources"])
            drawn = {name: facts["drawn"] for name, facts in sources.items()}
            counts = [number, *drawn.values()]
            if (
                not all(isinstance(count, int) and count >= 0 for count in counts)
                or sum(counts) != 2 * number
            ):
                raise TypeError("counts")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a position of a mixture: {one_line(error)}") from None
        if seed != self.seed:
            raise ValueError(f"the position was taken with seed {seed}; this run has {self.seed}")
        if sorted(sources) != sorted(self._names):
            came, mine = ", ".join(sources), ", ".join(self._names)
            raise ValueError(f"the position was taken with sources {came}; this run has {mine}")
        for name, pool in self._pools.items():
            for fact, now in pool.facts.items():
                if (was := sources[name].get(fact)) != now:
                    raise ValueError(
                        f"source {name} has changed since: its {fact} was {was}, it is {now} now"
                    )
        self._next, self._drawn = number, drawn


class _Pool:
    """All samples of one source, and their order in an epoch."""

    def __init__(self, source: Source, seed: int, indices: Sequence[SampleIndex]) -> None:
        self._seed, self._name, self.caption_key = seed, source.name, source.caption_key
        self._indices = indices
        self._ends = np.cumsum([len(index) for index in indices])
        self.size = int(self._ends[-1])
        # What orders a sample is its name, so that one more or less (a shard cut short) moves no other.
        hashes = [
            _hash(*origin, index.key(row))
            for index, origin in zip(indices, _origins(indices), strict=True)
            for row in range(len(index))
        ]
        self._hashes = np.array(hashes, np.uint64)
        digest = hashlib.sha256(self._hashes.astype("<u8").tobytes()).hexdigest()[:12]
        self.facts = {"weight": float(source.weight), "size": self.size, "digest": digest}
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Rows of all samples in their order of that epoch, (size,)."""
        if epoch not in self._orders:
            ranks = _mix(self._hashes ^ np.uint64(_hash(str(self._seed), self._name, str(epoch))))
            # two: at an epoch's end some lanes are behind it, and some before
            self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
            self._orders[epoch] = np.argsort(ranks, kind="stable")
        return self._orders[epoch]

    def place(self, row: int) -> tuple[SampleIndex, int]:
        """Shard or folder of a sample, and its row there."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._indices[number], row - (int(self._ends[number - 1]) if number else 0)


def _origins(indices: Sequence[SampleIndex]) -> Iterator[tuple[str, ...]]:
    """What tells samples of one key apart: their shard, and its number among shards of one name.

    Not the path, which changes when data is moved. Equal hashes would come next to each other in every epoch.
    """
    counts: Counter[str] = Counter()
    for index in indices:
        name = "" if index.stamp is None else index.path.name
        yield (name, str(counts[name])) if counts[name] else (name,)
        counts[name] += 1


def _hash(*parts: str) -> int:
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64 bits so that every bit depends on all (the finalizer of splitmix64); a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _load(source: Source, cache: Path | None, own_cache: Path | None) -> tuple[list[SampleIndex], Found]:
    """Indices of a source's shards and folders: unchanged shards from `cache`, the others scanned.

    And what the search for shards found beside them.
    """
    try:
        shards, folders, found = _places(source)
        known, fresh = _from_cache(cache / f"{source.name}.safetensors") if cache else {}, 0
        indices = []
        for shard in shards:
            index = known.pop((os.path.realpath(shard), stamp_of(shard.stat())), None)
            fresh += index is None
            indices.append(dataclasses.replace(index, path=shard) if index else index_shard(shard))
        if own_cache and (fresh or known):
            write_atomic(own_cache / f"{source.name}.safetensors", _to_cache(indices))
        return indices + [index_folder(folder) for folder in folders], found
    except OSError as error:
        raise ValueError(f"source {source.name}: {one_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"source {source.name}: {error}") from error


def _places(source: Source) -> tuple[list[Path], list[Path], Found]:
    """Shards and image folders of a source, and what else lies beside the shards."""
    shards: dict[str, Path] = {}
    folders: dict[str, Path] = {}
    beside = Found()
    for entry in source.paths:
        if not entry.is_dir():
            shards |= {os.path.realpath(shard): shard for shard in find_shards([entry])}
            continue
        found = find([entry])
        if not found.shards:
            folders[os.path.realpath(entry)] = entry
            continue
        if found.images:
            raise ValueError(f"{printable(entry)} holds shards and images; name the ones or the others")
        shards |= {os.path.realpath(shard.path): shard.path for shard in found.shards}
        beside.hidden += found.hidden
        beside.problems += found.problems
    return sorted(shards.values(), key=lambda path: (path.name, str(path))), list(folders.values()), beside


def _to_cache(indices: Sequence[SampleIndex]) -> bytes:
    arrays = {f"{n}.{name}": getattr(index, name) for n, index in enumerate(indices) for name in _ARRAYS}
    facts = [
        {
            "path": os.path.realpath(index.path),
            "stamp": index.stamp,
            "damage": index.damage,
            "ignored": dict(index.ignored),
            "hidden": index.hidden,
            "suffixes": index.suffixes,
        }
        for index in indices
    ]
    return safetensors.numpy.save(arrays, {_CACHE_FORMAT: json.dumps(facts)})


def _from_cache(path: Path) -> dict[tuple[str, tuple[int, int]], SampleIndex]:
    """Indices by path and stamp; nothing when the file is missing, damaged or of another version."""
    try:
        blob = path.read_bytes()
        arrays = safetensors.numpy.load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        found = {}
        for number, facts in enumerate(json.loads(header["__metadata__"][_CACHE_FORMAT])):
            stamp, parts = (facts["stamp"][0], facts["stamp"][1]), [arrays[f"{number}.{n}"] for n in _ARRAYS]
            said = facts["damage"], dict(facts["ignored"]), int(facts["hidden"]), tuple(facts["suffixes"])
            index = SampleIndex(Path(facts["path"]), stamp, *said, *parts)
            found[facts["path"], stamp] = index
        return found
    except Exception:  # whatever a damaged cache makes the readers raise: the shards are there to be scanned
        return {}
