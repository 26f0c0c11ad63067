"""Files of bulk work, on this machine or in an object store.

A place is a path or a URL (`s3://bucket/name`, `gs://bucket/name`), always text. What goes over a network is
tried again when it fails, and its size is compared before it counts; local files are written as elsewhere.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pictish.io.files import one_line, printable, sha256_file, write_atomic
from pictish.io.finding import Found, find, is_hidden, kind_of, unsupported

REMOTE = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}  # scheme: the extra of pictish that brings its library
ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds; doubled after every attempt

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stored:
    """A file that is there."""

    place: str
    name: str  # last part of the place
    size: int  # bytes


def is_remote(place: str) -> bool:
    """Whether a place is a URL; ValueError for one of a kind that is not read or written."""
    scheme, mark, _ = place.partition("://")
    if not mark:
        return False
    if scheme not in REMOTE:
        kinds = ", ".join(f"{kind}://" for kind in REMOTE)
        raise ValueError(f"{printable(place)}: a path, or one of {kinds}, would fit")
    return True


def join(folder: str, name: str) -> str:
    """The place of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder, name))


def find_shards(places: Sequence[str]) -> tuple[list[Stored], Found]:
    """The shards among files and folders, local or remote, and what else lies there (see `finding.find`)."""
    found = find([Path(place) for place in places if not is_remote(place)])
    shards = [Stored(str(file.path), file.path.name, file.path.stat().st_size) for file in found.shards]
    for place in filter(is_remote, places):
        shards += _find_remote(place, found)
    return shards, found


def _find_remote(place: str, found: Found) -> list[Stored]:
    """The shards at or below a URL; what else lies there goes to `found`, by its name."""
    scheme = place.partition("://")[0]

    def listed(system: Any, path: str) -> tuple[str, dict[str, Any]]:
        return path, system.find(path, detail=True)

    root, files = _patiently(place, listed)
    shards = []
    for path, facts in files.items():
        name = path.removeprefix(root).strip("/") or path.rpartition("/")[2]
        kind = kind_of(name)
        if facts["type"] != "file":
            continue
        if any(map(is_hidden, name.split("/"))):
            found.hidden.append(name)
        elif kind == "shard":
            url = f"{scheme}://{path.removeprefix(f'{scheme}://')}"
            shards.append(Stored(url, path.rpartition("/")[2], int(facts["size"])))
        elif kind == "image":
            found.problems.append((name, "an image in an object store; tokenize images from a local folder"))
        elif kind == "other":
            found.others.append(name)
        else:
            found.problems.append((name, unsupported(name)))
    return shards


def list_folder(place: str) -> dict[str, int]:
    """Names and sizes (bytes) of the files in a folder, not of those below it; empty when it is not there."""
    if not is_remote(place):
        folder = Path(place)
        if not folder.exists():
            return {}
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def listed(system: Any, path: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = system.ls(path, detail=True)
            return found
        except FileNotFoundError:
            return []

    rows = _patiently(place, listed)
    return {row["name"].rpartition("/")[2]: int(row["size"]) for row in rows if row["type"] == "file"}


def size_of(place: str) -> int | None:
    """Bytes of a file, None when there is none."""
    try:
        if is_remote(place):
            return _patiently(place, lambda system, path: int(system.info(path)["size"]))
        return Path(place).stat().st_size
    except FileNotFoundError:
        return None


def read_bytes(place: str) -> bytes:
    """The whole of a small file; FileNotFoundError when there is none."""
    if not is_remote(place):
        return Path(place).read_bytes()

    def read(system: Any, path: str) -> bytes:
        blob: bytes = system.cat_file(path)
        _compare(len(blob), int(system.info(path)["size"]))
        return blob

    return _patiently(place, read)


def write_bytes(place: str, blob: bytes) -> None:
    """Write a small file as a whole, replacing what was there."""
    if not is_remote(place):
        write_atomic(Path(place), blob)
        return

    def write(system: Any, path: str) -> None:
        system.pipe_file(path, blob)
        _compare(int(system.info(path)["size"]), len(blob))

    _patiently(place, write)


def download(place: str, path: Path) -> None:
    """Copy a remote file to a local path."""

    def copy(system: Any, remote: str) -> None:
        system.get_file(remote, str(path))
        _compare(path.stat().st_size, int(system.info(remote)["size"]))

    _patiently(place, copy)


def upload(path: Path, place: str) -> None:
    """Copy a local file to a remote place, where it appears as a whole."""

    def copy(system: Any, remote: str) -> None:
        system.put_file(str(path), remote)
        _compare(int(system.info(remote)["size"]), path.stat().st_size)

    _patiently(place, copy)


def delete(place: str) -> None:
    """Remove a file; nothing happens when there is none."""

    def remove(system: Any, path: str) -> None:
        if system.exists(path):
            system.rm_file(path)

    if is_remote(place):
        _patiently(place, remove)
    else:
        Path(place).unlink(missing_ok=True)


def sha256_of(place: str) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    if not is_remote(place):
        return sha256_file(Path(place))

    def read(system: Any, path: str) -> str:
        digest, length = hashlib.sha256(), 0
        with system.open(path, "rb", cache_type="readahead") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                length += len(piece)
        _compare(length, int(system.info(path)["size"]))
        return digest.hexdigest()

    return _patiently(place, read)


def _compare(found: int, expected: int) -> None:
    if found != expected:
        raise OSError(f"{found:,} bytes came, {expected:,} were expected")


def _patiently(place: str, action: Callable[[Any, str], Result]) -> Result:
    """The result of `action(file system, path in it)`, after ATTEMPTS at most; OSError naming the place."""
    system, path = _opened(place)
    for attempt in range(ATTEMPTS):
        try:
            return action(system, path)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each store's library has its own kinds
            if attempt == ATTEMPTS - 1:
                raise OSError(f"{printable(place)}: {one_line(error)}") from error
            time.sleep(FIRST_WAIT * 2**attempt)
    raise AssertionError


def _opened(place: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place, use_listings_cache=False)
    except ImportError:
        extra = REMOTE[place.partition("://")[0]]
        raise ValueError(f"{printable(place)}: needs pip install 'pictish[{extra}]'") from None
    return system, str(path)
