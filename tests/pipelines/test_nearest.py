"""Nearest captions: by words alone, by an embedder, and by a tiny BERT in a zip, with its cache."""

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from pictish.pipelines import sentences
from pictish.pipelines.nearest import by_words, nearest_captions
from pictish.pipelines.sentences import embedded, minilm

CAPTIONS = [
    "a dog",
    "a happy face",
    "a red apple",
    "grinning cat",
    "hot dog",
    "something to eat",
    "two pears",
]


def best(prompt):
    (found,) = by_words([prompt], CAPTIONS, 3)
    return found


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("please draw a dog", "a dog"),
        ("red apples", "a red apple"),
        ("eating", "something to eat"),
        ("a red aple", "a red apple"),
        ("a cat that grins", "grinning cat"),
    ],
)
def test_words_find_the_caption_in_other_forms_and_misspelt(prompt, caption):
    found = best(prompt)
    assert found.captions[0].caption == caption
    assert not found.far


def test_all_words_in_one_caption_score_one_and_the_shortest_comes_first():
    found = best("dog")
    assert [(near.caption, near.score) for near in found.captions[:2]] == [("a dog", 1), ("hot dog", 1)]


def test_words_of_no_caption_are_far_and_three_are_named():
    found = best("a quantum flux")
    assert found.far
    assert len(found.captions) == 3
    assert found.captions[0].score < 0.1


@pytest.mark.parametrize("prompt", ["draw something, please", "", "?!"])
def test_a_prompt_without_content_words_is_not_called_far(prompt):
    assert best(prompt).captions == ()
    assert not best(prompt).far


def test_without_captions_nothing_is_far():
    (found,) = nearest_captions(["a quantum flux"], [])
    assert not found.far


def fake(texts):
    """Three axes: animals, other things that captions have, and what no caption has."""
    animals, others = ("dog", "puppy", "cat"), ("apple", "pear", "face", "eat")
    kinds = [0 if any(w in t for w in animals) else 1 if any(w in t for w in others) else 2 for t in texts]
    return np.eye(3, dtype=np.float32)[kinds]


def meaning(captions):
    return fake, fake(captions)


def test_meaning_knows_words_that_no_caption_has():
    (words,) = nearest_captions(["a puppy"], CAPTIONS)
    assert words.far
    puppy, far = nearest_captions(["a puppy", "a quantum flux"], CAPTIONS, 2, meaning)
    assert (puppy.measure, puppy.far) == ("meaning", False)
    assert puppy.captions[0].caption in ("a dog", "grinning cat", "hot dog")
    assert far.far
    assert len(far.captions) == 2


def test_meaning_is_not_asked_where_words_settle_it_and_words_do_where_it_cannot_be():
    def fails(captions):
        raise AssertionError("asked")

    (found,) = nearest_captions(["the dog"], CAPTIONS, meaning=fails)
    assert (found.measure, found.far) == ("words", False)
    (found,) = nearest_captions(["a quantum flux"], CAPTIONS, meaning=lambda captions: None)
    assert (found.measure, found.far) == ("words", True)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A zip with a BERT of random weights and ten words; the cache lies in tmp_path/cache."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "apple", "red", "happy"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    weights = BertModel(config).state_dict() | {"embeddings.position_ids": torch.arange(64)[None]}
    files = {
        "config.json": config.to_json_string().encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "model.safetensors": save(weights),
    }

    def write(**changed):
        with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, blob in files.items():
                blob = changed.get(name.partition(".")[0], blob)
                if blob is not None:
                    archive.writestr(name, blob)
        return tmp_path / "model.zip"

    monkeypatch.setattr(sentences, "installed", lambda: tmp_path / "model.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write()
    return write


def test_texts_become_rows_of_unit_length_whatever_their_company(package):
    embed = minilm(package())
    rows = embed(["a dog", "a happy red apple", "a cat " * 100])
    assert rows.shape == (3, 16)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert embed(["a dog"])[0] == pytest.approx(rows[0], abs=1e-5)
    assert embed(["a dog"])[0] @ rows[1] < 0.999


def test_captions_are_embedded_once_and_a_damaged_cache_is_replaced(package, tmp_path, monkeypatch):
    captions = ["a cat", "a dog", "a red apple"]
    _, rows = embedded(captions)
    (kept,) = (tmp_path / "cache" / "pictish" / "captions").iterdir()
    embed, again = embedded(captions)
    assert again == pytest.approx(rows, abs=1e-3)
    assert np.argmax(embed(["a dog"]) @ again.T) == 1
    for blob in (b"", b"no tensors", save({"rows": torch.zeros(3, 16)}), save({"rows": torch.ones(2, 16)})):
        kept.write_bytes(blob)
        assert embedded(captions)[1] == pytest.approx(rows, abs=1e-3)
        assert kept.read_bytes() != blob
    embedded([*captions, "a happy dog"])
    assert len(list(kept.parent.iterdir())) == 2


def test_where_nothing_can_be_kept_words_decide(package, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the cache would be")
    assert embedded(["a cat"]) is None
    monkeypatch.setattr(sentences, "installed", lambda: None)
    assert embedded(["a cat"]) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"config": b"[]"},
        {"config": json.dumps({"vocab_size": 1 << 40}).encode()},
        {"config": b" " * (1 << 17)},
        {"tokenizer": b"{}"},
        {"model": b"\x80\x04."},
        {"model": save({"strange": torch.zeros(2)})},
        {"model": None},
    ],
)
def test_a_zip_of_something_else_is_refused_in_one_line(package, changed):
    with pytest.raises(ValueError, match="no MiniLM") as caught:
        minilm(package(**changed))
    assert "\n" not in str(caught.value)
