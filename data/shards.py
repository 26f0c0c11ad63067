"""WebDataset shards: tar files whose members KEY.suffix make up one sample a key.

Only plain bytes come out: no member is ever decoded by its suffix, and pickles are refused.
"""

import contextlib
import errno
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from pictish.io.files import check_relative, one_line, printable, sync, temp_path

SUFFIXES = frozenset({"tokens", "txt", "json", "png", "jpg", "jpeg", "webp"})
PICTURES = ("png", "jpg", "jpeg", "webp")  # where a sample has several, the first of these counts
_NAMED_PICTURE = re.compile(rf"[a-z0-9_-]+\.(tokens|{'|'.join(PICTURES)})")
_PICKLES = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib"})
_LARGEST_MEMBER = 1 << 30  # bytes, of all members of a sample together too
_LARGEST_HEADER = 1 << 17  # bytes of long names and the like in front of a member
_SAID = 300  # letters of an error
Sample = dict[str, Any]  # "__key__": str, every other key a suffix: bytes
_Content = TypeVar("_Content")  # of a member: its bytes, or where they lie


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
        if not members or not all(map(is_read, members)):
            raise ValueError(
                f"{self.path.name}: {printable(key)!r} has members {sorted(members)}, not {sorted(SUFFIXES)}"
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


def read_shard(path: Path) -> Iterator[Sample]:
    """Samples of one shard in their order: `"__key__"` and the bytes of each member by its suffix.

    Members of other suffixes are passed over. ValueError naming the shard when it is truncated, damaged,
    holds a pickle, a link or a device, or a name that leads out of a folder; what came before was yielded.
    """
    with path.open("rb") as file, _naming(path):
        for key, members in _group(_read(file)):
            yield {"__key__": key, **members}


def scan_shard(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """The samples of `read_shard` unread: each key and, by suffix, offset and size of the bytes in the file.

    ValueError where `read_shard` gives one, after the same samples.
    """
    with path.open("rb") as file, _naming(path):
        yield from _group(_places(file))


def is_read(suffix: str) -> bool:
    """Whether a member is read: its suffix is of `SUFFIXES`, or a named picture's, such as `source.png`."""
    return suffix in SUFFIXES or _NAMED_PICTURE.fullmatch(suffix) is not None


def find_shards(inputs: Sequence[Path]) -> list[Path]:
    """Tar files among `inputs` and, to the bottom, in its folders; sorted by file name.

    ValueError when an input is missing or no tar file, and when none is found.
    """
    found: dict[str, Path] = {}
    for entry in inputs:
        if str(entry).startswith("pipe:"):
            raise ValueError(f"{printable(entry)}: shards are files; commands are not run")
        if not entry.exists():
            raise ValueError(f"{printable(entry)}: there is no such file or folder")
        if not entry.is_dir() and entry.suffix != ".tar":
            raise ValueError(f"{printable(entry)}: not a shard by its name; a shard ends in .tar")
        for shard in entry.rglob("*.tar") if entry.is_dir() else [entry]:
            if shard.is_file():
                found[os.path.realpath(shard)] = shard
    if not found:
        raise ValueError(
            f"no shards found ({', '.join(map(printable, inputs)) or 'nothing was given'}); looked for *.tar"
        )
    return sorted(found.values(), key=lambda shard: (shard.name, str(shard)))


def key_of(name: str) -> str:
    """Key of a picture's name: no suffix; a key ends at a dot, so others in its last part become %2E."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.rpartition(".")[0].replace("%", "%25").replace(".", "%2E")


def name_of(key: str) -> str:
    """Undo `key_of`, all but the suffix."""
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.replace("%2E", ".").replace("%25", "%")


def check_key(key: str) -> None:
    """ValueError unless `key` is a relative name without `..`, and without a dot in its last part."""
    check_relative(key)
    if "." in key.rpartition("/")[2]:
        raise ValueError(f"key {printable(key)!r} has a dot in its last part, where a key ends")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with a tar into a ValueError with its name."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ValueError(f"{printable(path.name)}: {printable(one_line(error))[:_SAID]}") from error
    except (RecursionError, OverflowError, KeyError, IndexError) as error:  # of tarfile on headers that lie
        raise ValueError(f"{printable(path.name)}: damaged headers ({type(error).__name__})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that no file has
            raise
        raise ValueError(f"{printable(path.name)}: damaged headers ({one_line(error)})") from error


def _read(file: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and bytes of each regular member that has a suffix we know."""
    whose, total = "", 0
    for key, suffix, (offset, size) in _places(file):
        total = size + (total if key == whose else 0)
        whose = key
        if total > _LARGEST_MEMBER:
            raise ValueError(f"{printable(key)} has {total:,} bytes; at most {_LARGEST_MEMBER:,} are read")
        file.seek(offset)
        blob = file.read(size)
        if len(blob) != size:
            raise ValueError("truncated: the last member is cut off")
        yield key, suffix, blob


def _places(file: IO[bytes]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Key and suffix of each regular member that has a suffix we know, and where its bytes lie."""
    end = os.fstat(file.fileno()).st_size
    for key, suffix, header in _headers(file):
        if header.offset_data + header.size > end:
            raise ValueError("truncated: the last member is cut off")
        yield key, suffix, (header.offset_data, header.size)


class _Headers:
    """What tarfile may read of a file: headers, and no more of them at once than fits in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ValueError(f"damaged: a header of {size:,} bytes; at most {_LARGEST_HEADER:,} are read")
        return self._file.read(size)


def _headers(file: IO[bytes]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, suffix and header of each regular member that has a suffix we know."""
    tar = tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:")  # noqa: SIM115
    offset = -1
    while (member := tar.next()) is not None:
        _forget_headers(tar)
        if member.size < 0 or tar.offset <= offset:
            raise ValueError("damaged: a member of negative size")
        offset = tar.offset
        if member.isdir():
            continue
        check_relative(member.name.removeprefix("./"))
        if not member.isreg() or member.sparse is not None:
            raise ValueError(f"{printable(member.name)} is not a plain file")
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        if suffix.rpartition(".")[2] in _PICKLES:
            raise ValueError(f"{printable(member.name)} is a pickle, which could run code; it is not read")
        if not is_read(suffix) or not stem:
            continue
        if member.size > _LARGEST_MEMBER:
            raise ValueError(
                f"{printable(member.name)} has {member.size:,} bytes; at most {_LARGEST_MEMBER:,} are read"
            )
        yield folder + slash + stem, suffix, member
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("truncated or damaged: its end mark is missing")


def _forget_headers(tar: tarfile.TarFile) -> None:
    """Empty what tarfile keeps of members behind it, so that memory does not grow with the shard."""
    tar.members = []  # type: ignore[attr-defined]
    tar.pax_headers = {}


def _group(members: Iterator[tuple[str, str, _Content]]) -> Iterator[tuple[str, dict[str, _Content]]]:
    """Neighbours of one key as samples."""
    seen: set[str] = set()
    sample: tuple[str, dict[str, _Content]] | None = None
    for key, suffix, content in members:
        if sample is None or sample[0] != key:
            if sample is not None:
                yield sample
            if key in seen:
                raise ValueError(f"two samples are called {printable(key)!r}")
            seen.add(key)
            sample = key, {}
        if suffix in sample[1]:
            raise ValueError(f"{printable(key)!r} has two members .{suffix}")
        sample[1][suffix] = content
    if sample is not None:
        yield sample
