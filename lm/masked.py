"""The masked objective: which tokens are masked, what is predicted, and how losses are weighted.

Of each document a number t is drawn evenly from 0 to 1. Its text is masked id by id with probability
p = 0.001 + 0.999 t, and costs cross entropy / p, divided by how many ids could have been masked (LLaDA,
arXiv 2502.09992). The cells of its images are masked to a share of cos(pi t / 2), one at least, and cost
their mean cross entropy (MaskGIT, arXiv 2202.04200). Losses are averaged over documents; one that has text
and cells to learn adds both.

Block diffusion (arXiv 2503.09573) appends to each row a masked copy of what its documents learn. Each block
of the copy sees itself and the whole blocks before it, draws its own t, and nothing else is learned.

Legend: B rows, L tokens.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.lm.config import Masked, MaskedForm
from pictish.lm.packing import IGNORED, Packed
from pictish.lm.vocabulary import Vocabulary

LEAST = 0.001  # probability of a mask


def prepare_masked(
    packed: Packed, generator: torch.Generator, done: float, *, config: Masked, vocabulary: Vocabulary
) -> Packed:
    """Rows that `pack` laid out with masks in them, their targets, and what each counts.

    With `config.complementary` each row comes twice.
    """
    learn = packed.targets != IGNORED
    blocks = blocks_of(packed, learn, config.form, vocabulary)
    candidates = (learn | packed.structure) if config.structure else learn & ~packed.structure
    packed = replace(packed, blocks=blocks)
    units = packed.documents
    if config.block_length is not None:
        packed, candidates = with_noisy_copy(packed, learn, candidates)
        assert packed.blocks is not None
        units = packed.blocks
    cells = candidates & vocabulary.is_cell(packed.ids)
    rates = rates_of(_drawn(units, generator))  # (B, L) of masks in text
    masked = (torch.rand(units.shape, generator=generator) < rates) & candidates & ~cells
    masked |= _masked_cells(cells, units, rates, generator)
    views = [(masked, rates)]
    if config.complementary:
        views.append((candidates & ~masked, (1 - rates).clamp_min(LEAST)))
    each = [_view(packed, candidates, cells, *view, generator, config, vocabulary) for view in views]
    return Packed.join(each)


def rates_of(t: Tensor) -> Tensor:
    """The probability that text is masked with at each `t`, 0 to 1."""
    return LEAST + (1 - LEAST) * t


def blocks_of(packed: Packed, learn: Tensor, form: MaskedForm, vocabulary: Vocabulary) -> Tensor:
    """Blocks (B, L) of tokens that see each other, numbered along each row."""
    inside = F.pad(packed.documents[:, 1:] == packed.documents[:, :-1], (1, 0))  # not a document's first
    match form.attention:
        case "full":
            starts = ~inside
        case "dialogue":
            starts = ~inside | _differs(packed.turns)
        case "prefix":
            starts = ~inside | _differs(learn)
    if form.block_length is not None:
        # an image, from [IMG] to [/IMG], is a block; text behind it begins another
        begins = learn & (packed.ids == vocabulary.begin)
        behind = F.pad((learn & (packed.ids == vocabulary.end))[:, :-1], (1, 0))
        pictured = (begins.long() - behind.long()).cumsum(dim=1) > 0
        starts |= begins | behind
        place = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
        since = place - torch.where(starts, place, 0).cummax(dim=1).values
        starts |= learn & ~pictured & (since % form.block_length == 0)
    return starts.long().cumsum(dim=1)


def with_noisy_copy(packed: Packed, learn: Tensor, candidates: Tensor) -> tuple[Packed, Tensor]:
    """Rows with a noisy copy behind them of all tokens that `learn` (B, L) marks; `candidates` are in it."""
    length = packed.ids.shape[1]
    most = int(learn.sum(dim=1).max())
    order = (~learn).long().argsort(dim=1, stable=True)[:, :most]  # places of learned tokens, then others
    real = learn.gather(1, order)
    whole = packed.lengthened(length + most)
    changed: dict[str, Any] = {}
    for name, tensor in whole.by_token.items():
        copied = tensor[:, :length].gather(1, order)
        changed[name] = torch.cat([tensor[:, :length], torch.where(real, copied, tensor[:, length:])], dim=1)
    noisy = F.pad(real, (length, 0))
    found = torch.cat([torch.zeros_like(candidates), candidates.gather(1, order) & real], dim=1)
    return replace(whole, **changed, noisy=noisy), found


def _view(
    packed: Packed,
    candidates: Tensor,
    cells: Tensor,
    masked: Tensor,
    rates: Tensor,
    generator: torch.Generator,
    config: Masked,
    vocabulary: Vocabulary,
) -> Packed:
    """What is read and learned where `masked` (B, L) of the `candidates` are masked."""
    assert vocabulary.mask is not None, "a masked model has [MASK]"
    ids, learned = packed.ids.masked_fill(masked, vocabulary.mask), masked
    if config.corrupt:
        chance = torch.rand(ids.shape, generator=generator)
        chosen = candidates & ~masked & (chance < 2 * config.corrupt)
        wrong = chosen & (chance < config.corrupt)
        ids = torch.where(wrong, _others(cells, generator, vocabulary), ids)
        learned = learned | chosen
    return replace(weighed(packed, candidates, cells, masked, learned, rates), ids=ids)


def weighed(
    packed: Packed, candidates: Tensor, cells: Tensor, masked: Tensor, learned: Tensor, rates: Tensor
) -> Packed:
    """The rows with their targets, where `learned` (B, L), and what each of these counts.

    Text counts 1 / rate where `masked` and 1 where it was visible, by how many `candidates` its document has;
    `cells` count alike.
    """
    text = candidates & ~cells
    weights = torch.where(masked, 1 / rates, 1.0) / _sums(text, packed.documents)
    weights = torch.where(cells, 1 / _sums(learned & cells, packed.documents), weights)
    return replace(
        packed,
        targets=packed.ids.masked_fill(~learned, IGNORED),
        weights=weights.masked_fill(~learned, 0),
        counts=_firsts(candidates, packed.documents).float(),
    )


def _masked_cells(cells: Tensor, units: Tensor, rates: Tensor, generator: torch.Generator) -> Tensor:
    """Which of the `cells` (B, L) are masked: a share of each unit's, chosen evenly."""
    count = _sums(cells, units)
    t = (rates - LEAST) / (1 - LEAST)
    wanted = (count * torch.cos(math.pi / 2 * t)).round().clamp_min(1)
    chance = torch.rand(cells.shape, generator=generator).masked_fill(~cells, 2)
    order = (units.double() * 4 + chance.double()).argsort(dim=1, stable=True)  # cells first in each unit
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(cells.shape[1]).expand_as(order))
    firsts = ranks.double().masked_fill(~cells, torch.inf)
    lowest = torch.full((len(cells), int(units.max()) + 1), torch.inf, dtype=torch.float64)
    lowest = lowest.scatter_reduce(1, units, firsts, "amin").gather(1, units)
    return cells & (ranks - lowest < wanted)


def _others(cells: Tensor, generator: torch.Generator, vocabulary: Vocabulary) -> Tensor:
    """Any ids (B, L) of the kind that is there: of a dense image on its `cells`, of text elsewhere."""
    spoken = torch.ones(vocabulary.text, dtype=torch.bool)
    spoken[list(vocabulary.unspoken)] = False
    texts = spoken.nonzero()[:, 0]
    draw = torch.rand(cells.shape, generator=generator, dtype=torch.float64)
    others = texts[(draw * len(texts)).long()]
    if vocabulary.drop is None:  # it writes no images
        return others
    kinds = torch.cat([vocabulary.ids_of(torch.arange(vocabulary.codes)), torch.tensor([vocabulary.drop])])
    return torch.where(cells, kinds[(draw * len(kinds)).long()], others)


def _drawn(units: Tensor, generator: torch.Generator) -> Tensor:
    """A number from 0 to 1 for each of the `units` (B, L) of each row, at all its tokens."""
    return torch.rand(len(units), units.shape[1] + 1, generator=generator).gather(1, units)


def _sums(marked: Tensor, units: Tensor) -> Tensor:
    """How many tokens of its unit are `marked`, at each token (B, L); at least 1, to divide by."""
    sums = torch.zeros(len(units), int(units.max()) + 1)
    return sums.scatter_add(1, units, marked.float()).gather(1, units).clamp_min(1)


def _firsts(marked: Tensor, documents: Tensor) -> Tensor:
    """The first `marked` token of each document, bool (B, L)."""
    place = torch.arange(marked.shape[1]).expand_as(documents)
    first = torch.full((len(documents), int(documents.max()) + 1), marked.shape[1])
    first = first.scatter_reduce(1, documents, place.masked_fill(~marked, marked.shape[1]), "amin")
    return marked & (place == first.gather(1, documents))


def _differs(values: Tensor) -> Tensor:
    """Whether each of the values (B, L) is another than the one before it in its row."""
    return F.pad(values[:, 1:] != values[:, :-1], (1, 0))
