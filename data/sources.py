"""Images with captions, however they are stored, as one stream of `Item`s.

| source | captions |
|---|---|
| folder of images | `name.txt`, `.caption`, `.json` beside `name.jpg`; `metadata.jsonl`, `.csv`, ... |
| JSONL, CSV or TSV that names files | a field |
| Parquet: Hugging Face's and img2dataset's | a column; needs pyarrow |
| WebDataset shards | `.txt`, `.caption`, or a field of `.json` |
| folder written by `Dataset.save_to_disk` of `datasets` | a column; needs pyarrow |

Images are neither decoded nor downloaded here. What cannot be used is reported by name and reason.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pictish.data.captions import captions_of
from pictish.data.members import CAPTIONS, image_members
from pictish.data.mixture import Report
from pictish.data.shards import find_shards, open_shard
from pictish.io.files import check_relative, one_line, printable, read_regular_file
from pictish.io.finding import Found, find, kind_of, split_name

PICTURE_FIELDS = (
    "image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes",
    "file_name", "filename", "image_path", "img_path", "filepath", "file_path", "path", "file",
)  # fmt: skip
"""Fields that hold an image or name its file, in any case; the first that is not empty counts."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
EDITS, QUESTIONS = "edits.jsonl", "questions.jsonl"  # `annotations.py` reads these
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_ROWS = 64  # of a Parquet or Arrow file in memory at once
_LARGEST_TEXT = 1 << 20  # bytes of a caption file


@dataclass(frozen=True)
class Item:
    """An image of a source: a file, or a file's bytes; and its captions, none or more."""

    name: str  # in the source, parts joined by /
    picture: Path | bytes
    captions: tuple[str, ...]
    said_in: str | None  # where the captions stand, such as `name.txt` or `metadata.csv: text`

    def read(self) -> bytes:
        """The bytes of the image's file; OSError and ValueError as `read_regular_file`."""
        return self.picture if isinstance(self.picture, bytes) else read_regular_file(self.picture)


@dataclass
class Reading:
    """How a source is read, and what is seen on the way."""

    caption_key: str | None = None
    report: Report = field(default_factory=Report)
    fields: dict[str, None] = field(default_factory=dict)  # names of all that records held
    ignored: Counter[str] = field(default_factory=Counter)  # files that are no images, by kind


Reader = Callable[[Path, Reading], Iterator[Item]]


def read_source(path: Path, reading: Reading) -> Iterator[Item]:
    """All images of a source with their captions, in an order that never changes.

    ValueError for what is no source; `reading.report` takes in what is left out of one.
    """
    return reader_of(path)[1](path, reading)


def reader_of(path: Path) -> tuple[str, Reader]:
    """What a source is, in words, and the function that reads it; ValueError where it is none."""
    if not path.exists():
        raise ValueError(f"{printable(path)}: there is no such file or folder")
    if not path.is_dir():
        if kind_of(path.name) == "shard":
            return "WebDataset shard", _shards
        if (suffix := path.suffix.lower()) in TABLES:
            return f"{suffix[1:].upper()} file", _table
        raise ValueError(
            f"{printable(path)}: not a source of images; a folder, a shard (.tar) or one of "
            f"{' '.join(TABLES)} would fit"
        )
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir()))
        raise ValueError(f"{printable(path)}: holds the splits {splits}; give the folder of one of them")
    if (path / "dataset_info.json").is_file() and any(path.glob("*.arrow")):
        return "folder saved by datasets", _arrow_folder
    found = find([path])
    if found.images or any((path / name).is_file() for name in METADATA[:2]):
        return "folder of images", _folder
    if found.shards:
        return "folder of WebDataset shards", _shards
    if next(path.rglob("*.parquet"), None) is not None:
        return "folder of Parquet files", _parquet_folder
    raise ValueError(
        f"{printable(path)}: no images found; looked for images, metadata.jsonl, metadata.csv, *.tar, "
        "*.parquet and a folder saved by datasets"
    )


# ---- folders


def _folder(path: Path, reading: Reading) -> Iterator[Item]:
    """Images in a folder, with captions from files beside them and from metadata files above them."""
    told = _metadata(path, reading)
    found = find([path])
    if found.hidden:
        reading.ignored["hidden files"] += len(found.hidden)
    for name, reason in found.problems:
        reading.report.skip(name, reason)
    for image in found.images:
        try:
            said_in, captions = _beside(image.path, reading)
        except (ValueError, OSError) as error:
            reading.report.skip(image.name, f"its captions: {one_line(error)}")
            continue
        for source, texts in told.pop(os.path.realpath(image.path), {}).items():
            said_in, captions = said_in or source, (*captions, *texts)
        yield Item(image.name, image.path, tuple(dict.fromkeys(captions)), said_in)
    for missing, sources in told.items():
        reading.report.skip(os.path.relpath(missing, path), f"no such image; {next(iter(sources))} names it")
    _note_others(found, reading)


def _note_others(found: Found, reading: Reading) -> None:
    """Count the files of an image folder that are neither images nor captions; name what may hold some."""
    stems = {split_name(file.name)[0] for file in found.images}
    for shard in found.shards:
        reading.report.skip(shard.name, "a shard in a folder of images; give it as a source of its own")
    for name in found.others:
        stem, suffix = split_name(name)
        base = name.rpartition("/")[2]
        if base in (*METADATA, EDITS, QUESTIONS) or (suffix in (*CAPTIONS, "json") and stem in stems):
            continue
        if f".{suffix}" in TABLES:
            reading.report.skip(name, "a table that is not read; metadata.jsonl is, or give it as a source")
        else:
            reading.ignored[f".{suffix}" if suffix else base] += 1


def _metadata(path: Path, reading: Reading) -> dict[str, dict[str, tuple[str, ...]]]:
    """Real path of an image -> captions by where they stand, of all metadata files below `path`."""
    told: dict[str, dict[str, tuple[str, ...]]] = {}
    for table in sorted(each for name in METADATA for each in path.rglob(name)):
        for item in _rows_as_items(table, _records(table, reading), reading, inside=True):
            if not isinstance(item.picture, Path):
                reading.report.skip(item.name, f"{table.name} of a folder of images holds an image")
                continue
            # an image without captions is noted too, so that a row without a file is found
            found = told.setdefault(os.path.realpath(item.picture), {})
            source = item.said_in or table.name
            found[source] = (*found.get(source, ()), *item.captions)
    return told


def _beside(picture: Path, reading: Reading) -> tuple[str | None, tuple[str, ...]]:
    """Captions from the files beside an image, and which."""
    if reading.caption_key is None:
        for suffix in CAPTIONS:
            text = picture.with_suffix(f".{suffix}")
            if text.is_file():
                caption = " ".join(_text(read_regular_file(text, _LARGEST_TEXT)).split())
                if caption:
                    return f"name.{suffix}", (caption,)
    facts = picture.with_suffix(".json")
    if facts.is_file():
        return _said(_object(read_regular_file(facts, _LARGEST_TEXT)), "name.json", reading)
    return None, ()


# ---- tables


def _table(path: Path, reading: Reading) -> Iterator[Item]:
    """Images that a file names, or holds. An image of several rows has the captions of all of them."""
    items = _rows_as_items(path, _records(path, reading), reading, inside=False)
    if path.suffix.lower() in (".parquet", ".arrow"):
        yield from items
        return
    merged: dict[str, Item] = {}
    for item in items:
        before = merged.get(item.name)
        captions = (*(before.captions if before else ()), *item.captions)
        said_in = item.said_in or (before.said_in if before else None)
        merged[item.name] = Item(item.name, item.picture, tuple(dict.fromkeys(captions)), said_in)
    for item in merged.values():
        if isinstance(item.picture, Path) and not item.picture.is_file():
            reading.report.skip(item.name, f"no such image; {path.name} names it")
        else:
            yield item


def _parquet_folder(path: Path, reading: Reading) -> Iterator[Item]:
    for table in sorted(path.rglob("*.parquet")):
        yield from _rows_as_items(table, _records(table, reading), reading, inside=False)


def _arrow_folder(path: Path, reading: Reading) -> Iterator[Item]:
    for table in sorted(path.glob("*.arrow")):
        yield from _rows_as_items(table, _records(table, reading), reading, inside=False)


def _rows_as_items(
    table: Path, records: Iterable[tuple[str, Mapping[str, Any]]], reading: Reading, *, inside: bool
) -> Iterator[Item]:
    """Records, each with what it is called in reports, as items; `inside`: files may not lie elsewhere."""
    for place, record in records:
        try:
            name, picture = _picture_of(record, table.parent, inside)
            said_in, captions = _said(record, table.name, reading)
        except ValueError as error:
            reading.report.skip(place, one_line(error))
            continue
        yield Item(name or place, picture, captions, said_in)


def _picture_of(record: Mapping[str, Any], folder: Path, inside: bool) -> tuple[str | None, Path | bytes]:
    """The image of a record, and its name if it has one."""
    fields = {str(name).lower(): value for name, value in record.items()}
    key = fields.get("key", fields.get("__key__"))
    name = key if isinstance(key, str) and key else None
    for known in PICTURE_FIELDS:
        value = fields.get(known)
        if isinstance(value, Mapping):  # an Image of `datasets`
            name = name or value.get("path") or None
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return name, value
        if isinstance(value, str) and value:
            if inside:
                check_relative(value.removeprefix("./"))
            return value, folder / value
    if any(isinstance(fields.get(known), str) for known in ("url", "image_url")):
        status = fields.get("status")
        raise ValueError(f"holds no image but a URL{f', status {status}' if status else ''}")
    raise ValueError(f"holds no image; its fields are {', '.join(map(printable, record)) or 'none'}")


def _said(record: Mapping[str, Any], source: str, reading: Reading) -> tuple[str | None, tuple[str, ...]]:
    reading.fields.update(dict.fromkeys(map(str, record)))
    found, captions = captions_of(record, reading.caption_key)
    return (None if found is None else f"{source}: {found}"), captions


def _records(path: Path, reading: Reading) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table, each with what it is called in reports."""
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return _csv_records(path, reading)
        case ".parquet" | ".arrow":
            return _arrow_records(path, reading)
    return json_records(path, reading.report, path.name)


def json_records(path: Path, report: Report, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a file of JSON lines, each with what it is called in reports; others go to `report`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{name} line {number}"
                try:
                    yield place, _object(line)
                except ValueError as error:
                    report.skip(place, one_line(error))


def _csv_records(path: Path, reading: Reading) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            for row in rows:
                place = f"{path.name} line {rows.line_num}"
                if None in row or None in row.values():
                    reading.report.skip(place, f"has other columns than the first line ({rows.fieldnames})")
                else:
                    yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            reading.report.skip(f"{path.name} from line {rows.line_num + 1}", one_line(error))


def _arrow_records(path: Path, reading: Reading) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a Parquet file, or of an Arrow file as `datasets` writes it."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"{printable(path)}: needs pyarrow; pip install 'pictish[parquet]'") from None
    row = 0
    try:
        for batch in _parquet_batches(path) if path.suffix.lower() == ".parquet" else _arrow_batches(path):
            for record in batch.to_pylist():
                yield f"{path.stem}/{row:08d}", record
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        reading.report.skip(f"{path.name} from row {row}", f"damaged: {one_line(error)}")


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(_ROWS)


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        try:
            batches = iter(pyarrow.ipc.open_stream(file))
        except pyarrow.ArrowInvalid:
            whole = pyarrow.ipc.open_file(file)
            batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS)


# ---- shards


def _shards(path: Path, reading: Reading) -> Iterator[Item]:
    beside = Found()
    shards = find_shards([path], beside)
    for name, reason in beside.problems:
        reading.report.skip(name, reason)
    for table in sorted(path.rglob("*.parquet")) if path.is_dir() else []:
        if table.with_suffix(".tar") not in shards:  # img2dataset writes one beside each shard
            reading.report.skip(table.relative_to(path).as_posix(), "a Parquet file in a folder of shards")
    for shard in shards:
        samples = 0
        try:
            with open_shard(shard) as opened:
                if opened.hidden:
                    reading.ignored["hidden members"] += opened.hidden
                for name, reason in opened.ignored.items():
                    reading.report.skip(f"{shard.name}/{name}", reason)
                for key in opened.samples:
                    samples += 1
                    place = f"{shard.stem}/{key}"
                    try:
                        picture, said_in, captions = _of_sample(place, opened.read(key), reading)
                    except ValueError as error:
                        reading.report.skip(place, one_line(error))
                    else:
                        yield Item(place, picture, captions, said_in)
                if opened.damage is not None:
                    raise ValueError(opened.damage)
        except ValueError as error:
            reading.report.skip(f"{shard.name} after sample {samples:,}", one_line(error))


def _of_sample(
    place: str, sample: Mapping[str, bytes], reading: Reading
) -> tuple[bytes, str | None, tuple[str, ...]]:
    """The image of a shard's sample, where its captions stand, and these."""
    if "tokens" in sample:
        raise ValueError("holds tokens, and images are needed")
    images = list(image_members(sample).values())
    if len(images) != 1:
        raise ValueError(f"holds {len(images)} images, and one is needed")
    used, *more = images[0]
    for other in more:
        reading.report.skip(f"{place}.{other}", f"its sample has .{used} too, which is read")
    if reading.caption_key is None:
        for suffix in CAPTIONS:
            caption = " ".join(_text(sample[suffix]).split()) if suffix in sample else ""
            if caption:
                return sample[used], f".{suffix}", (caption,)
    said = _said(_object(sample["json"]), ".json", reading) if "json" in sample else (None, ())
    return (sample[used], *said)


def _text(blob: bytes) -> str:
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("text that is not UTF-8") from None


def _object(blob: bytes) -> dict[str, Any]:
    try:
        value = json.loads(_text(blob))
    except (ValueError, RecursionError):
        raise ValueError("not a JSON object") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
