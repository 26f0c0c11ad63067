"""A SentencePiece BPE model (`tokenizer.model`, as LLaMA has it) as a fast tokenizer that knows images.

The file is a protocol buffer of pieces with scores (sentencepiece_model.proto of google/sentencepiece). The
few fields that matter are read here, so that neither sentencepiece nor protobuf is needed.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from pictish.lm.vocabulary import BEGIN, END, code_string

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
SPACE = "\u2581"  # what SentencePiece writes for a space


class Piece(NamedTuple):
    """One string of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


def read_pieces(path: Path) -> list[Piece]:
    """The vocabulary in a `tokenizer.model`; ValueError when it is damaged, or no BPE with bytes."""
    try:
        blob = path.read_bytes()
        pieces, algorithm = [], BPE
        for number, value in _fields(blob):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                algorithm = dict(_fields(value)).get(3, algorithm)
    except (AttributeError, IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, or no SentencePiece model; copy it again") from error
    kinds = {piece.kind for piece in pieces}
    if algorithm != BPE or not {NORMAL, UNKNOWN, BYTE} <= kinds <= {NORMAL, UNKNOWN, CONTROL, BYTE}:
        raise ValueError(f"{path}: another kind of text tokenizer; a SentencePiece BPE with bytes would fit")
    return pieces


def picture_tokenizer(pieces: list[Piece], codes: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer with the ids of `pieces`, and behind them `[IMG]`, `[/IMG]` and `codes` codes.

    Like LLaMA's it puts a BOS before a text, where special tokens are asked for.
    """
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    control = [piece.text for piece in pieces if piece.kind == CONTROL]
    if not {"<s>", "</s>"} <= set(control):
        raise ValueError(f"the text tokenizer's control pieces are {control}; <s> and </s> were looked for")
    bpe = models.BPE(ids, _merges(pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", "<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    strings = [unknown, *control, BEGIN, END, *map(code_string, range(codes))]
    tokenizer.add_special_tokens([AddedToken(string, normalized=False) for string in strings])
    assert tokenizer.get_vocab_size() == len(pieces) + 2 + codes
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token=unknown
    )


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece joins them: of the piece with the highest score first."""
    found = []
    for number, piece in enumerate(pieces):
        if piece.kind != NORMAL:
            continue
        splits = ((piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text)))
        known = [(left, right) for left, right in splits if left in ids and right in ids]
        found += [(-piece.score, number, ids[left], ids[right], left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(found)]


def _piece(blob: bytes) -> Piece:
    values = dict(_fields(blob))
    (score,) = struct.unpack("<f", values.get(2, b"\0\0\0\0"))
    return Piece(values[1].decode("utf-8"), score, values.get(3, NORMAL))


def _fields(blob: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values, int or bytes, of a message's fields; IndexError where it ends too early."""
    place = 0
    while place < len(blob):
        key, place = _varint(blob, place)
        match key & 7:
            case 0:
                value: Any
                value, place = _varint(blob, place)
            case 1 | 5 as wire:
                size = 8 if wire == 1 else 4
                value, place = blob[place : place + size], place + size
            case 2:
                size, place = _varint(blob, place)
                value, place = blob[place : place + size], place + size
            case other:
                raise IndexError(f"wire type {other}")
        if place > len(blob):
            raise IndexError("cut short")
        yield key >> 3, value


def _varint(blob: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = blob[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
