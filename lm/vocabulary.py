"""Vocabulary: which id is text, which a code of a picture; and how any causal LM comes to have such ids.

    0 .. text-1   text     text+1   [/IMG]              text+2+codes   [MASK], unless has_mask is False
    text          [IMG]    text+2   the first code      text+3+codes   size

The order of the first three is LaVIT's (arXiv 2309.04669): 32000, 32001, 32002. No other module of pictish
adds or subtracts an offset.
"""

import re
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

BEGIN, END, MASK = "[IMG]", "[/IMG]", "[MASK]"
_CODE = re.compile(r"<code-(\d{5,})>")

Ids = TypeVar("Ids", npt.NDArray[Any], Tensor)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a language model that reads and writes pictures; ValueError for impossible counts."""

    text: int  # ids below are the text tokenizer's
    codes: int  # entries of the image tokenizer's codebook
    has_mask: bool = True  # imported LaVIT models have none
    eos: int | None = None  # the text id that ends a text; None: the tokenizer has none
    unspoken: tuple[int, ...] = ()  # text ids that no text holds: padding, BOS, unused ones
    blank: frozenset[int] = frozenset()  # text ids that show nothing: spaces, special ones

    def __post_init__(self) -> None:
        if self.text < 0 or self.codes < 1:
            raise ValueError(f"{self.text} text ids and {self.codes} codes; 0 and 1 are the least")

    @property
    def begin(self) -> int:
        """The id of `[IMG]`."""
        return self.text

    @property
    def end(self) -> int:
        """The id of `[/IMG]`."""
        return self.text + 1

    @property
    def first_code(self) -> int:
        """The id of code 0."""
        return self.text + 2

    @property
    def mask(self) -> int | None:
        """The id of `[MASK]`, if there is one."""
        return self.first_code + self.codes if self.has_mask else None

    @property
    def size(self) -> int:
        """How many ids there are; a model may have more rows, which mean nothing."""
        return self.first_code + self.codes + self.has_mask

    def ids_of(self, codes: Ids) -> Ids:
        """Ids of `codes` of any shape, int64; ValueError for what is no code."""
        codes = _int64(codes)
        _check(codes, (codes >= 0) & (codes < self.codes), f"codes 0 to {self.codes - 1}")
        return codes + self.first_code

    def codes_of(self, ids: Ids) -> Ids:
        """Codes of `ids` of any shape, int64; ValueError for what is no code's id."""
        ids = _int64(ids)
        last = self.first_code + self.codes - 1
        _check(ids, self.is_code(ids), f"ids {self.first_code} to {last} of codes")
        return ids - self.first_code

    def is_code(self, ids: Ids) -> Ids:
        """Whether each of `ids` is a code's, bool."""
        return (ids >= self.first_code) & (ids < self.first_code + self.codes)


def code_string(code: int) -> str:
    """What the text tokenizer calls a code: `<code-00042>`."""
    return f"<code-{code:05d}>"


def widen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    codes: int,
    has_mask: bool = True,
    *,
    generator: torch.Generator,
) -> Vocabulary:
    """Give a causal LM and its fast tokenizer, in place, the ids of pictures.

    New rows of embedding and head are drawn around the old ones' mean with their spread, dimension by
    dimension. Saved, both load with `AutoModelForCausalLM` and `AutoTokenizer`. ValueError when the tokenizer
    already knows one of the new strings, or is not a fast one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"a fast tokenizer was asked for, {type(tokenizer).__name__} is a slow one")
    known = tokenizer.get_vocab()
    strings = [BEGIN, END, *map(code_string, range(codes)), *([MASK] if has_mask else [])]
    taken = [string for string in strings if string in known]
    if taken:
        raise ValueError(f"the tokenizer already has {len(taken)} of the tokens to add, {taken[0]} first")
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    used = max(known.values()) + 1
    text = max(rows, used)
    # A model often has more rows than its tokenizer has strings (padded to a multiple of 64 or more), but a
    # tokenizer numbers new strings without a gap: strings that nobody writes fill it.
    unused = [f"<unused-{row:06d}>" for row in range(used, text)]
    plain = [AddedToken(string, special=True, normalized=False) for string in unused + strings]
    tokenizer.add_tokens(plain, special_tokens=True)
    vocabulary = vocabulary_of(tokenizer)
    assert (vocabulary.text, vocabulary.codes, vocabulary.has_mask) == (text, codes, has_mask), vocabulary
    _add_rows(model, vocabulary.size, min(rows, used), generator)
    return vocabulary


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """The vocabulary that a widened tokenizer, new or loaded, stands for; ValueError if it is none."""
    known = tokenizer.get_vocab()
    found = {int(match[1]): known[match[0]] for match in map(_CODE.fullmatch, known) if match}
    if BEGIN not in known or END not in known or not found:
        raise ValueError(f"the text tokenizer has no {BEGIN}, {END} and codes: its model knows no pictures")
    added = tokenizer.added_tokens_decoder
    special = {token for token, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)
    text, eos = known[BEGIN], tokenizer.eos_token_id
    unspoken = tuple(sorted(token for token in special if token < text and token != eos))
    has_mask = known.get(MASK) == text + 2 + len(found)  # a [MASK] elsewhere is the text tokenizer's own
    vocabulary = Vocabulary(text, len(found), has_mask, eos, unspoken, _blank(tokenizer, text))
    expected = {code: vocabulary.first_code + code for code in range(vocabulary.codes)}
    if known[END] != vocabulary.end or found != expected:
        raise ValueError(f"the text tokenizer's picture tokens from id {text} on are not in order")
    if not special.issuperset(range(vocabulary.begin, vocabulary.size)):
        raise ValueError("the text tokenizer's picture tokens must be special, else users could type them")
    return vocabulary


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a user's text, without BOS and EOS; a marker such as `[IMG]` typed in it stays text."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def _blank(tokenizer: PreTrainedTokenizerFast, text: int) -> frozenset[int]:
    """Those of the first `text` ids that are spaces, control characters or special.

    A byte of a longer character counts as showing, else an answer of such characters could not end.
    """
    strings = tokenizer.backend_tokenizer.decode_batch([[token] for token in range(text)])
    return frozenset(
        token
        for token, string in enumerate(strings)
        if not any(c.isprintable() and not c.isspace() for c in string)
    )


@torch.no_grad()
def _add_rows(model: PreTrainedModel, size: int, used: int, generator: torch.Generator) -> None:
    """Widen embedding and head to `size` rows, the new ones drawn like the first `used`."""
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    with torch.random.fork_rng(devices=[]):  # the rows that transformers draws come from the global generator
        model.resize_token_embeddings(size, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [embedding.get_parameter("weight")]
    if head is not None:  # a weight, which may be the embedding's, and maybe a bias
        matrices += [matrix for matrix in head.parameters() if matrix is not matrices[0]]
    for matrix in matrices:
        old = matrix[:used].float()
        noise = torch.randn((size - rows, *old.shape[1:]), generator=generator).to(old.device)
        matrix[rows:] = (old.mean(dim=0) + old.std(dim=0) * noise).to(matrix.dtype)


def _int64(values: Ids) -> Ids:
    """Wide enough to add an offset to: codes come as uint16 from disk."""
    return values.long() if isinstance(values, Tensor) else np.asarray(values).astype(np.int64)


def _check(values: Ids, fits: Ids, wanted: str) -> None:
    if not fits.all():
        raise ValueError(f"{wanted} were asked for, found {int(values[~fits].reshape(-1)[0])}")
