"""From samples to documents: choices follow seed and number alone, raw images are tokenized together."""

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pictish.data.mixture import Mixture, Source
from pictish.data.shards import ShardFile
from pictish.lm.config import DropoutConfig, SourceConfig
from pictish.lm.documents import Maker, some_documents
from pictish.lm.sequence import picture_of
from pictish.lm.vocabulary import Vocabulary
from tests.lm.pictures import CODES, FINGERPRINT, caption, encoded, pair_shard, picture

VOCABULARY = Vocabulary(text=300, codes=CODES, eos=1)


def encode(text: str) -> list[int]:
    return [ord(character) % 250 + 2 for character in text]


def maker(**changes) -> Maker:
    settings = {
        "vocabulary": VOCABULARY,
        "encode": encode,
        "eos": 1,
        "sources": {"all": SourceConfig(paths=("unused",), caption=0.4)},
        "dropout": DropoutConfig(),
        "longest": 400,
        "encode_images": None,
        "seed": 0,
    }
    return Maker(**{**settings, **changes})


def mixture(*paths: Path, position=None, **changes) -> Mixture:
    return Mixture([Source("all", paths)], 0, tokenizer=FINGERPRINT, position=position, **changes)


def take(made: Maker, stream: Mixture, count: int):
    return list(islice(made.documents(stream), count))


def test_tasks_come_as_often_as_configured(tmp_path):
    pair_shard(tmp_path / "a.tar", 200)
    documents = [document for document, _ in take(maker(), mixture(tmp_path / "a.tar"), 400)]
    tasks = [document.task for document in documents]
    assert set(tasks) == {"caption", "drawing"}
    assert tasks.count("caption") / 400 == pytest.approx(0.4, abs=0.08)
    bare = [d for d in documents if d.task == "drawing" and d.ids[0] == VOCABULARY.begin]
    assert len(bare) / tasks.count("drawing") == pytest.approx(0.15, abs=0.07), "text + both"


def test_the_stream_goes_on_with_the_very_next_document(tmp_path):
    pair_shard(tmp_path / "a.tar", 50)
    whole = take(maker(), mixture(tmp_path / "a.tar"), 120)
    for stop in (1, 31, 32, 33, 77):
        position = json.loads(json.dumps(whole[stop - 1][1]))
        rest = take(maker(), mixture(tmp_path / "a.tar", position=position), 120 - stop)
        for (document, _), (again, _) in zip(whole[stop:], rest, strict=True):
            assert np.array_equal(document.ids, again.ids)
            assert np.array_equal(document.learn, again.learn)


def test_raw_pictures_are_tokenized_together_and_broken_ones_named(tmp_path):
    with ShardFile(tmp_path / "raw.tar") as shard:
        for number in range(40):
            shard.write(
                f"{number:02d}", {"png": b"broken" if number == 7 else b"%d" % number, "txt": b"a red car"}
            )
    calls: list[int] = []

    def encode_images(pictures):
        calls.append(len(pictures))
        return [
            ValueError("cannot be decoded")
            if p.blob == b"broken"
            else encoded([int(p.blob) % CODES], None, np.full((1, 3), int(p.blob), np.float32))
            for p in pictures
        ]

    stream = mixture(tmp_path / "raw.tar")
    documents = [document for document, _ in take(maker(encode_images=encode_images), stream, 60)]
    assert min(calls) >= 32, "many at a time"
    codes = {int(VOCABULARY.codes_of(d.ids[VOCABULARY.is_code(d.ids)])[0]) for d in documents}
    assert codes <= set(range(CODES))
    assert len(codes) > 20
    assert any("raw.tar/07" in line for line in stream.report.lines())
    continuous = {"all": SourceConfig(paths=("unused",), caption=1, continuous=1)}
    (document, _), *_ = take(
        maker(encode_images=encode_images, sources=continuous), mixture(tmp_path / "raw.tar"), 1
    )
    assert document.features is not None
    assert not VOCABULARY.is_code(document.ids).any()


def test_documents_of_a_placed_model_tell_where_codes_lie(tmp_path):
    """Of token files and of raw images; tokens without cells are left out and named."""
    placed = replace(VOCABULARY, skips=15)
    chance = np.random.default_rng(0)
    with ShardFile(tmp_path / "a.tar") as shard:
        for number in range(8):
            text = caption(chance)
            tokens = picture(text, chance)
            tokens = replace(tokens, cells=None) if number == 3 else tokens
            shard.write(f"{number:02d}", {"tokens": tokens.to_bytes(), "txt": text.encode()})
        shard.write("08", {"png": b"x", "txt": b"a red car"})

    def encode_images(pictures):
        return [encoded([7, 9], [4, 15], np.zeros((2, 3), np.float32)) for _ in pictures]

    stream = mixture(tmp_path / "a.tar")
    documents = [d for d, _ in take(maker(vocabulary=placed, encode_images=encode_images), stream, 16)]
    found = set()
    for document in documents:
        begin, end = (int(np.flatnonzero(document.ids == marker)[0]) for marker in (placed.begin, placed.end))
        codes, cells = picture_of(document.ids[begin : end + 1], placed)
        assert cells.tolist() == ([4, 15] if codes.tolist() == [7, 9] else [1, 2, 6, 11, 15][: len(codes)])
        found.add(len(codes))
    assert found == {2, 4, 5}
    assert [line for line in stream.report.lines() if "codes without cells" in line and "a.tar/03" in line]


def test_raw_pictures_without_a_tokenizer_are_one_line(tmp_path):
    with ShardFile(tmp_path / "raw.tar") as shard:
        shard.write("0", {"png": b"x", "txt": b"a red car"})
    with pytest.raises(ValueError, match="nothing here to tokenize"):
        take(maker(), mixture(tmp_path / "raw.tar"), 1)


def test_features_of_tokens_alone_cannot_be_had(tmp_path):
    pair_shard(tmp_path / "a.tar", 5)
    continuous = {"all": SourceConfig(paths=("unused",), caption=1, continuous=1)}
    with pytest.raises(ValueError, match="need the image itself"):
        take(maker(sources=continuous), mixture(tmp_path / "a.tar"), 1)


def test_a_document_longer_than_a_row_is_left_out_and_named(tmp_path):
    chance = np.random.default_rng(0)
    with ShardFile(tmp_path / "a.tar") as shard:
        for number in range(12):
            text = caption(chance)
            words = (text + " very" * 100 if number == 3 else text).encode()
            shard.write(f"{number:02d}", {"tokens": picture(text, chance).to_bytes(), "txt": words})
    stream = mixture(tmp_path / "a.tar")
    documents = [document for document, _ in take(maker(longest=60), stream, 24)]
    assert max(map(len, documents)) <= 60
    assert stream.report.lines() == ["1 skipped, longer than a row of 60 tokens: a.tar/03"]
    with pytest.raises(ValueError, match=r"a\.tar/03"):
        take(maker(longest=60), mixture(tmp_path / "a.tar", strict=True), 24)


def test_validation_takes_no_sample_twice(tmp_path):
    chance = np.random.default_rng(0)
    with ShardFile(tmp_path / "a.tar") as shard:
        for number in range(12):
            text = caption(chance)
            tokens = picture(text, chance).to_bytes() if number % 3 else b"broken"
            shard.write(f"{number:02d}", {"tokens": tokens, "txt": f"{text} {number}".encode()})
    stream = mixture(tmp_path / "a.tar")
    found = some_documents(maker(), stream, 100)
    assert len({document.ids.tobytes() for document in found}) == len(found) == 8
    assert len(some_documents(maker(), mixture(tmp_path / "a.tar"), 5)) == 5


def test_another_seed_chooses_otherwise(tmp_path):
    pair_shard(tmp_path / "a.tar", 50)
    made = partial(take, stream=mixture(tmp_path / "a.tar"), count=50)
    first = [document.task for document, _ in made(maker())]
    other = take(replace(maker(), seed=1), mixture(tmp_path / "a.tar"), 50)
    assert first != [document.task for document, _ in other]
