"""Files that are either whole or absent: everything is written beside its place, synced, and renamed."""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

TEMP_SUFFIX = ".pictish-tmp"
_LONGEST_LINE = 1000  # letters of another's error
_LONGEST_NAME = 255  # bytes, on every file system we know
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

logger = logging.getLogger(__name__)


def temp_path(path: Path) -> Path:
    """The name beside `path` under which it is written until it is whole."""
    name = f".{path.name}{TEMP_SUFFIX}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{TEMP_SUFFIX}"
    return path.with_name(name)


def write_atomic(path: Path, blob: bytes) -> None:
    """Write `blob` to `path`, replacing what was there; missing folders above it are made.

    Whatever happens, `path` holds the old bytes or the new ones. OSError as from `open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_path(path)
    try:
        with temp.open("wb") as file:
            file.write(blob)
            sync(file.fileno())
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def sync(descriptor: int) -> None:
    """Have the operating system put an open file's bytes on the disk, if its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def lock(descriptor: int, folder: Path) -> bool:
    """Whether an open file or folder is now locked for this process; BlockingIOError when another has it.

    Where the file system has no locks (some network and FUSE ones) a warning says so, once for `folder`.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none on a folder
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        _warn_without_locks(folder, one_line(error))
        return False
    return True


@functools.cache
def _warn_without_locks(folder: Path, reason: str) -> None:
    logger.warning(
        "%s: cannot be locked (%s); make sure that no other process writes there", printable(folder), reason
    )


def remove_leftovers(folder: Path) -> int:
    """Delete the unfinished files and folders that a killed run left below `folder`; the number of them."""
    found = 0
    for root, folders, files in os.walk(folder):
        for name in [name for name in folders if name.endswith(TEMP_SUFFIX)]:
            folders.remove(name)
            shutil.rmtree(Path(root, name))
            found += 1
        for name in files:
            if name.endswith(TEMP_SUFFIX):
                Path(root, name).unlink(missing_ok=True)
                found += 1
    return found


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if missing) for this process; ValueError when another one is writing to it.

    The lock is the operating system's: it leaves no file, and a killed process loses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # where a folder cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            lock(descriptor, folder)
        except BlockingIOError:
            message = f"{folder}: another process is writing here; wait for it or choose another folder"
            raise ValueError(message) from None
        yield
    finally:
        os.close(descriptor)


def check_apart(out: Path, inputs: Sequence[Path], *, inside: bool = True) -> None:
    """ValueError where `out` is one of the folders that are read or, if `inside`, lies in one."""
    place = out.resolve()
    for entry in inputs:
        other = entry.resolve()
        if entry.is_dir() and (place == other or (inside and other in place.parents)):
            raise ValueError(
                f"{printable(out)}: lies among the inputs, in {printable(entry)}; choose another"
            )


def read_regular_file(path: Path, most: int | None = None) -> bytes:
    """A file's bytes; ValueError for a pipe or device, which could block for ever, and for over `most`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if most is not None and status.st_size > most:
        raise ValueError(f"{status.st_size:,} bytes; at most {most:,} are read")
    return path.read_bytes()


def check_relative(name: str) -> None:
    """ValueError unless `name`, from a manifest or an archive, stays inside the folder it is joined to."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or Path(name).drive:
        raise ValueError(f"{printable(name)!r} is not a plain relative name with / between its parts")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matching(patterns: Sequence[str]) -> list[Path]:
    """Paths of glob patterns, or the paths themselves, sorted by pattern; ValueError when one has none.

    `~` is the user's home.
    """
    found: list[Path] = []
    for pattern in patterns:
        at_home = os.path.expanduser(pattern)  # noqa: PTH111  (a pattern is no path yet)
        # a file that is there may have brackets in its name
        paths = [at_home] if Path(at_home).exists() else sorted(glob(at_home))  # noqa: PTH207
        if not paths:
            raise ValueError(
                f"data: nothing matches {pattern!r}; make the starter's shards with: pictish data starter OUT"
            )
        found += map(Path, paths)
    return found


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, never empty; of a library's that repeats its input, the head."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _cut(text, _LONGEST_LINE)


def shown(value: object) -> str:
    """What came, as an error can say it: at most 60 letters."""
    return _cut(repr(value) if not isinstance(value, str) else repr(value[:80]), 60)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 3] + "..."


def printable(name: str | Path) -> str:
    """`name` as text any terminal takes: bytes that are no UTF-8, and control characters, as escapes."""
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
