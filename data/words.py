"""Content words of short English texts: what a caption is about, whatever form its words have."""

import functools
import re
import unicodedata

from pictish.io.files import printable

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
# Function words, and the words of a request that say nothing about what is to be drawn.
STOP_WORDS = frozenset(
    """
    a an the this that these those some any my your his her its our their and or but nor of in on at by to
    from for with without into onto over under behind beside between near as is are was were be been being
    it he she they them we you i me there here very so too just also not no who which what how when where
    can could would should will may do does did has have had let please draw drawing drawn paint painting
    painted sketch show showing shown make create generate give want like picture pictures image images photo
    photos photograph icon icons illustration portrait symbol style styles something someone somebody anything
    thing things one kind sort looks look looking
    """.split()  # noqa: SIM905
)
_IRREGULAR = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "kids": "kid", "mice": "mouse",
    "feet": "foot", "teeth": "tooth", "geese": "goose", "leaves": "leaf", "wolves": "wolf", "knives": "knife",
    "colour": "color", "coloured": "color", "grey": "gray", "ate": "eat", "eaten": "eat",
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, in their order; marks are part of the letter they stand on."""
    text = text.lower()
    shapes = text if text.isascii() else "".join("x" if is_mark(char) else char for char in text)
    return [text[slice(*found.span())] for found in _WORD.finditer(shapes)]


def is_mark(char: str) -> bool:
    """Whether a character is a combining one: an accent, or a vowel sign of Devanagari, Thai, Arabic, ..."""
    return unicodedata.category(char).startswith("M")


def check_text(name: str, text: str) -> None:
    """ValueError naming a text that was made of bytes that are no UTF-8, as command lines may hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f'{name}: "{printable(text)[:60]}" is not valid UTF-8') from None


def content_words(text: str) -> list[str]:
    """Stems of the words that say what a text is about, each once, in their order; may be empty."""
    return list(dict.fromkeys(stem(word) for word in words_of(text) if word not in STOP_WORDS))


@functools.lru_cache(1 << 14)
def stem(word: str) -> str:
    """A lower-case word without its ending, so that `apples`, `smiling` and `smiles` meet their kin.

    Light on purpose: plurals, -ing, -ed and a final e; words of fewer than four letters stay as they are.
    """
    word = word.replace("\u2019", "'").removesuffix("'s")
    word = _IRREGULAR.get(word, word)
    if len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        word = f"{word[:-3]}y"
    elif word.endswith(("ches", "shes", "sses", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        left = word.removesuffix(ending)
        if left != word and len(left) > 2 and re.search("[aeiouy]", left):
            word = left[:-1] if left[-1] == left[-2] and left[-1] not in "lsz" else left
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word
