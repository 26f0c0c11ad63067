"""One training sample, whatever it was stored as, and where the samples of a shard or an image folder lie.

Raw images stay encoded bytes: whoever has a tokenizer turns them into codes. Layouts: docs/formats.md.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pictish.data.captions import CAPTION_FIELDS
from pictish.data.dialogues import Role, json_text, parse_messages
from pictish.data.loader import ImageBytes
from pictish.data.members import (
    CAPTIONS,
    image_members,
    is_image,
    is_member,
    is_named_caption,
    owners,
)
from pictish.data.shards import check_seekable, open_shard
from pictish.data.token_folder import MANIFEST
from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line, printable, read_regular_file
from pictish.io.finding import Found, begins_as_image, kind_of, split_name, unsupported, walk

Picture: TypeAlias = TokenizedImage | ImageBytes  # of a shard of tokens, of a raw one

_KINDS = (
    "edit",
    "document",
    "question",
    "questions",
    "messages",
    "preference",
)  # keys of the JSON that say what a sample is


@dataclass(frozen=True)
class Pair:
    """An image and what may be said of it: one caption or more."""

    source: str  # file name of the shard, or name of the folder; the same for all kinds
    key: str
    picture: Picture
    captions: tuple[str, ...]  # at least one, none empty, all different
    facts: Mapping[str, Any]  # the whole JSON object: style, licence and so on; empty without one


@dataclass(frozen=True)
class Edit:
    """An image, what is to be done to it, and the image that comes of it."""

    source: str
    key: str
    before: Picture
    instruction: str
    after: Picture


@dataclass(frozen=True)
class Question:
    """Questions about one image, each with its answer."""

    source: str
    key: str
    picture: Picture
    turns: tuple[tuple[str, str], ...]  # question, answer; at least one


@dataclass(frozen=True)
class Document:
    """Text and images in reading order, at least one of them an image."""

    source: str
    key: str
    parts: tuple[str | Picture, ...]
    given: tuple[bool, ...]  # of each part, whether it is only read and not learned; not all of them


@dataclass(frozen=True)
class Video:
    """Frames in their order."""

    frames: tuple[Picture, ...]  # at least one


@dataclass(frozen=True)
class Message:
    """What one side of a dialogue says, in reading order."""

    role: Role
    parts: tuple[str | Picture | Video, ...]


@dataclass(frozen=True)
class Dialogue:
    """Messages: perhaps a system's, then a user's and the assistant's in turns, at least one of each."""

    source: str
    key: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class PlainText:
    """Text alone."""

    source: str
    key: str
    text: str


@dataclass(frozen=True)
class Preference:
    """Two samples of one kind with the same prompt: a preferred answer, drawing or edit, and another."""

    source: str
    key: str
    chosen: "Pair | Edit | Question | Dialogue"
    rejected: "Pair | Edit | Question | Dialogue"


Sample: TypeAlias = Pair | Edit | Question | Document | Dialogue | PlainText | Preference


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
    caption_key: str | None = None,
) -> Sample:
    """The sample whose members, by suffix, hold these bytes.

    `tokenizer`: fingerprint that token files must have. `text_alone=False` where a `.txt` without an image
    has lost it. `caption_key`: see `sample_captions`. DamagedSample, a ValueError of one line naming source
    and key, for what is no sample.
    """
    try:
        return _parse(source, key, members, tokenizer, text_alone, caption_key)
    except (ValueError, RecursionError) as error:
        raise DamagedSample(sample_name(source, key), one_line(error)) from error


def sample_name(source: str, key: str) -> str:
    """What a sample is called in messages."""
    return f"{printable(source)}/{printable(key)}"


def _parse(
    source: str,
    key: str,
    members: Mapping[str, bytes],
    tokenizer: str | None,
    text_alone: bool,
    caption_key: str | None,
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
        case ["messages"]:
            return Dialogue(source, key, _messages(facts["messages"], picture))
        case ["preference"]:
            return Preference(source, key, *_preference(source, key, facts["preference"], picture))
        case [_]:
            return Question(source, key, picture(), _turns(facts))
    if not text_alone or facts or any(map(is_image, members)) or "txt" not in members:
        return Pair(source, key, picture(), sample_captions(members, facts, caption_key), facts)
    if not (text := _text(members["txt"], "its .txt").strip()):
        raise ValueError("its text is empty")
    return PlainText(source, key, text)


def _picture_suffix(members: Mapping[str, bytes], name: str | None) -> str:
    """The member that is the sample's image, or that its JSON means by `name`."""
    images = image_members(members, tokens=True)
    if name is None:
        if "" in images:
            return images[""][0]
        if len(images) == 1:  # KEY.input.jpg
            return next(iter(images.values()))[0]
        raise ValueError("has named images, and no JSON that says which" if images else "has no image")
    wanted = name.lower()  # as a shard's reader writes suffixes
    if not is_image(wanted):
        raise ValueError(f"its JSON names {name!r} as an image; the name of one ends in .tokens or .png ...")
    # A raw shard's JSON is carried over when its images become tokens, so it still says source.png then.
    for choice in (wanted, f"{wanted.rpartition('.')[0]}.tokens".removeprefix(".")):
        if choice in members:
            return choice
    raise ValueError(f"lacks the member {name!r} that its JSON names")


def sample_captions(
    members: Mapping[str, bytes], facts: Mapping[str, Any], key: str | None = None
) -> tuple[str, ...]:
    """Every different caption of a pair: of its texts, of its JSON, of its lines of JSON.

    A caption of JSON is the text, or each of a list of texts, in one of `CAPTION_FIELDS`; with `key`, in that
    field (in any case) alone, and texts do not count. ValueError when there is none, and for other values
    where nothing but captions can stand.
    """
    captions: list[str] = []
    if key is None:
        texts = sorted(filter(is_named_caption, members))
        captions += [_text(members[s], f"its .{s}") for s in (*CAPTIONS, *texts) if s in members]
    fields = CAPTION_FIELDS if key is None else (key.lower(),)
    for one in (facts, *_lines(members.get("jsonl", b""))):
        names = {name.lower(): name for name in one}
        for field in (field for field in fields if field in names):
            value = one[names[field]]
            listed = value if isinstance(value, list) else [] if value is None else [value]
            if key or field in ("caption", "captions") or all(isinstance(text, str) for text in listed):
                captions += [json_text(text, "a caption") for text in listed]
    captions = [caption.strip() for caption in captions]
    if not any(captions):
        said = f"nothing under {key}" if key else "no text, nor caption or another known field"
        has = f", which has {_keys(facts)}" if facts else ""
        raise ValueError(f"has no caption: {said} in its JSON{has}")
    return tuple(dict.fromkeys(filter(None, captions)))


def _lines(blob: bytes) -> list[dict[str, Any]]:
    """The objects of a member of JSON lines; lines of other values have no captions."""
    try:
        values = [json.loads(line) for line in _text(blob, "its .jsonl").splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("its .jsonl is not lines of JSON") from None
    return [value for value in values if isinstance(value, dict)]


def _keys(facts: Mapping[str, Any], most: int = 8) -> str:
    """The keys of an object, for an error."""
    names = [printable(key[:40]) for key in facts]
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _turns(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Questions with their answers."""
    listed = facts.get("questions", [facts])
    if not isinstance(listed, list) or not listed:
        raise ValueError("questions in its JSON is no list of questions and answers")
    turns = [_fields(turn, "a question", ("question", "answer")) for turn in listed]
    return tuple((turn["question"], turn["answer"]) for turn in turns)


def _parts(document: Any) -> list[tuple[str, str, bool]]:
    """Each part of a document: `text` or `image`, text or name, and whether it is given, that is not learned.

    Empty text is dropped.
    """
    if not isinstance(document, list):
        raise ValueError("document in its JSON is no list of parts")
    parts = []
    for part in document:
        kinds = [kind for kind in ("text", "image") if isinstance(part, dict) and kind in part]
        if len(kinds) != 1:
            raise ValueError('a part of its document is neither {"text": ...} nor {"image": ...}')
        value = json_text(part[kinds[0]], f"{kinds[0]} of its document")
        if value or kinds == ["image"]:
            parts.append((kinds[0], value, part.get("given") is True))
    if not any(value.strip() or kind == "image" for kind, value, _ in parts):
        raise ValueError("its document is empty")
    if all(given for _, _, given in parts):
        raise ValueError("all parts of its document are given, so that nothing is learned")
    return parts


def _messages(listed: Any, picture: Callable[[str], Picture]) -> tuple[Message, ...]:
    def part(kind: str, value: str | tuple[str, ...]) -> str | Picture | Video:
        if isinstance(value, tuple):
            return Video(tuple(map(picture, value)))
        return picture(value) if kind == "image" else value

    return tuple(Message(role, tuple(part(*one) for one in parts)) for role, parts in parse_messages(listed))


def _preference(
    source: str, key: str, value: Any, picture: Callable[..., Picture]
) -> Iterator[Pair | Edit | Question | Dialogue]:
    """The chosen sample, then the rejected one; they share the very images of their prompt."""
    prompts = ("question", "prompt", "instruction", "messages")
    found = [name for name in prompts if isinstance(value, dict) and name in value]
    if len(found) != 1:
        raise ValueError(f"preference in its JSON is no object with one of {', '.join(prompts)}")
    answers = "chosen", "rejected"
    match found[0]:
        case "question":
            fields = _fields(value, "preference", ("question", *answers))
            shown = picture()
            for one in answers:
                yield Question(source, key, shown, ((fields["question"], fields[one]),))
        case "prompt":
            fields = _fields(value, "preference", ("prompt", *answers))
            for one in answers:
                yield Pair(source, key, picture(fields[one]), (fields["prompt"],), {})
        case "instruction":
            fields = _fields(value, "preference", ("source", "instruction", *answers))
            before = picture(fields["source"])
            for one in answers:
                yield Edit(source, key, before, fields["instruction"], picture(fields[one]))
        case "messages":
            known: dict[str, Picture] = {}

            def shared(name: str) -> Picture:
                if name not in known:
                    known[name] = picture(name)
                return known[name]

            listed = value["messages"]
            for one in answers:
                said = {"role": "assistant", "content": value.get(one)}
                all_of_it = [*listed, said] if isinstance(listed, list) else listed
                yield Dialogue(source, key, _messages(all_of_it, shared))


def _fields(value: Any, what: str, names: Iterable[str]) -> dict[str, str]:
    """Those entries of a JSON object, all of them text that is not empty."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} in its JSON is no object")
    fields = {name: json_text(value.get(name), f"{what}'s {name}").strip() for name in names}
    if empty := [name for name, text in fields.items() if not text]:
        raise ValueError(f"{what}'s {empty[0]} is empty")
    return fields


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
    """Where the samples of one shard or image folder lie, so that any of them can be read by its number.

    N samples, M members; arrays, for millions of samples must fit. Reading is by seek: local files only.
    """

    path: Path
    stamp: tuple[int, int] | None  # of the shard when it was scanned: bytes, nanoseconds; None: a folder
    damage: str | None  # why the samples after these are lost
    ignored: Mapping[str, str]  # files that belong to no sample, and why
    hidden: int  # files that are left out by their names
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
        """Whether any sample has one; a lone `.txt` among them has lost its image."""
        return any(is_image(suffix.lower()) for suffix in self.suffixes)

    def key(self, row: int) -> str:
        """Key of a sample."""
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : self.name_ends[row]].tobytes().decode("utf-8", "surrogateescape")

    def read(self, row: int, tokenizer: str | None = None, caption_key: str | None = None) -> Sample:
        """One sample; DamagedSample as from `parse_sample`, and when its files are not what they were."""
        key = self.key(row)
        try:
            members = self._members(row, key)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
            raise DamagedSample(sample_name(self.source, key), reason) from error
        alone = not self.has_pictures
        return parse_sample(self.source, key, members, tokenizer, alone, caption_key)

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
    stamp = stamp_of(path.stat())
    try:
        with open_shard(path) as shard:
            check_seekable(shard)
            return _index(path, stamp, shard.damage, shard.ignored, shard.hidden, list(shard.samples.items()))
    except ValueError as error:
        return _index(path, stamp, one_line(error).removeprefix(f"{printable(path.name)}: "), {}, 0, [])


def index_folder(path: Path) -> SampleIndex:
    """Find the samples of an image folder and the folders in it: files with one name but for the suffix.

    What else belongs to a sample says `owners`. Links are followed, hidden files and the manifest of a token
    folder are left out.
    """
    found = Found()
    folders: dict[str, list[str]] = {}
    for file in walk(path, found):
        if file.name != MANIFEST:
            folder, slash, base = file.name.rpartition("/")
            folders.setdefault(folder + slash, []).append(base)
    ignored = dict(found.problems)
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    for folder, names in folders.items():
        split = {name: split_name(name) for name in names if is_member(split_name(name)[1])}
        ignored |= {folder + name: reason for name in names if (reason := _unused(path / folder / name))}
        stems: dict[str, list[str]] = {}
        for stem, suffix in split.values():
            stems.setdefault(stem, []).append(suffix)
        owner = owners(stems)
        members: dict[str, dict[str, tuple[int, int]]] = {}
        for name, (stem, _) in split.items():
            whose = owner[stem]
            beside = is_image(split[name][1]) and any(map(is_image, stems.get(whose, ()))) and whose != stem
            if not name.startswith(f"{whose}.") or (beside and "json" not in stems[whose]):
                whose = stem  # a file is read by its name; an image that no JSON names is one of its own
            members.setdefault(whose, {})[name[len(whose) + 1 :]] = (0, 0)
        samples += [(folder + stem, own) for stem, own in members.items()]
    return _index(path, None, None, ignored, len(found.hidden), samples)


def _unused(path: Path) -> str | None:
    """Why a file of an image folder is no member of a sample though it is an image; None for others."""
    kind = kind_of(path.name)
    if kind == "other" and not is_member(split_name(path.name)[1]) and begins_as_image(path):
        return "an image whose name does not say so; give it a suffix"
    return unsupported(path.name) if kind in ("unsupported image", "unsupported shard") else None


def _index(
    path: Path,
    stamp: tuple[int, int] | None,
    damage: str | None,
    ignored: Mapping[str, str],
    hidden: int,
    samples: Sequence[tuple[str, Mapping[str, tuple[int, int]]]],
) -> SampleIndex:
    suffixes = sorted({suffix for _, members in samples for suffix in members})
    numbers = {suffix: number for number, suffix in enumerate(suffixes)}
    names = [key.encode("utf-8", "surrogateescape") for key, _ in samples]
    places = [place for _, members in samples for place in members.values()]
    return SampleIndex(
        path,
        stamp,
        damage,
        dict(ignored),
        hidden,
        tuple(suffixes),
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.cumsum([len(members) for _, members in samples], dtype=np.int64),
        np.array([numbers[suffix] for _, members in samples for suffix in members], np.uint32),
        np.array([offset for offset, _ in places], np.int64),
        np.array([size for _, size in places], np.int64),
    )
