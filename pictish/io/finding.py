"""The one search for images and shards below files and folders, and what it leaves out."""

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pictish.io.files import printable
from pictish.io.signatures import HEAD, image_format

# Where a sample has several images, the first of these counts: a PNG beside a photograph is often a mask.
IMAGES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "heic", "heif"),
    *("tif", "tiff", "bmp", "gif"),
)
SHARDS = {".tar": "", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd"}  # suffix: compression
UNSUPPORTED_IMAGES = frozenset(
    {"arw", "cr2", "cr3", "dng", "eps", "exr", "hdr", "ico", "j2k", "jp2", "jxl", "nef", "orf", "pbm", "pcx"}
    | {"pgm", "pnm", "ppm", "psd", "raf", "raw", "rw2", "svg", "tga", "xcf"}
)
_UNSUPPORTED_SHARDS = (".tar.bz2", ".tar.xz", ".tbz2", ".txz")
_HIDDEN = frozenset({"__MACOSX", "@eaDir"})  # of macOS archives and Synology disks; both hold copies of names
_SUFFIX = re.compile(r"[A-Za-z0-9_~-]*[A-Za-z][A-Za-z0-9_~-]*")
_LONGEST_SUFFIX = 12

Kind = Literal["image", "shard", "unsupported image", "unsupported shard", "other"]


@dataclass(frozen=True)
class File:
    """A file and its name: the path relative to the folder it was found in, `/` between parts."""

    path: Path
    name: str


@dataclass
class Found:
    """What lies below the inputs of a command."""

    images: list[File] = field(default_factory=list)
    shards: list[File] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # names of files that are neither
    hidden: list[str] = field(default_factory=list)  # files and folders
    known: list[str] = field(default_factory=list)  # links to folders that are searched already
    problems: list[tuple[str, str]] = field(default_factory=list)  # names that could not be used, and why

    def note(self) -> str | None:
        """What was left out and is no loss, on one line; None when there is nothing to say."""
        parts = []
        if self.hidden:
            parts.append(f"{counted(len(self.hidden), 'hidden file')} ({_some(self.hidden)})")
        if self.known:
            links = counted(len(self.known), "link")
            parts.append(f"{links} to folders that are read already ({_some(self.known)})")
        if self.others:
            suffixes = Counter(f".{split_name(name)[1]}".rstrip(".") for name in self.others)
            kinds = [f"{number:,} {suffix or 'without suffix'}" for suffix, number in suffixes.most_common()]
            parts.append(f"{counted(len(self.others), 'non-image file')} ({_some(kinds)})")
        return f"ignored {'; '.join(parts)}" if parts else None


def find(inputs: Sequence[Path]) -> Found:
    """Images and shards among `inputs` and, to the bottom, in their folders, each sorted by name.

    The order of `inputs` does not matter, and what is reached twice under one name counts once. Links are
    followed, to each folder once. A file without a known suffix counts as an image when its first bytes are
    one's. ValueError when an input does not exist.
    """
    found = Found()
    files: dict[tuple[str, str], File] = {}
    for entry in inputs:
        if str(entry).startswith("pipe:"):
            raise ValueError(f"{printable(entry)}: shards are files; commands are not run")
        if not entry.exists():
            raise ValueError(f"{printable(entry)}: there is no such file or folder")
        for file in walk(entry, found) if entry.is_dir() else [File(entry, entry.name)]:
            files[file.name, os.path.realpath(file.path)] = file
    given = {os.path.realpath(entry) for entry in inputs}
    for key in sorted(files):
        _sort_in(found, files[key], given=key[1] in given)
    return found


def walk(folder: Path, found: Found) -> Iterator[File]:
    """All files below a folder that are not hidden; what cannot be searched goes to `found`.

    A linked folder is searched under the name of its link, after all others, unless it is known by then: so
    loops end, and no folder comes twice.
    """
    known: set[str] = set()
    places = deque([(folder, "")])

    def fail(error: OSError) -> None:
        place = Path(error.filename or folder)
        name = place.relative_to(folder).as_posix() if place.is_relative_to(folder) else str(place)
        found.problems.append((name, error.strerror or "cannot be searched"))

    while places:
        place, name = places.popleft()
        if name and os.path.realpath(place) in known:
            found.known.append(name)
            continue
        for root, folders, files in os.walk(place, onerror=fail):
            real = os.path.realpath(root)
            if real in known:
                folders.clear()
                continue
            known.add(real)
            below = Path(root).relative_to(place).as_posix()
            prefix = "".join(f"{part}/" for part in (name, below) if part not in ("", "."))
            found.hidden += [f"{prefix}{one}" for one in sorted((*folders, *files)) if is_hidden(one)]
            folders[:] = sorted(one for one in folders if not is_hidden(one))
            for link in [one for one in folders if Path(root, one).is_symlink()]:
                folders.remove(link)
                places.append((Path(root, link), f"{prefix}{link}"))
            for one in sorted(files):
                if not is_hidden(one):
                    yield File(Path(root, one), f"{prefix}{one}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out of every search (`._*`, `.ipynb_checkpoints` ...)."""
    return name.startswith(".") or name in _HIDDEN


def kind_of(name: str) -> Kind:
    """What a file is by its name."""
    if shard_suffix(name) is not None:
        return "shard"
    if name.lower().endswith(_UNSUPPORTED_SHARDS):
        return "unsupported shard"
    suffix = split_name(name)[1]
    if suffix in UNSUPPORTED_IMAGES:
        return "unsupported image"
    return "image" if suffix in IMAGES else "other"


def shard_suffix(name: str) -> str | None:
    """The suffix in `SHARDS` that the name of a shard ends in; None for another name."""
    lower = name.lower()
    return next((suffix for suffix in sorted(SHARDS, key=len, reverse=True) if lower.endswith(suffix)), None)


def shard_name_of(name: str) -> str:
    """Name of the uncompressed shard that is made of one: `a.tar` for `a.tar.gz` and `a.TAR`."""
    return name[: len(name) - len(shard_suffix(name) or "")] + ".tar"


def split_name(name: str) -> tuple[str, str]:
    """A name without its suffix, and the suffix in lower case; "take 2.0" and ".x" have none."""
    stem, _, suffix = name.rpartition(".")
    whole = not stem or stem.endswith("/") or len(suffix) > _LONGEST_SUFFIX or not _SUFFIX.fullmatch(suffix)
    return (name, "") if whole else (stem, suffix.lower())


def unsupported(name: str) -> str:
    """Why a file of an unsupported kind is not read."""
    if kind_of(name) == "unsupported shard":
        return f"unsupported compression; shards end in {' '.join(SHARDS)}"
    return f"unsupported image format; supported are {supported()}"


def supported() -> str:
    """The suffixes of all images that are read."""
    return " ".join(sorted(IMAGES))


def _sort_in(found: Found, file: File, given: bool) -> None:
    """Put a file where it belongs; one that was `given` by name has to belong somewhere."""
    kind = kind_of(file.name)
    if kind == "other" and begins_as_image(file.path):
        kind = "image"
    if kind == "image":
        found.images.append(file)
    elif kind == "shard" and not file.path.is_file():
        found.problems.append((file.name, "not a regular file"))
    elif kind == "shard":
        found.shards.append(file)
    elif kind in ("unsupported image", "unsupported shard"):
        found.problems.append((file.name, unsupported(file.name)))
    elif given:
        shards = " ".join(SHARDS)
        why = f"not an image by its name or content; supported are {supported()}, and shards {shards}"
        found.problems.append((file.name, why))
    else:
        found.others.append(file.name)


def begins_as_image(path: Path) -> bool:
    """Whether a regular file begins as an image does; no pipe is opened."""
    try:
        if not path.is_file() or split_name(path.name)[1] in ("json", "jsonl", "tokens", "txt"):
            return False
        with path.open("rb") as file:
            return image_format(file.read(HEAD)) is not None
    except OSError:
        return False


def counted(number: int, noun: str) -> str:
    """A number of things: "1 sample", "1,200 samples"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _some(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    listed = [printable(name) for name in names]
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"
