"""captions.json: which captions are kept, what is refused, and that training writes it."""

import json

import pytest

from pictish.configs import load, parse
from pictish.data.mixture import Source
from pictish.data.shards import ShardFile
from pictish.lm import captions as file
from pictish.lm.captions import CAPTIONS, known_captions, read_captions, select, to_bytes
from pictish.lm.config import TrainConfig
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.train import train
from tests.lm.pictures import CODES, FINGERPRINT, pair_shard, picture


def shard_of(path, *samples):
    """A shard of one image with many captions for each sample."""
    import numpy as np

    tokens = picture("a red apple", np.random.default_rng(0)).to_bytes()
    with ShardFile(path) as shard:
        for number, texts in enumerate(samples):
            shard.write(f"{number:04d}", {"tokens": tokens, "json": json.dumps({"captions": texts}).encode()})


def test_the_plainest_of_captions_that_say_the_same_is_kept(tmp_path):
    shard_of(
        tmp_path / "a.tar",
        ["red apple", "please draw a red apple", "an apple,\n red"],
        ["a happy dog", "red apples", "draw something"],
    )
    pair_shard(tmp_path / "b.tar", 30)
    sources = [Source("a", (tmp_path / "a.tar",)), Source("b", (tmp_path / "b.tar",))]
    found = known_captions(sources)
    assert found == sorted(set(found))
    assert {"red apple", "a happy dog", "a blue car"} <= set(found)
    assert len(found) == 13  # of twelve that are made up, one is said already: the apple
    assert known_captions(reversed(sources), seed=3) == found


def test_of_too_many_those_with_new_words_are_kept(monkeypatch):
    monkeypatch.setattr(file, "MOST", 3)
    assert select(["red car", "red", "car", "blue car", "car blue red", "a quince"]) == [
        "a quince",
        "blue car",
        "red car",
    ]


def test_what_is_written_is_read(tmp_path):
    (tmp_path / CAPTIONS).write_bytes(to_bytes(["b ü", "a", "a"]))
    assert read_captions(tmp_path / CAPTIONS) == ["a", "b ü"]
    assert read_captions(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"format": "pictish-captions", "version": 2, "captions": []}',
        b'{"format": "pictish-captions", "version": 1}',
        b'{"format": "pictish-captions", "version": 1, "captions": [1]}',
        b'{"format": "pictish-captions", "version": 1, "captions": [""]}',
        b'{"format": "pictish-captions", "version": 1, "captions": ["a\\u001b[2J"]}',
        b'{"format": "pictish-captions", "version": 1, "captions": ["a\\nb"]}',
        b'{"format": "pictish-captions", "version": 1, "captions": ["\\ud800"]}',
        to_bytes(["a" * 201]),
        to_bytes(map(str, range(file.MOST + 1))),
        b" " * (file.MOST_BYTES + 1),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path, blob):
    (tmp_path / CAPTIONS).write_bytes(blob)
    with pytest.raises(ValueError, match="captions of a model") as caught:
        read_captions(tmp_path / CAPTIONS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / CAPTIONS)
    with pytest.raises(ValueError, match="not a regular file"):
        read_captions(tmp_path / CAPTIONS)


def test_training_writes_the_captions_of_what_it_learned_to_draw(tmp_path):
    pair_shard(tmp_path / "drawn.tar", 30)
    shard_of(tmp_path / "described.tar", ["a quince"])
    overrides = [
        f"data.train.pictures={{paths: [{tmp_path}/drawn.tar], caption: 0}}",
        f"data.train.described={{paths: [{tmp_path}/described.tar], caption: 1}}",
        "stages=[{name: one, steps: 2, warmup: 0}]",
    ]
    raw = load("tiny/lm", overrides)
    train(parse(TrainConfig, raw, "test"), tmp_path / "run", ImageTokens(FINGERPRINT, CODES, 16, 12), "cpu")
    found = read_captions(tmp_path / "run" / "model" / CAPTIONS)
    assert len(found) == 12
    assert "a quince" not in found
    UnifiedModel.from_folder(tmp_path / "run" / "model").save(tmp_path / "run" / "model", overwrite=True)


def test_what_is_written_can_be_read(tmp_path):
    captions = ["لامپ می\u200cدرخشد", "a family \U0001f468\u200d\U0001f469", "a \x07bell", "red\ud800 moon"]
    (tmp_path / CAPTIONS).write_bytes(to_bytes(select(captions)))
    found = read_captions(tmp_path / CAPTIONS)
    assert len(found) == 4
    assert {"a bell", "red moon"} < set(found)
