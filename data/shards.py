"""WebDataset shards: tar files whose members KEY.suffix make up one sample a key.

Only plain bytes come out: no member is ever decoded by its suffix, and pickles are refused.
"""

import contextlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pictish.data.members import is_image, is_member, owners, split_member
from pictish.data.tar import LARGEST_MEMBER, contents_of, open_tar
from pictish.io.files import check_relative, printable, sync, temp_path
from pictish.io.finding import SHARDS, Found, counted, find, kind_of, unsupported
from pictish.io.signatures import HEAD, image_suffix

Sample = dict[str, Any]  # "__key__": str, every other key a suffix: bytes
_Place = tuple[int, int]  # offset and size in bytes


class ShardFile:
    """One tar file, written beside its place and renamed when the `with` block ends well.

    `approve` is called with the finished file before that, and may refuse it with ValueError.
    """

    def __init__(self, path: Path, approve: Callable[[Path], None] | None = None) -> None:
        self.path, self._approve = path, approve
        self.samples = 0
        self._keys: set[str] = set()

    def __enter__(self) -> "ShardFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        from webdataset import TarWriter  # which loads torch

        self._file = temp_path(self.path).open("wb")
        # Equal samples give equal bytes: no times, no names of users, members sorted by suffix.
        plain = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "format": "PAX_FORMAT"}
        self._tar = TarWriter(self._file, encoder=False, **plain)
        return self

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample; ValueError for a key that no reader would accept, or that was written before."""
        check_key(key)
        if key in self._keys:
            raise ValueError(f"{self.path.name}: two samples are called {printable(key)!r}")
        if not members or not all(map(is_member, members)):
            raise ValueError(
                f"{self.path.name}: {printable(key)!r} has members {sorted(members)}; images, tokens, "
                "captions and JSON would fit"
            )
        self._keys.add(key)
        self._tar.write({"__key__": key, **members})
        _forget_headers(self._tar.tarstream)
        self.samples += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        temp = temp_path(self.path)
        try:
            if kind is None:
                self._tar.close()
                self._file.flush()
                sync(self._file.fileno())
                if self._approve is not None:
                    self._approve(temp)
                temp.replace(self.path)
        finally:
            with contextlib.suppress(OSError):  # as when the disk is full, which was said above
                self._tar.close()
            self._file.close()
            temp.unlink(missing_ok=True)


class ShardWriter:
    """Samples into a row of shards `PREFIX-000000.tar`, a new one after every `samples_per_shard`."""

    def __init__(self, folder: Path, samples_per_shard: int = 1000, prefix: str = "shard") -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be 1 or more, not {samples_per_shard}")
        self.folder, self.samples_per_shard, self.prefix = folder, samples_per_shard, prefix
        self.shards: list[Path] = []
        self._open: ShardFile | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample, see `ShardFile.write`."""
        if self._open is None:
            self._open = ShardFile(self.folder / shard_name(len(self.shards), self.prefix)).__enter__()
        self._open.write(key, members)
        if self._open.samples == self.samples_per_shard:
            self._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None and kind is not None:
            self._open.__exit__(kind, error, trace)
        elif self._open is not None:
            self._close()

    def _close(self) -> None:
        assert self._open is not None
        self._open.__exit__(None, None, None)
        self.shards.append(self._open.path)
        self._open = None


def shard_name(number: int, prefix: str = "shard") -> str:
    """File name of the shard of that number, from 0."""
    return f"{prefix}-{number:06d}.tar"


@dataclass(frozen=True)
class Shard:
    """How a shard is understood: which members make up which samples."""

    path: Path
    samples: Mapping[str, Mapping[str, _Place]]  # by key and suffix, in the order of their first members
    hidden: int  # members such as `._a.jpg`
    ignored: Mapping[str, str]  # members of no sample, and why; `*.npy` stands for all of a kind
    damage: str | None  # why the samples behind these are lost
    file: IO[bytes]  # the uncompressed tar, while the shard is open

    def read(self, key: str, *, images: bool = True) -> dict[str, bytes]:
        """The bytes of a sample's members by suffix, those of `images` empty when they are not wanted.

        ValueError when they have more than 1 GiB together.
        """
        members = self.samples[key]
        total = sum(size for _, size in members.values())
        if total > LARGEST_MEMBER:
            raise ValueError(f"{total:,} bytes; at most {LARGEST_MEMBER:,} are read")
        blobs = {}
        for suffix, (offset, size) in members.items():
            wanted = images or suffix.endswith("tokens") or not is_image(suffix)
            self.file.seek(offset)
            blobs[suffix] = self.file.read(size if wanted else 0)
        return blobs


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[Shard]:
    """A shard whose headers are read. ValueError for what is no tar at all, see `open_tar`."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_tar(path))
        except ValueError as error:
            raise ValueError(f"{printable(path.name)}: {error}") from error
        yield _understood(path, file)


def read_shard(path: Path) -> Iterator[Sample]:
    """Samples of one shard in their order: `"__key__"` and the bytes of each member by its suffix.

    ValueError naming the shard when it is damaged or refused, see `open_shard`; what came before was yielded.
    """
    with open_shard(path) as shard:
        for key in shard.samples:
            try:
                members = shard.read(key)
            except ValueError as error:
                raise ValueError(f"{printable(path.name)}: {printable(key)}: {error}") from error
            yield {"__key__": key, **members}
        _check_whole(shard)


def scan_shard(path: Path) -> Iterator[tuple[str, Mapping[str, _Place]]]:
    """The samples of `read_shard` unread: each key and, by suffix, offset and size of the bytes in the file.

    ValueError where `read_shard` gives one, after the same samples, and for a compressed shard.
    """
    with open_shard(path) as shard:
        check_seekable(shard)
        yield from shard.samples.items()
        _check_whole(shard)


def check_seekable(shard: Shard) -> None:
    """ValueError when a shard is compressed, so that no place in it can be read later."""
    if not shard.path.name.lower().endswith(".tar"):
        name = printable(shard.path.name)
        raise ValueError(f"{name}: compressed shards cannot be read in random order; unpack it")


def _check_whole(shard: Shard) -> None:
    if shard.damage is not None:
        raise ValueError(f"{printable(shard.path.name)}: {shard.damage}")


def _understood(path: Path, file: IO[bytes]) -> Shard:
    """The samples of an open tar."""
    contents = contents_of(file)
    ignored, others = dict(contents.ignored), Counter[str]()
    folders: dict[str, dict[str, list[str]]] = {}
    known: dict[str, tuple[str, str, str]] = {}
    for name, (offset, size) in contents.places.items():
        folder, stem, suffix = split_member(name)
        if kind_of(name) == "unsupported image":
            ignored[name] = unsupported(name)
            continue
        if not is_member(suffix):
            file.seek(offset)
            found = image_suffix(file.read(min(size, HEAD)))
            if found is None:
                others[suffix] += 1
                continue
            suffix = found
        known[name] = folder, stem, suffix
        folders.setdefault(folder, {}).setdefault(stem, []).append(suffix)
    owner = {folder: owners(stems) for folder, stems in folders.items()}
    samples: dict[str, dict[str, _Place]] = {}
    incomplete = None  # the sample that was read when the damage came
    for name, (folder, stem, suffix) in known.items():
        whose = owner[folder][stem]
        part = stem[len(whose) + 1 :] if stem.startswith(f"{whose}.") else "" if stem == whose else stem
        member = (f"{part}.{suffix}" if part else suffix).lower()
        key = folder + (_escaped(whose) if "." in whose else whose)
        if member in samples.setdefault(key, {}):
            ignored[name] = f"a second .{member} of {printable(key)!r}; the first is read"
        else:
            samples[key][member] = contents.places[name]
        incomplete = key if name == contents.last else incomplete
    for suffix, number in sorted(others.items()):
        ignored[f"*.{suffix}" if suffix else "* without suffix"] = (
            f"{counted(number, 'member')} of an unknown kind"
        )
    if contents.damage is not None and incomplete is not None:
        del samples[incomplete]
    return Shard(path, samples, contents.hidden, ignored, contents.damage, file)


def find_shards(inputs: Sequence[Path], beside: Found | None = None) -> list[Path]:
    """Shards among `inputs` and, to the bottom, in their folders; sorted by file name, see `find`.

    ValueError when an input is missing or no shard, and when none is found. What is hidden or cannot be
    searched goes to `beside`; without it the latter is a ValueError too.
    """
    found = find(inputs)
    given = {entry for entry in inputs if not entry.is_dir()}
    if strange := [file for file in found.images if file.path in given]:
        name = printable(strange[0].path)
        raise ValueError(f"{name}: not a shard by its name; a shard ends in {' '.join(SHARDS)}")
    problems = [one for one in found.problems if kind_of(one[0]) != "unsupported image"]
    if problems and (beside is None or not found.shards):
        name, reason = problems[0]
        raise ValueError(f"{printable(name)}: {reason}")
    if beside is not None:
        beside.problems += problems
        beside.hidden += found.hidden
    if not found.shards:
        raise ValueError(
            f"no shards found ({', '.join(map(printable, inputs)) or 'nothing was given'}); "
            f"looked for {' '.join(SHARDS)}"
        )
    unique = {str(file.path.resolve()): file.path for file in found.shards}
    return sorted(unique.values(), key=lambda shard: (shard.name, str(shard)))


def key_of(name: str) -> str:
    """Key of an image's name: no suffix; a key ends at a dot, so others in its last part become %2E."""
    folder, stem, _ = split_member(name)
    return folder + _escaped(stem)


def name_of(key: str) -> str:
    """Undo `key_of`, all but the suffix."""
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.replace("%2E", ".").replace("%25", "%")


def check_key(key: str) -> None:
    """ValueError unless `key` is a relative name without `..`, and without a dot in its last part."""
    check_relative(key)
    if "." in key.rpartition("/")[2]:
        raise ValueError(f"key {printable(key)!r} has a dot in its last part, where a key ends")


def _escaped(stem: str) -> str:
    return stem.replace("%", "%25").replace(".", "%2E")


def _forget_headers(tar: tarfile.TarFile) -> None:
    """Empty what tarfile keeps of members behind it, so that memory does not grow with the shard."""
    tar.members = []  # type: ignore[attr-defined]
    tar.pax_headers = {}
