"""Content words: what stays of a sentence, and which forms of a word are one."""

import pytest

from pictish.data.words import content_words, stem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Please draw me two red apples, in the style of noto!", ["two", "red", "apple", "noto"]),
        ("The SUN over the sea", ["sun", "sea"]),
        ("the dog's dog", ["dog"]),
        ("draw something, please", []),
        ("", []),
        ("?!", []),
    ],
)
def test_content_words(text, words):
    assert content_words(text) == [stem(word) for word in words]


@pytest.mark.parametrize(
    "forms",
    [
        ("apple", "apples"),
        ("smile", "smiles", "smiling", "smiled"),
        ("cherry", "cherries"),
        ("box", "boxes"),
        ("watch", "watches"),
        ("run", "runs", "running"),
        ("woman", "women", "woman's", "woman\u2019s"),
        ("kiss", "kisses", "kissing"),
    ],
)
def test_forms_of_a_word_have_one_stem(forms):
    assert len({stem(form) for form in forms}) == 1


def test_short_words_and_words_that_only_look_inflected_keep_apart():
    assert len({stem(word) for word in ("ring", "red", "bed", "bus", "iris", "glass", "king", "wing")}) == 8
