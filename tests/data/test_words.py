"""Content words: what stays of a sentence, and which forms of a word are one."""

import pytest

from pictish.data.words import check_text, content_words, stem, words_of


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("लाल सेब", ["लाल", "सेब"]),
        ("แอปเปิ้ล แดง", ["แอปเปิ้ล", "แดง"]),
        ("un cafe\u0301 noir", ["un", "cafe\u0301", "noir"]),
        ("Bob's \u2019x d'or_", ["bob's", "x", "d'or"]),
    ],
)
def test_marks_belong_to_the_letter_they_stand_on(text, words):
    assert words_of(text) == words


def test_a_text_of_bytes_that_are_no_utf8_is_named():
    check_text("prompt", "любой текст 🍎")
    with pytest.raises(ValueError, match=r'^question: "a .udcff" is not valid UTF-8$'):
        check_text("question", "a \udcff")
