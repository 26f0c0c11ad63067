"""Names of drawn images: readable, short, and different for different prompts."""

import pytest

from pictish.pipelines.image_requests import LONGEST, names_of, slug


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red apple", "a-red-apple"),
        ("A red apple, noto style", "a-red-apple-noto-style"),
        ("woman-student_2", "woman-student-2"),
        ("हिन्दी किताब", "हिन्दी-किताब"),  # vowel signs are marks, which stay on their letters
        ("แอปเปิ้ลสีแดง", "แอปเปิ้ลสีแดง"),
        ("cafe\u0301", "café"),
        ("כֶּלֶב", "כֶּלֶב"),
    ],
)
def test_words_make_the_name(prompt, name):
    assert slug(prompt) == name


def test_signs_alone_have_names_of_their_own():
    prompts = ["!", "?", "!!", "🍎", "🍏", "...", "¿?", " - ", "\udcff", "❤️", "❤"]
    names = [slug(prompt) for prompt in prompts]
    assert len(set(names)) == len(prompts)
    assert all(name.startswith("picture-") for name in names)


def test_prompts_that_differ_in_punctuation_only_have_different_names():
    prompts = [
        "a cat",
        "a cat!",
        "a cat?",
        "a cat.",
        "a  cat",
        "a 'cat'",
        "a/cat",
        "a: cat",
        "(a cat)",
        "a,cat",
    ]
    assert len({slug(prompt) for prompt in prompts}) == len(prompts)
    assert slug("a cat!") == slug("a cat!")
    assert slug("a cat!").startswith("a-cat-")


def test_what_shares_a_name_is_told_apart():
    prompts = ["a t-shirt", "a t shirt", "A t-shirt", "a dog", "a dog"]
    names = names_of(prompts)
    assert len(set(names[:3])) == 3
    assert names[3:] == ["a-dog", "a-dog"]  # one prompt twice; refused by who writes
    assert names_of(prompts[::-1]) == names[::-1]


def test_long_prompts_are_cut_between_letters():
    for letter in ("a", "ж", "漢", "𐍈"):
        one, other = slug(letter * 200), slug(letter * 201)
        assert one != other
        assert len(one.encode()) <= LONGEST + 9
        assert "\ufffd" not in one
