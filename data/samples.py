"""One training sample, whatever it was stored as, and where the samples of a shard or a picture folder lie.

Raw pictures stay encoded bytes: whoever has a tokenizer turns them into codes. Layouts: docs/formats.md.
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pictish.data.images import SUFFIXES as FOLDER_PICTURES
from pictish.data.loader import ImageBytes
from pictish.data.shards import PICTURES, scan_shard
from pictish.data.token_folder import MANIFEST
from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line, printable, read_regular_file

Picture: TypeAlias = TokenizedImage | ImageBytes  # of a shard of tokens, of a raw one

# Where a sample has several pictures and none is named, the first of these counts.
_PICTURE_SUFFIXES = ("tokens", *PICTURES, *sorted({s[1:] for s in FOLDER_PICTURES} - set(PICTURES)))
_TEXT_SUFFIXES = ("json", "txt")
_KINDS = ("edit", "document", "question", "questions")  # keys of the JSON that say what a sample is


@dataclass(frozen=True)
class Pair:
    """A picture and what may be said of it: one caption or more."""

    source: str  # file name of the shard, or name of the folder; the same for all kinds
    key: str
    picture: Picture
    captions: tuple[str, ...]  # at least one, none empty, all different
    facts: Mapping[str, Any]  # the whole JSON object: style, licence and so on; empty without one


@dataclass(frozen=True)
class Edit:
    """A picture, what is to be done to it, and the picture that comes of it."""

    source: str
    key: str
    before: Picture
    instruction: str
    after: Picture


@dataclass(frozen=True)
class Question:
    """Questions about one picture, each with its answer."""

    source: str
    key: str
    picture: Picture
    turns: tuple[tuple[str, str], ...]  # question, answer; at least one


@dataclass(frozen=True)
class Document:
    """Text and pictures in reading order, at least one of them a picture."""

    source: str
    key: str
    parts: tuple[str | Picture, ...]
    given: tuple[bool, ...]  # of each part, whether it is only read and not learned; not all of them


@dataclass(frozen=True)
class PlainText:
    """Text alone."""

    source: str
    key: str
    text: str


Sample: TypeAlias = Pair | Edit | Question | Document | PlainText


class DamagedSample(ValueError):
    """A sample that cannot be used: `name` says which, `reason` why, the same words for the same fault."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def parse_sample(
    source: str,
    key: str,
    members: Mapping[str, bytes],
    tokenizer: str | None = None,
    text_alone: bool = True,
) -> Sample:
    """The sample whose members, by suffix, hold these bytes.

    `tokenizer`: fingerprint that token files must have. `text_alone=False` where a `.txt` without a picture
    has lost it. DamagedSample, a ValueError of one line naming source and key, for what is no sample.
    """
    try:
        return _parse(source, key, members, tokenizer, text_alone)
    except (ValueError, RecursionError) as error:
        raise DamagedSample(sample_name(source, key), one_line(error)) from error


def sample_name(source: str, key: str) -> str:
    """What a sample is called in messages."""
    return f"{printable(source)}/{printable(key)}"


def _parse(
    source: str, key: str, members: Mapping[str, bytes], tokenizer: str | None, text_alone: bool
) -> Sample:
    facts = _object(members["json"]) if "json" in members else {}
    kinds = [kind for kind in _KINDS if kind in facts]
    if len(kinds) > 1:
        raise ValueError(f"its JSON has {' and '.join(kinds)}; a sample is one of {', '.join(_KINDS)}")

    def picture(name: str | None = None) -> Picture:
        suffix = _picture_suffix(members, name)
        if suffix.endswith("tokens"):
            return TokenizedImage.from_bytes(members[suffix], tokenizer)
        return ImageBytes(members[suffix], f"{sample_name(source, key)}.{suffix}")

    match kinds:
        case ["edit"]:
            edit = _fields(facts["edit"], "edit", ("source", "instruction", "target"))
            return Edit(source, key, picture(edit["source"]), edit["instruction"], picture(edit["target"]))
        case ["document"]:
            parts = _parts(facts["document"])
            if all(kind == "text" for kind, _, _ in parts):
                return PlainText(source, key, "".join(text for _, text, _ in parts))
            shown = tuple(picture(value) if kind == "image" else value for kind, value, _ in parts)
            return Document(source, key, shown, tuple(given for _, _, given in parts))
        case [_]:
            return Question(source, key, picture(), _turns(facts))
    if not text_alone or facts or any(map(_is_picture, members)) or "txt" not in members:
        return Pair(source, key, picture(), _captions(facts, members.get("txt")), facts)
    if not (text := _text(members["txt"], "its .txt").strip()):
        raise ValueError("its text is empty")
    return PlainText(source, key, text)


def _is_picture(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _PICTURE_SUFFIXES


def _picture_suffix(members: Mapping[str, bytes], name: str | None) -> str:
    """The member that is the sample's picture, or that its JSON means by `name`."""
    if name is None:
        choice = next((suffix for suffix in _PICTURE_SUFFIXES if suffix in members), None)
        if choice is None:
            raise ValueError("has no picture")
        return choice
    wanted = name.lower()  # as a shard's reader writes suffixes
    if not _is_picture(wanted):
        raise ValueError(f"its JSON names {name!r} as a picture; the name of one ends in .tokens or .png ...")
    # A raw shard's JSON is carried over when its pictures become tokens, so it still says source.png then.
    for choice in (wanted, f"{wanted.rpartition('.')[0]}.tokens".removeprefix(".")):
        if choice in members:
            return choice
    raise ValueError(f"lacks the member {name!r} that its JSON names")


def _captions(facts: Mapping[str, Any], text: bytes | None) -> tuple[str, ...]:
    """Every different caption of a pair: of its text, then of its JSON."""
    listed = facts.get("captions") or []
    if not isinstance(listed, list):
        raise ValueError("captions in its JSON is no list")
    alone = [] if facts.get("caption") is None else [facts["caption"]]
    read = [] if text is None else [_text(text, "its .txt")]
    captions = [_string(caption, "a caption").strip() for caption in (*read, *alone, *listed)]
    if not any(captions):
        raise ValueError("has no caption: no text, nor caption or captions in its JSON")
    return tuple(dict.fromkeys(filter(None, captions)))


def _turns(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Questions with their answers."""
    listed = facts.get("questions", [facts])
    if not isinstance(listed, list) or not listed:
        raise ValueError("questions in its JSON is no list of questions and answers")
    turns = [_fields(turn, "a question", ("question", "answer")) for turn in listed]
    return tuple((turn["question"], turn["answer"]) for turn in turns)


def _parts(document: Any) -> list[tuple[str, str, bool]]:
    """Each part of a document: `text` or `image`, text or name, and whether it is given, that is not learned.

    Empty text is left away.
    """
    if not isinstance(document, list):
        raise ValueError("document in its JSON is no list of parts")
    parts = []
    for part in document:
        kinds = [kind for kind in ("text", "image") if isinstance(part, dict) and kind in part]
        if len(kinds) != 1:
            raise ValueError('a part of its document is neither {"text": ...} nor {"image": ...}')
        value = _string(part[kinds[0]], f"{kinds[0]} of its document")
        if value or kinds == ["image"]:
            parts.append((kinds[0], value, part.get("given") is True))
    if not any(value.strip() or kind == "image" for kind, value, _ in parts):
        raise ValueError("its document is empty")
    if all(given for _, _, given in parts):
        raise ValueError("all parts of its document are given, so that nothing is learned")
    return parts


def _fields(value: Any, what: str, names: Iterable[str]) -> dict[str, str]:
    """Those entries of a JSON object, all of them text that is not empty."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} in its JSON is no object")
    fields = {name: _string(value.get(name), f"{what}'s {name}").strip() for name in names}
    if empty := [name for name, text in fields.items() if not text]:
        raise ValueError(f"{what}'s {empty[0]} is empty")
    return fields


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is missing or no text in its JSON")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{what} holds half of a character, which no UTF-8 has")
    return value


def _object(blob: bytes) -> dict[str, Any]:
    text = _text(blob, "its .json")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("its .json is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("its .json is no JSON object")
    return value


def _text(blob: bytes, what: str) -> str:
    try:
        return blob.decode("utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Where the samples of one shard or picture folder lie, so that any of them can be read by its number.

    N samples, M members; arrays, for millions of samples must fit. Reading is by seek: local files only.
    """

    path: Path
    stamp: tuple[int, int] | None  # of the shard when it was scanned: bytes, nanoseconds; None: a folder
    damage: str | None  # why the samples after these are lost
    suffixes: tuple[str, ...]  # as they are written in names of files
    names: npt.NDArray[np.uint8]  # all keys in UTF-8 one after the other
    name_ends: npt.NDArray[np.int64]  # (N,)
    member_ends: npt.NDArray[np.int64]  # (N,)
    kinds: npt.NDArray[np.uint32]  # (M,) entry of `suffixes`
    offsets: npt.NDArray[np.int64]  # (M,) in the shard
    sizes: npt.NDArray[np.int64]  # (M,) bytes

    def __len__(self) -> int:
        return len(self.name_ends)

    @property
    def source(self) -> str:
        """Name of the shard or folder in samples and messages."""
        return self.path.name or str(self.path.resolve().name)

    @functools.cached_property
    def has_pictures(self) -> bool:
        """Whether any sample has one; a lone `.txt` among them has lost its picture."""
        return any(_is_picture(suffix.lower()) for suffix in self.suffixes)

    def key(self, row: int) -> str:
        """Key of a sample."""
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : self.name_ends[row]].tobytes().decode("utf-8", "surrogateescape")

    def read(self, row: int, tokenizer: str | None = None) -> Sample:
        """One sample; DamagedSample as from `parse_sample`, and when its files are not what they were."""
        key = self.key(row)
        try:
            members = self._members(row, key)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
            raise DamagedSample(sample_name(self.source, key), reason) from error
        return parse_sample(self.source, key, members, tokenizer, text_alone=not self.has_pictures)

    def _members(self, row: int, key: str) -> dict[str, bytes]:
        rows = range(int(self.member_ends[row - 1]) if row else 0, int(self.member_ends[row]))
        suffixes = [self.suffixes[self.kinds[member]] for member in rows]
        if self.stamp is None:
            return {suffix.lower(): read_regular_file(self.path / f"{key}.{suffix}") for suffix in suffixes}
        places = [(int(self.offsets[member]), int(self.sizes[member])) for member in rows]
        span = max(map(sum, places)) - min(places)[0]  # members are neighbours: one read gets them all
        members = {}
        with self.path.open("rb", buffering=min(max(span, 512), 1 << 20)) as file:
            if stamp_of(os.fstat(file.fileno())) != self.stamp:
                raise ValueError("its shard was changed while it was in use")
            for suffix, (offset, size) in zip(suffixes, places, strict=True):
                file.seek(offset)
                members[suffix] = file.read(size)
        return members


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """What changes when a file does: its bytes, and the nanosecond it was written."""
    return status.st_size, status.st_mtime_ns


def index_shard(path: Path) -> SampleIndex:
    """Scan the headers of a shard; what is wrong with it becomes `damage`, what lies before is used."""
    samples, damage, stamp = [], None, stamp_of(path.stat())
    try:
        for sample in scan_shard(path):
            samples.append(sample)
    except ValueError as error:
        damage = one_line(error).removeprefix(f"{printable(path.name)}: ")
    return _index(path, stamp, damage, samples)


def index_folder(path: Path) -> SampleIndex:
    """Find the samples of a picture folder and the folders in it: files with one name but for the suffix.

    A JSON also has the pictures that add a part to its name, `a.source.png` beside `a.json`. Links to folders
    are not followed; names with a leading dot, and the manifest of a token folder, are passed over.
    """
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    for root, folders, files in os.walk(path, onerror=_fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(root).relative_to(path).as_posix() + "/" if Path(root) != path else ""
        known = [name for name in sorted(files) if not name.startswith(".") and _suffix(name)]
        if not prefix and MANIFEST in known:
            known.remove(MANIFEST)
        texts = {_stem(name) for name in known if _suffix(name) in _TEXT_SUFFIXES}
        objects = {_stem(name) for name in known if _suffix(name) == "json"}
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for name in known:
            stem = _stem(name)
            owner = stem
            if stem not in texts and _is_picture(_suffix(name)):
                owner = next((shorter for shorter in _shorter(stem) if shorter in objects), stem)
            found.setdefault(owner, {})[name[len(owner) + 1 :]] = (0, 0)
        samples += [(prefix + stem, members) for stem, members in found.items()]
    return _index(path, None, None, samples)


def _fail(error: OSError) -> None:
    raise error


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    """Suffix of a file that may be a sample's member, else nothing."""
    suffix = name.rpartition(".")[2].lower()
    return suffix if suffix in _PICTURE_SUFFIXES or suffix in _TEXT_SUFFIXES else ""


def _shorter(stem: str) -> Iterator[str]:
    """The name without its last part behind a dot, without its last two, and so on."""
    while "." in stem:
        stem = _stem(stem)
        yield stem


def _index(
    path: Path,
    stamp: tuple[int, int] | None,
    damage: str | None,
    samples: list[tuple[str, dict[str, tuple[int, int]]]],
) -> SampleIndex:
    suffixes = sorted({suffix for _, members in samples for suffix in members})
    numbers = {suffix: number for number, suffix in enumerate(suffixes)}
    names = [key.encode("utf-8", "surrogateescape") for key, _ in samples]
    places = [place for _, members in samples for place in members.values()]
    return SampleIndex(
        path,
        stamp,
        damage,
        tuple(suffixes),
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.cumsum([len(members) for _, members in samples], dtype=np.int64),
        np.array([numbers[suffix] for _, members in samples for suffix in members], np.uint32),
        np.array([offset for offset, _ in places], np.int64),
        np.array([size for _, size in places], np.int64),
    )
