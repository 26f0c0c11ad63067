"""Edits and questions beside images: the rows of `edits.jsonl` and `questions.jsonl`, which name images.

    {"source": "cat.jpg", "instruction": "make the cat white", "target": "white-cat.jpg"}
    {"image": "cat.jpg", "question": "What colour is the cat?", "answer": "Black."}

The files lie anywhere in the folder of a source, or beside the file that is one. Images are named as the
source names them, from the folder of the file on.
"""

import json
import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pictish.data.mixture import Report
from pictish.data.sources import EDITS, PICTURE_FIELDS, QUESTIONS, json_records
from pictish.data.words import check_text
from pictish.io.files import one_line, printable
from pictish.io.finding import is_hidden


@dataclass(frozen=True)
class PictureEdit:
    """A row of `edits.jsonl`; `source` and `target` are `normal` names of images."""

    place: str  # what it is called in reports
    source: str
    instruction: str
    target: str


@dataclass(frozen=True)
class PictureQuestion:
    """A row of `questions.jsonl`; `picture` is a `normal` name."""

    place: str
    picture: str
    question: str
    answer: str


@dataclass
class Annotations:
    """All edits and questions of a source."""

    edits: list[PictureEdit] = field(default_factory=list)
    questions: list[PictureQuestion] = field(default_factory=list)

    @property
    def pictures(self) -> set[str]:
        """Names of the images that they need."""
        return {name for edit in self.edits for name in (edit.source, edit.target)} | {
            question.picture for question in self.questions
        }

    def matched(self, usable: Collection[str], named: Collection[str], report: Report) -> "Annotations":
        """Those whose images are all `usable`; the others go to the report.

        `named`: the images of the source that are asked for, usable or not.
        """

        def lacks(place: str, *pictures: str) -> bool:
            missing = [name for name in pictures if name not in usable]
            for name in missing[:1]:
                reason = "an image that cannot be used" if name in named else "no image of the source"
                report.skip(place, f"names {printable(name)}, {reason}")
            return bool(missing)

        return Annotations(
            [edit for edit in self.edits if not lacks(edit.place, edit.source, edit.target)],
            [asked for asked in self.questions if not lacks(asked.place, asked.picture)],
        )

    def questions_by_picture(self) -> dict[str, list[PictureQuestion]]:
        """Name of an image -> its questions, in their order."""
        found: dict[str, list[PictureQuestion]] = {}
        for asked in self.questions:
            found.setdefault(asked.picture, []).append(asked)
        return found


def read_annotations(source: Path, report: Report) -> Annotations:
    """The edits and questions of a source of images; rows that are none go to the report."""
    folder = source if source.is_dir() else source.parent
    found = Annotations()
    readers: dict[str, Callable[[Mapping[str, Any], str, str], None]] = {
        EDITS: lambda row, place, below: found.edits.append(_edit(row, place, below)),
        QUESTIONS: lambda row, place, below: found.questions.append(_question(row, place, below)),
    }
    for name, take in readers.items():
        for path in sorted(folder.rglob(name)) if source.is_dir() else [folder / name]:
            inside = path.relative_to(folder)
            if not path.is_file() or any(map(is_hidden, inside.parts)):
                continue
            for place, row in json_records(path, report, inside.as_posix()):
                try:
                    take(row, place, inside.parent.as_posix())
                except ValueError as error:
                    report.skip(place, one_line(error))
    return found


def normal(name: str) -> str:
    """An image's name as annotations are matched by: `/` between parts, without `.` and `..`."""
    return posixpath.normpath(name.replace("\\", "/"))


def edit_members(edit: PictureEdit, source: Path, target: Path) -> dict[str, bytes]:
    """A sample of an edit (docs/formats.md), of the files of its two images."""
    told = {
        "source": f"source{source.suffix}",
        "instruction": edit.instruction,
        "target": f"target{target.suffix}",
    }
    return {
        told["source"]: source.read_bytes(),
        told["target"]: target.read_bytes(),
        "json": json.dumps({"edit": told}).encode("ascii"),
    }


def question_members(asked: list[PictureQuestion], picture: Path) -> dict[str, bytes]:
    """A sample of the questions about one image (docs/formats.md), of its file."""
    turns = [{"question": each.question, "answer": each.answer} for each in asked]
    return {
        picture.suffix[1:]: picture.read_bytes(),
        "json": json.dumps({"questions": turns}).encode("ascii"),
    }


def _edit(row: Mapping[str, Any], place: str, below: str) -> PictureEdit:
    source, instruction, target = (_text(row, name) for name in ("source", "instruction", "target"))
    return PictureEdit(place, _joined(below, source), instruction, _joined(below, target))


def _question(row: Mapping[str, Any], place: str, below: str) -> PictureQuestion:
    fields = {name.lower(): name for name in row}
    named = next((fields[name] for name in PICTURE_FIELDS if name in fields), "image")
    picture, question, answer = (_text(row, name) for name in (named, "question", "answer"))
    return PictureQuestion(place, _joined(below, picture), question, answer)


def _joined(below: str, name: str) -> str:
    return normal(posixpath.join(below, name))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is missing, or no text")
    check_text(name, value)
    return value.strip()
