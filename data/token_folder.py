"""Output folders that say what they hold: token folders, shard folders, and images made from tokens.

`manifest.json` lists every file with the sha256 of its source and of its bytes. While a run is under way the
same facts grow line by line in `manifest.partial.jsonl`, so that a killed run can be resumed.
"""

import errno
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pictish.data.tokens import LARGEST, TokenizedImage
from pictish.io.files import (
    check_relative,
    only_writer,
    printable,
    read_regular_file,
    remove_leftovers,
    sha256_file,
    shown,
    write_atomic,
)
from pictish.io.finding import File, Found, split_name, walk

FORMAT_VERSION = 2  # rises with that of token files, which version 1 held in theirs
MANIFEST = "manifest.json"
PARTIAL = "manifest.partial.jsonl"
SUFFIX = ".tokens"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an output folder."""

    source: str | None  # name of what it was made from; None: several images (a shard)
    source_sha256: str  # of the source's bytes; for several images see `sources_digest`
    sha256: str  # of the file's bytes
    tokens: int
    samples: int = 1
    left_out: tuple[str, ...] = ()  # images of a shard that could not be read
    unread: tuple[str, ...] = ()  # those of them that another run may be able to read

    def to_json(self) -> dict[str, Any]:
        """The entry as the manifest has it; what is true of every token file is not repeated."""
        facts: dict[str, Any] = {
            "sha256": self.sha256,
            "source_sha256": self.source_sha256,
            "tokens": self.tokens,
        }
        if self.source is not None:
            facts["source"] = self.source
        if self.samples != 1 or self.left_out or self.source is None:
            facts["samples"] = self.samples
        if self.left_out:
            facts["left_out"] = list(self.left_out)
        if self.unread:
            facts["unread"] = list(self.unread)
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Entry":
        """Undo `to_json`; KeyError, TypeError or ValueError for anything else."""
        known = {"sha256", "source_sha256", "tokens", "source", "samples", "left_out", "unread"}
        if not set(facts) <= known or not all(
            isinstance(facts[key], str) for key in ("sha256", "source_sha256")
        ):
            raise ValueError("unknown keys")
        source, tokens, samples = facts.get("source"), facts["tokens"], facts.get("samples", 1)
        left_out, unread = facts.get("left_out", []), facts.get("unread", [])
        if not (source is None or isinstance(source, str)):
            raise TypeError("source")
        if not isinstance(left_out, list) or not isinstance(unread, list):
            raise TypeError("left_out or unread")
        if not isinstance(tokens, int) or not isinstance(samples, int):
            raise TypeError("tokens or samples")
        names = tuple(map(str, left_out)), tuple(map(str, unread))
        return cls(source, facts["source_sha256"], facts["sha256"], tokens, samples, *names)


@dataclass(frozen=True)
class Header:
    """What all files of an output folder have in common."""

    kind: str  # "token-folder", "token-shards" or "images"
    tokenizer: str  # fingerprint
    codebook_size: int
    settings: Mapping[str, Any]  # plain JSON: what else decides the bytes

    def to_json(self) -> dict[str, Any]:
        """The header as the manifest has it."""
        return {
            "codebook_size": self.codebook_size,
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "settings": dict(self.settings),
            "tokenizer": self.tokenizer,
        }

    @classmethod
    def from_json(cls, facts: Any) -> "Header":
        """Undo `to_json`; ValueError for another format version or anything else."""
        if not isinstance(facts, dict) or "format" not in facts:
            raise ValueError("not written by pictish")
        if facts["format"] != FORMAT_VERSION:
            old = isinstance(facts["format"], int) and facts["format"] < FORMAT_VERSION
            raise ValueError(
                f"format version {shown(facts['format'])}; this program reads version {FORMAT_VERSION}"
                + (": tokenize the images again with this version" if old else "")
            )
        try:
            kind, tokenizer, codebook_size, settings = (
                facts[key] for key in ("kind", "tokenizer", "codebook_size", "settings")
            )
        except KeyError as error:
            raise ValueError(f"damaged, {error} is missing") from None
        if not (isinstance(kind, str) and isinstance(tokenizer, str) and isinstance(codebook_size, int)):
            raise ValueError("damaged, a field has another type")
        if not isinstance(settings, dict):
            raise ValueError("damaged, settings are no mapping")
        return cls(kind, tokenizer, codebook_size, settings)

    def difference(self, other: "Header") -> str | None:
        """In words, what `other` wants different from what is here; None when nothing."""
        mine, theirs = self.to_json(), other.to_json()
        for key in ("kind", "tokenizer", "codebook_size"):
            if mine[key] != theirs[key]:
                return f"it was written with {key.replace('_', ' ')} {mine[key]}, this run has {theirs[key]}"
        for key in sorted({*self.settings, *other.settings}):
            if self.settings.get(key) != other.settings.get(key):
                here, asked = self.settings.get(key), other.settings.get(key)
                return f"it was written with {key} {_say(here)}, this run has {_say(asked)}"
        return None


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.json."""

    header: Header
    files: dict[str, Entry]


class OutputFolder:
    """A folder being filled: knows what is finished, refuses what does not belong together.

    Use as a context manager around the work; `finish` at its end writes the manifest, which depends on the
    files alone, not on the order or the number of runs they were made in.
    """

    def __init__(self, folder: Path, header: Header, planned: Collection[str], overwrite: bool) -> None:
        """`planned`: names of the files this run would write."""
        self.folder, self.header, self.overwrite = folder, header, overwrite
        self._planned = planned
        self._files: dict[str, Entry] = {}
        self._fresh: set[str] = set()  # written by this run

    def __enter__(self) -> "OutputFolder":
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{printable(self.folder)}: is a file; the output is a folder")
        self._made = not self.folder.exists()
        self._lock = only_writer(self.folder)
        self._lock.__enter__()
        try:
            remove_leftovers(self.folder)
            self._take_over()
            self._partial = self._open_partial()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._partial.close()
        if not self._files and not (self.folder / MANIFEST).exists():  # nothing came of it
            (self.folder / PARTIAL).unlink(missing_ok=True)
            if self._made and not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._lock.__exit__(None, None, None)

    def finished(self, name: str) -> Entry | None:
        """The entry of a file that need not be made again, its bytes verified; None when it must be made."""
        entry = self._files.get(name)
        if entry is None or (self.overwrite and name not in self._fresh):
            return None
        path = self.folder / name
        return entry if path.is_file() and sha256_file(path) == entry.sha256 else None

    def may_write(self, name: str, sha256: str) -> None:
        """ValueError when `name` holds other bytes than those of this sha256 and must not be overwritten."""
        path = self.folder / name
        if not self.overwrite and path.exists() and (not path.is_file() or sha256_file(path) != sha256):
            raise ValueError(f"{printable(name)} exists already and differs; --overwrite replaces it")

    def store(self, name: str, blob: bytes, entry: Entry) -> None:
        """Write one file and note it; ValueError as from `may_write`, and for a name that is too long."""
        try:
            self.may_write(name, entry.sha256)
            write_atomic(self.folder / name, blob)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise ValueError("file name too long for this file system") from error
        self.note(name, entry)

    def note(self, name: str, entry: Entry) -> None:
        """Remember a file that has been written."""
        self._files[name] = entry
        self._fresh.add(name)
        self._partial.write(_line([name, entry.to_json()]))
        self._partial.flush()

    def finish(self) -> None:
        """Write manifest.json and drop the notes of the work under way."""
        rows = (
            f"{json.dumps(name)}: {json.dumps(entry.to_json(), sort_keys=True)}"
            for name, entry in self.entries()
        )
        parts = {key: json.dumps(value, sort_keys=True) for key, value in self.header.to_json().items()}
        parts["files"] = "{\n" + ",\n".join(rows) + "\n}"
        text = "{\n" + ",\n".join(f'"{key}": {part}' for key, part in sorted(parts.items())) + "\n}\n"
        write_atomic(self.folder / MANIFEST, text.encode("ascii"))
        (self.folder / PARTIAL).unlink(missing_ok=True)

    def entries(self) -> list[tuple[str, Entry]]:
        """Everything the folder holds, sorted by name."""
        return sorted(self._files.items())

    def _take_over(self) -> None:
        """Read what earlier runs left, and refuse what does not fit to this one."""
        found = []
        for name, manifest in (
            (MANIFEST, _read_finished(self.folder)),
            (PARTIAL, _read_partial(self.folder)),
        ):
            if manifest is not None and manifest.files:
                found.append(manifest)
            elif manifest is not None and manifest.header.difference(self.header):
                (self.folder / name).unlink()  # of a run that wrote nothing
        difference = next(filter(None, (one.header.difference(self.header) for one in reversed(found))), None)
        if difference is None:
            for one in found:
                self._files.update(one.files)
            return
        place = printable(self.folder)
        if not self.overwrite:
            raise ValueError(f"{place}: {difference}; choose another folder or replace it with --overwrite")
        old = {name for one in found for name in one.files}
        kept = old - set(self._planned)
        if kept:
            raise ValueError(
                f"{place}: {difference}, and {len(kept)} of its files ({printable(min(kept))} ...) "
                "would not be replaced; choose another folder"
            )
        for name in (*sorted(old), MANIFEST, PARTIAL):
            (self.folder / name).unlink(missing_ok=True)

    def _open_partial(self) -> IO[bytes]:
        path = self.folder / PARTIAL
        if not path.exists():
            write_atomic(path, _line(self.header.to_json()))
        else:  # a line cut short by a kill must not run into the next one
            blob = path.read_bytes()
            if not blob.endswith(b"\n"):
                write_atomic(path, blob[: blob.rfind(b"\n") + 1])
        return path.open("ab")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished output folder; ValueError (one line) when there is none of ours."""
    manifest = _read_finished(folder)
    if manifest is None:
        raise ValueError(f"{printable(folder)}: has no {MANIFEST}")
    return manifest


def plan_outputs(
    images: Sequence[File], suffix: str = SUFFIX
) -> tuple[dict[str, File], list[tuple[str, str]]]:
    """Images by the names of their outputs, `sub/name.tokens` for `sub/name.jpg`, and those that have none.

    Two images that would meet have none, nor has one whose name no reader would accept: each with the reason.
    ValueError when no image is left.
    """
    planned: dict[str, list[File]] = {}
    problems = []
    for image in images:
        try:
            check_relative(image.name)
        except ValueError as error:
            problems.append((image.name, f"{error}; rename it"))
            continue
        planned.setdefault(split_name(image.name)[0] + suffix, []).append(image)
    for name, meeting in planned.items():
        if len(meeting) > 1:
            images_ = " and ".join(image.name for image in meeting)
            problems.append((images_, f"would both become {name}; rename one"))
    outputs = {name: meeting[0] for name, meeting in planned.items() if len(meeting) == 1}
    if not outputs:
        raise ValueError("; ".join(f"{printable(name)}: {printable(reason)}" for name, reason in problems))
    return outputs, problems


def find_tokens(inputs: Sequence[Path], beside: Found | None = None) -> list[File]:
    """Token files in `inputs` (files, or folders searched to the bottom), sorted by name.

    A file that a folder's manifest lists is among them even when it is gone. What cannot be searched goes to
    `beside`. ValueError when none is found.
    """
    found: dict[tuple[str, str], File] = {}
    beside = Found() if beside is None else beside
    for entry in inputs:
        if entry.is_dir():
            manifest = _read_finished(entry)
            listed = [name for name in manifest.files if name.endswith(SUFFIX)] if manifest else []
            paths = [(file.path, file.name) for file in walk(entry, beside) if file.name.endswith(SUFFIX)]
            paths += [(entry / name, name) for name in listed]
        elif entry.exists() and entry.suffix == SUFFIX:
            paths = [(entry, entry.name)]
        else:
            why = (
                f"not a token file by its name; one ends in {SUFFIX}"
                if entry.exists()
                else "there is no such file"
            )
            raise ValueError(f"{printable(entry)}: {why}")
        found.update({(name, str(path)): File(path, name) for path, name in paths if not path.is_dir()})
    if not found:
        raise ValueError(f"no token files found ({', '.join(map(printable, inputs))}); looked for *{SUFFIX}")
    return [found[key] for key in sorted(found)]


def read_tokens(path: str | Path, expect_tokenizer: str | None = None) -> TokenizedImage:
    """One token file, see `TokenizedImage.from_bytes`."""
    return TokenizedImage.from_bytes(read_regular_file(Path(path), LARGEST), expect_tokenizer)


def sources_digest(sources: Sequence[tuple[str, str | None]]) -> str:
    """One sha256 for the images of a shard: their names and the sha256 of each (None: cannot be read)."""
    return hashlib.sha256(json.dumps(list(sources), separators=(",", ":")).encode("ascii")).hexdigest()


def _say(value: Any) -> str:
    return "none" if value is None else str(value)


def _line(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode("ascii") + b"\n"


def _read_finished(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(read_regular_file(path))
        header = Header.from_json(content)
        return Manifest(header, dict(_entries(content["files"].items())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_ours(path, error) from error


def _read_partial(folder: Path) -> Manifest | None:
    path = folder / PARTIAL
    if not path.exists():
        return None
    try:
        lines = io.BytesIO(read_regular_file(path))
        header = Header.from_json(json.loads(next(lines, b"")))
        whole = (json.loads(line) for line in lines if line.endswith(b"\n"))
        return Manifest(header, dict(_entries(whole)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_ours(path, error) from error


def _entries(rows: Any) -> Iterator[tuple[str, Entry]]:
    for name, facts in rows:
        check_relative(name)
        yield name, Entry.from_json(facts)


def _not_ours(path: Path, error: Exception) -> ValueError:
    plain = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
    why = str(error) if plain else "not written by pictish, or damaged"
    return ValueError(f"{printable(path)}: {why}; choose another folder")
