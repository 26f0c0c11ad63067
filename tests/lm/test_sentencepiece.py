"""A `tokenizer.model` written by hand: its pieces, and the ids that SentencePiece's own rule gives."""

import itertools
import random
import struct

import pytest

from pictish.lm.sentencepiece import SPACE, Piece, picture_tokenizer, read_pieces
from pictish.lm.vocabulary import text_ids, vocabulary_of

WORDS = [
    "t",
    "h",
    "e",
    "a",
    "c",
    SPACE,
    SPACE + "t",
    "he",
    SPACE + "the",
    "at",
    SPACE + "c",
    "cat",
    "th",
    "ea",
]
CONTROL = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
BYTES = [Piece(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]


def pieces() -> list[Piece]:
    """Scores in another order than ids."""
    scores = [-float(place * 5 % len(WORDS)) for place in range(len(WORDS))]
    return [*CONTROL, *BYTES, *(Piece(word, score, 1) for word, score in zip(WORDS, scores, strict=True))]


def field(number: int, blob: bytes) -> bytes:
    assert len(blob) < 128
    return bytes([number << 3 | 2, len(blob)]) + blob


def written(found: list[Piece], algorithm: int = 2) -> bytes:
    blob = b""
    for piece in found:
        inner = field(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
        blob += field(1, inner + (b"" if piece.kind == 1 else bytes([0x18, piece.kind])))
    return blob + field(2, bytes([0x18, algorithm])) + field(3, field(1, b"identity"))


def by_the_rule(text: str) -> list[int]:
    """Of all neighbours that make a piece the one with the highest score is joined, the first of equals."""
    known = {piece.text: (piece.score, place) for place, piece in enumerate(pieces()) if piece.kind == 1}
    parts = list(SPACE + text.replace(" ", SPACE))
    while True:
        joined = [a + b for a, b in itertools.pairwise(parts)]
        possible = [(known[one][0], -place) for place, one in enumerate(joined) if one in known]
        if not possible:
            break
        place = -max(possible)[1]
        parts[place : place + 2] = [joined[place]]
    ids = []
    for part in parts:
        ids += [known[part][1]] if part in known else [3 + byte for byte in part.encode()]
    return ids


def test_pieces_are_read_as_they_were_written(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(written(pieces()))
    assert read_pieces(tmp_path / "tokenizer.model") == pieces()


def test_ids_follow_the_scores_and_other_letters_are_bytes():
    tokenizer = picture_tokenizer(pieces(), 3)
    chooser = random.Random(0)
    for _ in range(100):
        text = "".join(chooser.choice(["t", "h", "e", "a", "c", " ", "the", "cat", "é"]) for _ in range(12))
        assert text_ids(tokenizer, text) == by_the_rule(text), text
        assert tokenizer.decode(text_ids(tokenizer, text)) == text


def test_pictures_have_the_ids_behind_the_pieces():
    tokenizer = picture_tokenizer(pieces(), 3)
    vocabulary = vocabulary_of(tokenizer)
    count = len(pieces())
    assert (vocabulary.text, vocabulary.codes, vocabulary.has_mask, vocabulary.eos) == (count, 3, False, 2)
    assert tokenizer.convert_tokens_to_ids(["[IMG]", "[/IMG]", "<code-00002>"]) == [
        count,
        count + 1,
        count + 4,
    ]
    assert max(text_ids(tokenizer, "[IMG] the cat")) < count  # typed, it stays text
    assert tokenizer("the cat").input_ids[0] == 1


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (written(pieces())[:-3], "damaged"),
        (b"\x0a\xff\xff\xff", "damaged"),
        (b"no model at all", "damaged"),
        (written(pieces(), algorithm=1), "another kind of text tokenizer"),
        (written([*CONTROL, Piece("a", 0.0, 1)]), "another kind of text tokenizer"),
    ],
)
def test_another_file_is_refused_in_a_line(blob, message, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(blob)
    with pytest.raises(ValueError, match=message) as refused:
        read_pieces(tmp_path / "tokenizer.model")
    assert "\n" not in str(refused.value)
