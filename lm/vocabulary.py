"""Vocabulary: which id is text, which a code of an image; and how any causal LM comes to have such ids.

The ids are named ranges, one behind the other:

    text      the text tokenizer's own ids, from 0
    markers   [IMG], [/IMG]
    codes     <code-00000>, <code-00001>, ...
    mask      [MASK], unless has_mask is False
    skips     <skip-00001>, ... up to one less than there are cells; none in an order-only model
    dropped   [DROP], in masked models alone

A skip says how many cells of the grid are passed over before the next code. A model that has [DROP] writes
all cells of an image instead, [DROP] on those without a code. Text, markers and codes are in LaVIT's order
(arXiv 2309.04669): 32000 [IMG], 32001 [/IMG], codes from 32002. A new range goes behind the last one, so that
ids of existing models keep their meaning. No other module of pictish adds or subtracts an offset.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

BEGIN, END, MASK, DROP = "[IMG]", "[/IMG]", "[MASK]", "[DROP]"
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")  # of chat templates
_CODE, _SKIP = re.compile(r"<code-(\d{5,})>"), re.compile(r"<skip-(\d{5,})>")

Ids = TypeVar("Ids", npt.NDArray[Any], Tensor)


@dataclass(frozen=True)
class IdRange:
    """`count` ids from `first` on, which stand for the values from `least` on."""

    name: str
    first: int
    count: int
    least: int = 0

    def ids_of(self, values: Ids) -> Ids:
        """Ids of `values` of any shape, int64; ValueError for a value outside the range."""
        values = _int64(values)
        last = self.least + self.count - 1
        fits = (values >= self.least) & (values <= last)
        _check(values, fits, f"{self.name} {self.least} to {last}")
        return values - self.least + self.first

    def values_of(self, ids: Ids) -> Ids:
        """Values of `ids` of any shape, int64; ValueError for an id outside the range."""
        ids = _int64(ids)
        _check(ids, self.holds(ids), f"ids {self.first} to {self.first + self.count - 1} of {self.name}")
        return ids - self.first + self.least

    def holds(self, ids: Ids) -> Ids:
        """Whether each of `ids` is in the range, bool."""
        return (ids >= self.first) & (ids < self.first + self.count)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a language model that reads and writes images; ValueError for impossible counts."""

    text: int  # ids below are the text tokenizer's
    codes: int  # entries of the image tokenizer's codebook; 0: the model writes no images
    has_mask: bool = True  # imported LaVIT models have none
    skips: int = 0  # cells of the grid less one; 0: the model knows the order of codes only
    has_drop: bool = False  # a masked model's, which writes each cell of an image
    eos: int | None = None  # the text id that ends a text; None: the tokenizer has none
    unspoken: tuple[int, ...] = ()  # text ids that no text holds: padding, BOS, unused ones
    blank: frozenset[int] = frozenset()  # text ids that show nothing: spaces, special ones
    text_mask: int | None = None  # the text tokenizer's own mask, as LLaDA's; None: it has none
    turn_end: int | None = None  # the text id that ends a turn of a dialogue; None: it has no dialogues
    cell_positions: bool = False  # whether positions count the cells that skips pass over, see `strides`

    def __post_init__(self) -> None:
        if self.text < 0 or self.codes < 0 or self.skips < 0:
            raise ValueError(
                f"{self.text} text ids, {self.codes} codes and {self.skips} skips; 0 of each are the least"
            )
        if self.has_drop and not (self.has_mask and self.skips):
            raise ValueError("a vocabulary with [DROP] also needs [MASK], and the cells of the grid")

    @cached_property
    def ranges(self) -> Mapping[str, IdRange]:
        """All ids by the names in the module's docstring, in order and without gaps."""
        counts = {
            "text": self.text,
            "markers": 2 if self.codes else 0,
            "codes": self.codes,
            "mask": int(self.has_mask),
            "skips": self.skips,
            **({"dropped": 1} if self.has_drop else {}),
        }
        found, first = {}, 0
        for name, count in counts.items():
            found[name] = IdRange(name, first, count, least=int(name == "skips"))
            first += count
        return found

    @property
    def cells(self) -> int | None:
        """How many cells the grid of an image has; None: the model knows the order of codes only."""
        return self.skips + 1 if self.skips else None

    @property
    def begin(self) -> int:
        """The id of `[IMG]`."""
        return self.ranges["markers"].first

    @property
    def end(self) -> int:
        """The id of `[/IMG]`."""
        return self.ranges["markers"].first + 1

    @property
    def first_code(self) -> int:
        """The id of code 0."""
        return self.ranges["codes"].first

    @property
    def mask(self) -> int | None:
        """The id of `[MASK]`, or of the text tokenizer's own mask, if there is one."""
        return self.ranges["mask"].first if self.has_mask else self.text_mask

    @property
    def filler(self) -> int:
        """An id to stand where features replace embeddings."""
        return self.begin if self.codes else self.eos or 0

    @property
    def drop(self) -> int | None:
        """The id of `[DROP]`, if there is one: then images are dense."""
        return self.ranges["dropped"].first if self.has_drop else None

    @property
    def size(self) -> int:
        """How many ids there are; a model may have more rows, which mean nothing."""
        return sum(one.count for one in self.ranges.values())

    def ids_of(self, codes: Ids) -> Ids:
        """Ids of `codes` of any shape, int64; ValueError for what is no code."""
        return self.ranges["codes"].ids_of(codes)

    def codes_of(self, ids: Ids) -> Ids:
        """Codes of `ids` of any shape, int64; ValueError for what is no code's id."""
        return self.ranges["codes"].values_of(ids)

    def is_code(self, ids: Ids) -> Ids:
        """Whether each of `ids` is a code's, bool."""
        return self.ranges["codes"].holds(ids)

    def is_cell(self, ids: Ids) -> Ids:
        """Whether each of `ids` may stand on a cell of a dense image: a code's or `[DROP]`, bool."""
        found = self.is_code(ids)
        return found | (ids == self.drop) if self.has_drop else found

    def strides(self, ids: Ids) -> Ids:
        """How far the position of each of `ids` is from that of the id before it, int64: 1.

        With `cell_positions` it is the number of cells that a skip passes over, so that codes of one image
        are as far apart as their cells: on a grid of 16 columns a model finds the code above another 16
        positions before it, and need not add up skips.
        """
        skips = self.ranges["skips"]
        passed = (ids - skips.first) * skips.holds(ids)
        return 1 + passed * int(self.cell_positions)

    @property
    def strings(self) -> Iterator[str]:
        """What the text tokenizer calls the ids from `[IMG]` on, in order."""
        if self.codes:
            yield from (BEGIN, END)
        yield from map(code_string, range(self.codes))
        if self.has_mask:
            yield MASK
        yield from map(skip_string, range(1, self.skips + 1))
        if self.has_drop:
            yield DROP


def code_string(code: int) -> str:
    """What the text tokenizer calls a code: `<code-00042>`."""
    return f"<code-{code:05d}>"


def skip_string(cells: int) -> str:
    """The text tokenizer's token for a skip of this many cells: `<skip-00003>`."""
    return f"<skip-{cells:05d}>"


def widen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    codes: int,
    has_mask: bool = True,
    *,
    cells: int | None = None,
    dense: bool = False,
    code_vectors: Tensor | None = None,
    generator: torch.Generator,
) -> Vocabulary:
    """Give a causal LM and its fast tokenizer, in place, the ids of images.

    Of no `codes` there is the mask alone. `cells` are those of the image tokenizer's grid; None: codes are
    written in their order only. `dense` images have an id on each cell, as masked models write them. New
    rows of embedding and head are drawn around the old ones' mean with their spread, dimension by dimension.
    With `code_vectors` (codes, W), the image tokenizer's, codes of similar vectors get similar rows, from
    which a model learns much faster (docs/log.md). Saved, both load with `AutoModelForCausalLM` and
    `AutoTokenizer`. ValueError when the tokenizer already knows one of the new strings or is not a fast one,
    for a grid of a single cell, and for dense images without a grid.
    """
    if cells is not None and cells < 2:
        raise ValueError(f"a grid of {cells} cells was given; 2 or more are needed to write positions")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"a fast tokenizer was asked for, {type(tokenizer).__name__} is a slow one")
    known = tokenizer.get_vocab()
    skips = 0 if cells is None else cells - 1
    if dense and not skips:
        raise ValueError("a masked model writes each cell of an image; this image tokenizer places no codes")
    strings = list(Vocabulary(0, codes, has_mask, skips, dense).strings)
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
    vocabulary = vocabulary_of(tokenizer) if codes else text_vocabulary(tokenizer)
    found = (vocabulary.text, vocabulary.codes, vocabulary.has_mask, vocabulary.skips)
    assert found == (text, codes, has_mask, skips), vocabulary
    similar = None if code_vectors is None else (vocabulary.ids_of(torch.arange(codes)), code_vectors)
    _add_rows(model, vocabulary.size, min(rows, used), similar, generator)
    return vocabulary


def text_vocabulary(tokenizer: PreTrainedTokenizerFast, mask: int | None = None) -> Vocabulary:
    """The vocabulary of a model that writes text alone; `mask` is the text tokenizer's own, if there is one.

    ValueError for a mask that a text can hold.
    """
    known = tokenizer.get_vocab()
    own = known.get(MASK) == max(known.values()) == len(known) - 1 and mask is None
    text, eos, special = max(known.values()) + 1 - own, tokenizer.eos_token_id, _special(tokenizer)
    if mask is not None and mask < text and mask not in special:
        raise ValueError(f"the mask, id {mask}, stands for text; a special token or an unused id would fit")
    ends = _turn_end(tokenizer)
    unspoken = tuple(sorted(token for token in special if token < text and token not in (eos, ends)))
    return Vocabulary(text, 0, own, 0, False, eos, unspoken, _blank(tokenizer, text), mask, ends)


def _turn_end(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template ends turns with, None if it is none that is known."""
    template, special = str(tokenizer.chat_template or ""), _special(tokenizer)
    known = [tokenizer.get_vocab().get(name) for name in TURN_ENDS if name in template]
    return next((token for token in known if token in special), None)


def _special(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {token for token, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)


def add_drop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, generator: torch.Generator
) -> Vocabulary:
    """Give a widened model and tokenizer, in place, `[DROP]`, so that it can be trained as a masked one.

    ValueError for a vocabulary that lacks [MASK] or the cells of the grid.
    """
    before = vocabulary_of(tokenizer)
    if not (before.has_mask and before.skips):
        raise ValueError("a masked model needs [MASK] and the cells of the grid, which this vocabulary lacks")
    tokenizer.add_tokens([AddedToken(DROP, special=True, normalized=False)], special_tokens=True)
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.has_drop, vocabulary
    if model.get_input_embeddings().get_parameter("weight").shape[0] < vocabulary.size:
        _add_rows(model, vocabulary.size, before.size, None, generator)
    return vocabulary


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """The vocabulary that a widened tokenizer, new or loaded, stands for; ValueError if it is none."""
    known = tokenizer.get_vocab()
    codes, skips = (sum(map(bool, map(pattern.fullmatch, known))) for pattern in (_CODE, _SKIP))
    if BEGIN not in known or END not in known or not codes:
        raise ValueError(f"the text tokenizer has no {BEGIN}, {END} and codes: its model knows no images")
    special = _special(tokenizer)
    text, eos = known[BEGIN], tokenizer.eos_token_id
    ends = _turn_end(tokenizer)
    unspoken = tuple(sorted(token for token in special if token < text and token not in (eos, ends)))
    has_mask = known.get(MASK) == text + 2 + codes  # a [MASK] elsewhere is the text tokenizer's own
    has_drop = has_mask and skips > 0 and known.get(DROP) == text + 2 + codes + 1 + skips
    blank = _blank(tokenizer, text)
    vocabulary = Vocabulary(text, codes, has_mask, skips, has_drop, eos, unspoken, blank, turn_end=ends)
    if [known.get(string) for string in vocabulary.strings] != list(range(text, vocabulary.size)):
        raise ValueError(f"the text tokenizer's image tokens from id {text} on are not in order")
    if not special.issuperset(range(vocabulary.begin, vocabulary.size)):
        raise ValueError("the text tokenizer's image tokens must be special, else users could type them")
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
def _add_rows(
    model: PreTrainedModel,
    size: int,
    used: int,
    similar: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> None:
    """Widen embedding and head to `size` rows, the new ones drawn like the first `used`.

    Those of `similar`, ids (C,) and vectors (C, W), are a random projection of the vectors and some noise.
    """
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
        if similar is not None and matrix.dim() == 2:
            ids, vectors = similar[0] - rows, similar[1].to(old)
            directions = F.normalize(vectors - vectors.mean(dim=0), dim=1)
            projection = torch.randn(vectors.shape[1], old.shape[1], generator=generator).to(old)
            own = 0.3  # of a code's row, so that equal vectors do not mean equal rows; the variance stays 1
            noise[ids] = (1 - own**2) ** 0.5 * directions @ projection + own * noise[ids]
        matrix[rows:] = (old.mean(dim=0) + old.std(dim=0) * noise).to(matrix.dtype)


def _int64(values: Ids) -> Ids:
    """Wide enough to add an offset to: codes come as uint16 from disk."""
    return values.long() if isinstance(values, Tensor) else np.asarray(values).astype(np.int64)


def _check(values: Ids, fits: Ids, wanted: str) -> None:
    if not fits.all():
        raise ValueError(f"{wanted} were asked for, found {int(values[~fits].reshape(-1)[0])}")
