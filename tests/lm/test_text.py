"""Ids back to text: what was cut inside a letter is left out."""

import pytest

from pictish.lm.text import decode_text, train_text_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(["a red apple", "the sea"], 300)


@pytest.mark.parametrize("text", ["ein Äpfelchen ü", "हिन्दी", "苹果", "🍎🍏"])
def test_a_cut_letter_is_left_out(tokenizer, text):
    ids = tokenizer.encode(text)
    for count in range(len(ids) + 1):
        found = decode_text(tokenizer, ids[:count])
        assert text.startswith(found)
        assert len(found) == len(tokenizer.decode(ids[:count]).replace("\ufffd", ""))
    assert decode_text(tokenizer, ids) == text


def test_special_ids_are_shown_or_not(tokenizer):
    ids = [*tokenizer.encode("the sea"), tokenizer.eos_token_id]
    assert decode_text(tokenizer, ids) == "the sea<|end|>"
    assert decode_text(tokenizer, ids, skip_special_tokens=True) == "the sea"
