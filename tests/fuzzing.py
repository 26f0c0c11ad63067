"""Hostile input: what every reader is given, and what must be true whatever it is given.

A reader takes it, or refuses it with ValueError or OSError of one line. It takes no longer and no more memory
than stated here, runs nothing, connects to nothing, and writes nothing. `tests/test_fuzzing.py` gives each
reader a few hundred inputs and all that were ever found, `tools/fuzz.py` as many as there is time for.
"""

import hashlib
import json
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of this process's time, for an input of any reader
MEMORY = 64 << 20  # bytes beside what an input of its own size explains
TIMES = 40  # times its size
LETTERS = 2000  # of an error
FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.",
    "pickle.",
    "ctypes.",
)
WORDS: dict[str, tuple[bytes, ...]] = {
    "tokens": (b"NaN", b"-1", b"1e999", b'"ids"', b'"BF16"', b'"I64"', b"[0]", b"null", b"[" * 2000),
    "manifest": (b"../", b"/", b"\\u0000", b"..", b"null", b"1e999", b"-1", b"[" * 2000, b"{}", b"[]"),
    "shard": (b"../", b"/etc/x.txt", b".pkl", b"x", b"g", b"L", b"S", b"2", b"\xff" * 8, b"\x80", b"7777777"),
    "yaml": (
        *(b"!!python/object/apply:os.system [id]", b"&a ", b"*a", b"<<: *a", b"!!binary ", b"!!timestamp x"),
        *(
            b"!!int ''",
            b"!!bool x",
            b"? [a]\n: b",
            b"1" * 5000,
            b"0x" + b"f" * 5000,
            b"1:2:3:4",
            b"2001-99-99",
        ),
        *(b"[" * 400, b"{a: " * 400, b"\t", b"---\n", b"extends: /dev/zero\n", b".inf", b".nan", b"\\ud800"),
    ),
    "origin": (b"iTXt", b"pictish\0", b"IEND", b"\x7f\xff\xff\xff", b"NaN", b"[" * 2000),
}
_allowed: str | None = None  # folder that may be written to while a reader is at work


GAP = b"\n#====\n"  # between two files that are one input


class Found(AssertionError):
    """An input did what none may do."""


@dataclass(frozen=True)
class Target:
    """A reader, true inputs to start from, and what makes a changed one look whole again."""

    read: Callable[[bytes, Path], None]  # of an input, and a folder of its own
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...]
    mend: Callable[[bytearray, random.Random], bytes] = lambda blob, chance: bytes(blob)


def check(target: Target, blob: bytes, folder: Path, *, measured: bool = False) -> str | None:
    """Give the reader an input; its refusal, None when it was taken. Found for everything else."""
    _warm(target)
    if measured:
        tracemalloc.start()
    begun = time.process_time()
    try:
        with _watched(folder):
            target.read(blob, folder)
        said = None
    except (ValueError, OSError) as error:
        said = str(error) or type(error).__name__
    except Found:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Found(f"{type(error).__name__}: {error}") from error
    finally:
        seconds = time.process_time() - begun
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
        tracemalloc.stop()
    if seconds > SECONDS:
        raise Found(f"took {seconds:.1f} s")
    if peak > MEMORY + TIMES * len(blob):
        raise Found(f"took {peak:,} bytes of memory for {len(blob):,}")
    if said is not None and (len(said) > LETTERS or "\n" in said):
        raise Found(f"an error of {len(said)} letters, or of several lines: {said[:100]!r}")
    return said


@cache
def _warm(target: Target) -> None:
    """What a first input has Python import and allocate is not the input's doing."""
    for blob in _seeds(target):
        with tempfile.TemporaryDirectory() as folder, suppress(ValueError, OSError):
            target.read(blob, Path(folder))


def changed(target: Target, chance: random.Random) -> bytes:
    """A true input with a few things changed."""
    blob = bytearray(chance.choice(_seeds(target)))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _change(blob, target, chance)
    return target.mend(blob, chance) if chance.random() < 0.7 else bytes(blob)


@cache
def _seeds(target: Target) -> list[bytes]:
    return target.seeds()


def _change(blob: bytearray, target: Target, chance: random.Random) -> None:
    place = chance.randrange(len(blob) + 1)
    length = min(chance.choice((1, 1, 2, 4, 8, 64, 512)), len(blob) - place)
    match chance.randrange(8):
        case 0 if place < len(blob):
            blob[place] ^= 1 << chance.randrange(8)
        case 1 if place < len(blob):
            blob[place] = chance.choice((0, 1, 0x20, 0x30, 0x7F, 0x80, 0xFF))
        case 2:
            del blob[place : place + length]
        case 3:
            blob[place:place] = chance.randbytes(chance.choice((1, 2, 8, 64)))
        case 4:
            blob[place:place] = blob[place : place + length]
        case 5:
            del blob[chance.randrange(len(blob) + 1) :]
        case 6:
            word = chance.choice(target.words)
            blob[place : place + chance.choice((0, len(word)))] = word
        case _:
            other = chance.choice(_seeds(target))
            start = chance.randrange(len(other) + 1)
            blob[place : place + length] = other[start : start + length]


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Inside, running and connecting is Found, and writing anywhere but to `folder`."""
    global _allowed
    _hook()
    _allowed = str(folder)
    try:
        yield
    finally:
        _allowed = None


@cache
def _hook() -> None:
    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if _allowed is None:
            return
        if event.startswith(FORBIDDEN):
            raise Found(f"{event} {arguments!r:.200}")
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes and not str(arguments[0]).startswith(_allowed):
            raise Found(f"writes {arguments[0]!r}")

    sys.addaudithook(audit)


# ---- the readers


def _read_tokens(blob: bytes, folder: Path) -> None:
    from pictish.data.tokens import TokenizedImage

    image = TokenizedImage.from_bytes(blob)
    assert TokenizedImage.from_bytes(image.to_bytes()) == image


def _token_blobs() -> list[bytes]:
    from pictish.data.tokens import TokenizedImage

    images = [
        TokenizedImage([1, 7, 2047], [0, 5, 63], (8, 8), (480, 640), "0123456789ab", 2048),
        TokenizedImage(list(range(40)), None, (8, 8), (64, 64), "0123456789ab", 2048),
        TokenizedImage([70_000], [300_000], (1000, 1000), (9, 9), "ffffffffffff", 100_000),
    ]
    return [image.to_bytes() for image in images]


def _mend_tokens(blob: bytearray, chance: random.Random) -> bytes:
    """The header's length and the checksum fit again."""
    end = blob.find(b"}}", 8)
    for more in range(3):
        if blob[end + 2 + more : end + 3 + more] == b"}":
            end += 1
    header = bytes(blob[8 : end + 2])
    body = bytes(blob[end + 2 :]).lstrip(b" ")
    header += b" " * (-len(header) % 8)
    whole = len(header).to_bytes(8, "little") + header + body
    place = whole.find(b'sha256\\":\\"')
    if place < 0:
        return whole
    start = place + len(b'sha256\\":\\"')
    blank = whole[:start] + b"0" * 64 + whole[start + 64 :]
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[start + 64 :]


def _read_manifest(blob: bytes, folder: Path) -> None:
    from pictish.data.token_folder import MANIFEST, PARTIAL, _read_partial, find_tokens, read_manifest
    from pictish.io.files import check_relative

    both = blob.split(GAP, 1)
    (folder / MANIFEST).write_bytes(both[0])
    (folder / PARTIAL).write_bytes(both[-1])
    refusals = []
    for read in (lambda: read_manifest(folder).files, lambda: getattr(_read_partial(folder), "files", {})):
        try:
            for name in read():
                check_relative(name)
        except ValueError as error:
            refusals.append(error)
    if not refusals:
        for file in find_tokens([folder]):
            assert file.path.resolve().is_relative_to(folder.resolve()), file.path
    if refusals:
        raise refusals[0]


def _manifests() -> list[bytes]:
    from pictish.data.token_folder import Entry, Header, OutputFolder

    header = Header("token-folder", "0123456789ab", 2048, {"budget": None, "seed": 3})
    found = []
    with tempfile.TemporaryDirectory() as name:
        with OutputFolder(Path(name), header, [], False) as output:
            for number in range(3):
                output.store(
                    f"sub/{number}.tokens",
                    b"x",
                    Entry(f"{number}.png", "0" * 64, "1" * 64, 4, left_out=("a",)),
                )
            partial = (Path(name) / "manifest.partial.jsonl").read_bytes()
            output.finish()
        found.append((Path(name) / "manifest.json").read_bytes() + GAP + partial)
    return found


def _read_shard(blob: bytes, folder: Path) -> None:
    from pictish.data.samples import DamagedSample, index_shard
    from pictish.data.shards import read_shard, scan_shard
    from pictish.io.files import check_relative

    path = folder / "a.tar"
    path.write_bytes(blob)
    read, scanned, refusals = [], [], []
    for into, reader in ((read, read_shard), (scanned, scan_shard)):
        try:
            for sample in reader(path):
                into.append(sample)
        except ValueError as error:
            refusals.append(error)
    keys = [sample["__key__"] for sample in read]
    assert keys == [key for key, _ in scanned], "read and scanned otherwise"
    for key in keys:
        check_relative(key)
    index = index_shard(path)
    for row in range(len(index)):
        try:
            index.read(row)
        except DamagedSample as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _shards() -> list[bytes]:
    from pictish.data.shards import ShardFile

    tokens = _token_blobs()[0]
    edit = {"edit": {"source": "a.png", "instruction": "red", "target": "b.tokens"}}
    document = {"document": [{"text": "see"}, {"image": "png"}]}
    question = {"questions": [{"question": "what?", "answer": "a cat"}], "captions": ["a", "b"]}
    found = []
    with tempfile.TemporaryDirectory() as name:
        for number, prefix in enumerate(("", "folder/" * 20, "ü" * 120)):
            path = Path(name) / f"{number}.tar"
            with ShardFile(path) as shard:
                shard.write(
                    f"{prefix}0", {"tokens": tokens, "txt": b"a red apple", "json": b'{"caption": "b"}'}
                )
                shard.write(
                    f"{prefix}1", {"a.png": b"x", "b.tokens": tokens, "json": json.dumps(edit).encode()}
                )
                shard.write(f"{prefix}2", {"png": b"x", "json": json.dumps(document).encode()})
                shard.write(f"{prefix}3", {"png": b"x", "json": json.dumps(question).encode()})
            found.append(path.read_bytes())
    return found


def _mend_shard(blob: bytearray, chance: random.Random) -> bytes:
    """Whole blocks again, and the checksums of what looks like headers fit."""
    blob += bytes(-len(blob) % 512)
    for start in range(0, len(blob), 512):
        block = blob[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            blob[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(blob)


def _read_config(blob: bytes, folder: Path) -> None:
    from pictish.configs import load, parse
    from pictish.decoder.config import TrainConfig as Decoder
    from pictish.io.plain_yaml import to_yaml
    from pictish.lm.config import TrainConfig as Language
    from pictish.tokenizer.config import TrainConfig as Tokens

    path = folder / "a.yaml"
    path.write_bytes(blob)
    raw = load(path)
    part = {"lm": Language, "decoder": Decoder}.get(str(raw.get("part")), Tokens)
    to_yaml(parse(part, raw, "a.yaml"))


def _configs() -> list[bytes]:
    from pictish.configs import shipped_names
    from pictish.configs.loader import SHIPPED

    texts = [(SHIPPED / f"{name}.yaml").read_bytes() for name in shipped_names()]
    return [*texts, b"a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}, e: 1e-4}\nextends: tiny/lm\n"]


def _read_model(blob: bytes, folder: Path) -> None:
    from pictish.io.model_folder import CONFIG, WEIGHTS, read_config, read_model_folder

    settings, _, weights = blob.partition(GAP)
    (folder / CONFIG).write_bytes(settings)
    (folder / WEIGHTS).write_bytes(weights)
    read_config(folder)
    read_model_folder(folder)


def _models() -> list[bytes]:
    import torch
    from safetensors.torch import save

    from pictish.configs import load
    from pictish.io.plain_yaml import to_yaml

    facts = {"part": "tokenizer", "format": 1, "encoder_sha256": "0" * 64}
    settings = to_yaml({**facts, "model": load("tiny/tokenizer")["model"]}).encode()
    tensors = {"a.weight": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.float16)}
    return [settings + GAP + save(tensors), b"a: 1" + GAP + save({"x": torch.zeros(0)}, {"k": "v"})]


def _mend_model(blob: bytearray, chance: random.Random) -> bytes:
    """The length of the weights' header fits again."""
    settings, gap, weights = bytes(blob).partition(GAP)
    end = weights.rfind(b"}}") + 2
    header = weights[8:end] + b" " * (-(end - 8) % 8)
    return settings + gap + len(header).to_bytes(8, "little") + header + weights[end:].lstrip(b" ")


def _read_origin(blob: bytes, folder: Path) -> None:
    from pictish.data.provenance import read_origin

    path = folder / "a.png"
    path.write_bytes(blob)
    read_origin(path)


def _origins() -> list[bytes]:
    import base64

    from PIL import Image

    from pictish.data.provenance import Origin, png_with_origin

    facts = {
        **{"command": "generate", "prompt": "a red apple", "pictures": (), "seed": 3, "size": 64, "steps": 0},
        **{"pictish": "0", "tokenizer": "0123456789ab", "lm": "0" * 12, "decoder": "0" * 12},
        "tokens": base64.b64encode(_token_blobs()[1]).decode(),
    }
    needed = {name for name, field in Origin.model_fields.items() if field.is_required()} - set(facts)
    usual = {"guidance": 3.0, "image_guidance": 1.5, "temperature": 1.0, "min_tokens": 1}
    facts |= {name: usual.get(name) for name in needed}
    return [png_with_origin(Image.new("RGB", (8, 8), "red"), Origin(**facts))]


def _mend_origin(blob: bytearray, chance: random.Random) -> bytes:
    """Length and checksum of the chunk fit again."""
    import zlib

    start, end = blob.find(b"iTXt"), blob.find(b"IDAT") - 8
    if not 8 < start < end:
        return bytes(blob)
    chunk = bytes(blob[start:end])
    blob[start - 4 : end + 4] = (
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    )
    return bytes(blob)


TARGETS = {
    "tokens": Target(_read_tokens, _token_blobs, WORDS["tokens"], _mend_tokens),
    "manifest": Target(_read_manifest, _manifests, WORDS["manifest"]),
    "shard": Target(_read_shard, _shards, WORDS["shard"], _mend_shard),
    "config": Target(_read_config, _configs, WORDS["yaml"]),
    "model": Target(_read_model, _models, WORDS["yaml"] + WORDS["tokens"], _mend_model),
    "origin": Target(_read_origin, _origins, WORDS["origin"], _mend_origin),
}
