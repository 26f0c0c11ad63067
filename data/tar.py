"""Members of tar files from anywhere: within bounds on time and memory, and nothing but plain bytes.

Links are resolved inside the tar; compressed tars are unpacked to a file without a name first.
"""

import contextlib
import errno
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from pictish.io.files import check_relative, one_line, printable, shown
from pictish.io.finding import SHARDS, is_hidden, shard_suffix

LARGEST_MEMBER = 1 << 30  # bytes
_LARGEST_HEADER = 1 << 17  # bytes of long names and the like in front of a member
_LARGEST_RATIO = 200  # of unpacked bytes to packed ones; images hardly shrink, text to a tenth
_SMALL = 1 << 26  # bytes that any compressed shard may unpack to
_PIECE = 1 << 20  # bytes
_SAID = 300  # letters of an error
_PICKLES = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib"})
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz"}  # no tar begins so


@dataclass
class Contents:
    """Where the members of a tar lie."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: offset and size in bytes
    hidden: int = 0  # members such as `._a.jpg`
    ignored: dict[str, str] = field(default_factory=dict)  # names of members that are not read, and why
    damage: str | None = None  # why nothing is read behind these
    last: str | None = None  # name of the last member that is read


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a tar, by seek.

    ValueError when its name and its content disagree about how it is compressed, when it is damaged, unpacks
    to far too much, or needs a library that is missing.
    """
    compression = SHARDS[shard_suffix(path.name) or ".tar"]
    with path.open("rb") as file:
        head = file.read(8)
        found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
        if found != compression:
            came = f"compressed with {found}" if found else "not compressed"
            named = f"as {compression}" if compression else "as uncompressed"
            raise ValueError(f"{came}, but named {named}; unpack or rename it ({' '.join(SHARDS)} are read)")
        file.seek(0)
        if not compression:
            yield file
            return
        with tempfile.TemporaryFile(prefix="pictish-") as unpacked:
            with _unpacking(file, compression) as packed:
                _unpack(packed, unpacked, _LARGEST_RATIO * path.stat().st_size + _SMALL)
            unpacked.seek(0)
            yield unpacked


def _unpack(packed: IO[bytes], unpacked: IO[bytes], most: int) -> None:
    """Write the decompressed bytes, `most` at most; ValueError for more, and for damaged input."""
    while True:
        try:
            piece = packed.read(_PIECE)
        except Exception as error:  # each library has its own kinds
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            raise ValueError(f"damaged: {one_line(error)}") from error
        if not piece:
            return
        if unpacked.tell() + len(piece) > most:
            raise ValueError(f"unpacks to more than {_LARGEST_RATIO} times its size")
        unpacked.write(piece)


def _unpacking(file: IO[bytes], compression: str) -> Any:
    if compression == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=file)
    try:
        import zstandard
    except ImportError:
        raise ValueError("zst shards need pip install 'pictish[zst]'") from None
    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)


def contents_of(file: IO[bytes]) -> Contents:
    """All members of a tar, or of several joined into one file, up to the first damage.

    What may not be in a shard at all is damage too: pickles, and names that lead out of a folder.
    """
    contents = Contents()
    try:
        _scan(file, contents)
    except (tarfile.TarError, EOFError, ValueError) as error:
        contents.damage = printable(one_line(error))[:_SAID]
    except (RecursionError, OverflowError, KeyError, IndexError) as error:  # of tarfile on headers that lie
        contents.damage = f"damaged headers ({type(error).__name__})"
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that no file has
            raise
        contents.damage = f"damaged headers ({one_line(error)})"
    return contents


def _scan(file: IO[bytes], contents: Contents) -> None:
    size = file.seek(0, 2)
    start = 0
    while start < size or not start:
        file.seek(start)
        tar = tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:")  # noqa: SIM115
        offset = -1
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # so that memory does not grow with the shard
            tar.pax_headers = {}
            if member.size < 0 or tar.offset <= offset:
                raise ValueError("damaged: a member of negative size")
            offset = tar.offset
            _sort_in(contents, member, size)
        if start and offset < 0:
            contents.ignored["(end)"] = f"the last {size - start:,} bytes, after its end mark, are not a tar"
            return
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("truncated or damaged: its end mark is missing")
        start = _after_zeros(file, tar.offset)


def _after_zeros(file: IO[bytes], start: int) -> int:
    """The first block behind `start` that is not all zeros; the end of the file when there is none."""
    file.seek(start)
    while piece := file.read(_PIECE):
        if rest := piece.lstrip(b"\0"):
            place = start + len(piece) - len(rest)
            return place - place % tarfile.BLOCKSIZE
        start += len(piece)
    return start


def _sort_in(contents: Contents, member: tarfile.TarInfo, end: int) -> None:
    """Note where a member lies, or why it is not read."""
    if member.isdir():
        return
    name = member.name.removeprefix("./")
    check_relative(name)
    if any(map(is_hidden, name.split("/"))):
        contents.hidden += 1
        return
    if name.lower().rpartition(".")[2] in _PICKLES:
        raise ValueError(f"{printable(name)} is a pickle, which could run code; it is not read")
    place = member.offset_data, member.size
    if member.islnk() or member.issym():
        folder = posixpath.dirname(name) if member.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, member.linkname))
        if target not in contents.places:
            contents.ignored[name] = f"a link to {shown(target)}, which is not in the shard before it"
            return
        place = contents.places[target]
    elif not member.isreg() or member.sparse is not None:
        contents.ignored[name] = "not a plain file"
        return
    elif sum(place) > end:
        raise ValueError("truncated: the last member is cut off")
    if place[1] > LARGEST_MEMBER:
        contents.ignored[name] = f"{place[1]:,} bytes; at most {LARGEST_MEMBER:,} are read"
    elif name in contents.places:
        contents.ignored[f"{name} (again)"] = "a second member of this name; the first is read"
    else:
        contents.places[name], contents.last = place, name


class _Headers:
    """What tarfile may read of a file: headers, and no more of them at once than fits in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ValueError(f"damaged: a header of {size:,} bytes; at most {_LARGEST_HEADER:,} are read")
        return self._file.read(size)
