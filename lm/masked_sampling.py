"""Filling masks: one loop over an explicit state of what is written and what is still masked.

    for each block, from left to right:
        until nothing of it is masked:
            logits = denoise(state, rows, block, step)      guided, of the block's places alone
            ids, confidence = a proposal for each masked place
            commit the best, by confidence, by chance or in a fixed order; correct what was written

What a row gets depends on the others of its batch by no more than rounding: it draws from its own generator,
and for its own masked places alone. [MASK] is never proposed, of equal scores the lowest place wins, and
nothing that has no probability is committed.

diffusers' `BlockRefinementScheduler` is not wrapped: it recognises masks by their id, draws from one generator
for a whole batch, commits as many in each row, knows neither limits, stops nor rows that have ended, and
leaves the order of ties to torch.topk. Its thresholds for committing and for editing mean the same here.

Legend: P rows, A places of a span, W places of a block, N masked places of one row, V ids.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from pictish.lm.sampling import NEVER, Sampling, filtered

Remasking = Literal["low_confidence", "random", "halton"]
Schedule = Literal["linear", "cosine"]
Progress = Callable[[int, int], None]  # ids written, of how many at most
CORRECTIONS = 16  # passes over a block that is filled, at most


@dataclass(frozen=True)
class MaskedSampling:
    """How masks are filled; ValueError for a setting out of range."""

    steps: int = 16  # of a block
    schedule: Schedule = "linear"  # how many of a block are committed in each step; cosine: few at first
    remasking: Remasking = (
        "low_confidence"  # which are left masked; halton: by a fixed order of the grid's cells
    )
    threshold: float | None = None  # a confidence that commits a place whatever the schedule says
    correction: float | None = None  # a confidence that replaces an id already written in the block
    float64: bool = False  # confidences in double precision, as LLaDA-V computes them
    official_quirks: bool = False  # see _Official

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} asked for; 1 or more would fit")
        for name in ("threshold", "correction"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} {value} asked for; above 0, at most 1 would fit")


@dataclass(frozen=True, eq=False)
class Rules:
    """What may be written."""

    mask: int  # the id of [MASK]
    forbidden: Tensor  # (V,) bool: never, [MASK] among them
    first: Tensor | None = None  # (V,) bool: not on the first place, so that no text is empty
    limits: tuple[tuple[Tensor, int], ...] = ()  # of the ids marked (V,), at most so many in a span
    stops: tuple[tuple[int, ...], ...] = ()  # ids that end a row where they stand in this order
    last: tuple[int, ...] = ()  # ids that are committed only when all else is
    order: Tensor | None = None  # (A,) for remasking in a fixed order: when each place's turn comes


@dataclass(eq=False)
class MaskState:
    """What stands in the spans of all rows."""

    ids: Tensor  # (P, A)
    masked: Tensor  # (P, A) bool
    free: Tensor  # (P, A) bool: may be written, and so corrected
    before: int = 0  # places before the span, padding included; the official code counts them
    end: Tensor = field(init=False)  # (P,) the place of the first stop, A where there is none

    def __post_init__(self) -> None:
        self.end = torch.full((len(self.ids),), self.ids.shape[1], device=self.ids.device)

    def insert(self, place: int, count: int, mask: int) -> None:
        """Put `count` masks before `place` of each row."""
        shape = len(self.ids), count
        new = torch.full(shape, mask, device=self.ids.device), *[torch.ones(shape, dtype=torch.bool)] * 2
        for name, more in zip(("ids", "masked", "free"), new, strict=True):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old[:, :place], more.to(old), old[:, place:]], dim=1))
        self.end[self.end >= place] += count


class Denoise(Protocol):
    """Guided logits (R, W, V) of the places `block` of R of the state's rows; step 0 begins a block."""

    def __call__(self, state: MaskState, rows: Tensor, block: slice, step: int) -> Tensor: ...


# Numbers from 0 to 1 (N,) or (N, V) for one row's places (N,)
Uniform = Callable[[int, Tensor, int | None], Tensor]


def uniform_of(generators: Sequence[torch.Generator]) -> Uniform:
    """Numbers of each row's own generator."""

    def draw(row: int, places: Tensor, width: int | None) -> Tensor:
        shape = (len(places),) if width is None else (len(places), width)
        generator = generators[row]
        drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        return drawn.to(places.device)

    return draw


def steps_per_block(length: int, block_length: int, steps: int) -> int:
    """How many of `steps` each block of a text of `length` gets.

    ValueError, which says the nearest that fit, where a division leaves a rest.
    """
    if length % block_length:
        below = max(block_length, length - length % block_length)
        raise ValueError(
            f"length {length} is no multiple of block_length {block_length}; "
            f"{below} or {length + -length % block_length} would fit"
        )
    blocks = length // block_length
    if steps % blocks:
        below = max(blocks, steps - steps % blocks)
        raise ValueError(
            f"steps {steps} cannot be divided among {blocks} blocks; {below} or {steps + -steps % blocks} would fit"
        )
    return steps // blocks


def counts_of(masked: int, steps: int, schedule: Schedule) -> list[int]:
    """How many of `masked` places each step commits; a linear schedule gives what is left over to the first."""
    if schedule == "linear":
        return [masked // steps + (step < masked % steps) for step in range(steps)]
    left = [round(masked * math.cos(math.pi / 2 * (step + 1) / steps)) for step in range(steps)]
    return [before - after for before, after in zip([masked, *left], left, strict=False)]


@functools.cache
def halton_order(rows: int, columns: int) -> tuple[int, ...]:
    """When the turn of each cell of a grid comes, in raster order: spread evenly however few have had theirs.

    The two-dimensional Halton sequence of bases 2 and 3 (Halton scheduler: arXiv 2503.17076).
    """
    turns: dict[int, int] = {}
    number = 0
    while len(turns) < rows * columns:
        number += 1
        cell = int(_radical_inverse(number, 2) * rows) * columns + int(_radical_inverse(number, 3) * columns)
        turns.setdefault(cell, len(turns))
    return tuple(turns[cell] for cell in range(rows * columns))


def _radical_inverse(number: int, base: int) -> float:
    value, scale = 0.0, 1.0
    while number:
        scale /= base
        value += scale * (number % base)
        number //= base
    return value


def fill(
    denoise: Denoise,
    state: MaskState,
    rules: Rules,
    settings: MaskedSampling,
    uniform: Uniform,
    *,
    block_length: int | None = None,
    first: int = 0,
    last: int | None = None,
    limit: int = 0,
    sampling: Sampling,
    progress: Progress | None = None,
) -> MaskState:
    """Fill the masks of `state`, block by block from place `first` to `last`, by default the whole span.

    While a row has met no stop and its places are fewer than `limit`, blocks are added. ValueError for logits
    that are no numbers.
    """
    last = state.ids.shape[1] if last is None else last
    block_length = block_length or last - first
    total = max(int(state.masked.sum()), limit * len(state.ids))
    going = torch.arange(len(state.ids), device=state.ids.device)
    start = 0  # the first block has what stands before it too
    while True:
        stop = min(first + block_length, last)
        for _ in _fill_block(
            denoise, state, going, slice(start, stop), first, rules, settings, uniform, sampling
        ):
            if progress is not None:
                progress(min(total, int((state.free & ~state.masked).sum())), total)
        open_places = state.masked & _before(state.end, state)
        going = going[(open_places.any(dim=1) | (state.end >= last))[going]]
        start = first = stop
        if len(going) == 0:
            return state
        if first == last:
            more = min(block_length, limit - last)
            if more <= 0:
                return state
            state.insert(last, more, rules.mask)
            last += more


def _fill_block(
    denoise: Denoise,
    state: MaskState,
    going: Tensor,
    block: slice,
    first: int,
    rules: Rules,
    settings: MaskedSampling,
    uniform: Uniform,
    sampling: Sampling,
) -> Iterator[None]:
    """Fill one block of the rows `going`, yielding after each step."""
    official = _Official(state, rules) if settings.official_quirks else None
    scheduled = state.masked[:, first : block.stop] if official else state.masked[:, : block.stop]
    counts = {
        row: counts_of(int(scheduled[row].sum()), settings.steps, settings.schedule) for row in going.tolist()
    }
    correcting = dict.fromkeys(counts, CORRECTIONS if settings.correction is not None else 0)
    inside = torch.zeros_like(state.masked[0])
    inside[block] = True
    for step in range(
        settings.steps + sum(counts[row][0] for row in counts) + state.ids.shape[1] + CORRECTIONS
    ):
        candidates = state.masked & inside & _before(state.end, state)
        rows = [row for row in going.tolist() if candidates[row].any() or correcting[row] > 0]
        if not rows:
            return
        window = slice(0, state.ids.shape[1]) if official else block
        logits = denoise(state, torch.tensor(rows, device=state.ids.device), window, step)
        if not logits.amax(dim=-1).isfinite().all():
            raise ValueError("the model's logits are not finite numbers; its weights may have diverged")
        for row, own in zip(rows, logits, strict=True):
            count = counts[row][step] if step < settings.steps else state.ids.shape[1]
            filled = not candidates[row].any()
            wanted = candidates[row] if official is None else state.masked[row]
            places = wanted[window].nonzero()[:, 0] + window.start
            written = state.free[row] & ~state.masked[row] & inside & _before(state.end, state)[row]
            chosen, ids = _proposed(
                own,
                places - window.start,
                places,
                row,
                count,
                candidates,
                rules,
                settings,
                uniform,
                sampling,
                state,
                official,
            )
            changed = False
            if settings.correction is not None:
                changed = _correct(own, written, window.start, row, rules, settings.correction, state)
            state.ids[row, chosen] = ids
            state.masked[row, chosen] = False
            if official is not None:
                state.masked[row] = state.ids[row] == rules.mask
            if filled:
                correcting[row] = correcting[row] - 1 if changed else 0
            state.end[row] = _end_of(state, row, rules.stops, official)
        yield
    raise ValueError("masks are left that nothing may be written on; other limits would fit")


def _proposed(
    logits: Tensor,
    inside: Tensor,
    places: Tensor,
    row: int,
    count: int,
    candidates: Tensor,
    rules: Rules,
    settings: MaskedSampling,
    uniform: Uniform,
    sampling: Sampling,
    state: MaskState,
    official: "_Official | None",
) -> tuple[Tensor, Tensor]:
    """Which places (K,) of one row are committed, and the ids (K,) on them."""
    own = logits[inside]  # (N, V)
    if settings.float64:
        own = own.double()
    own = own.masked_fill(_barred(own, places, row, rules, state), NEVER)
    if len(places) == 0:
        return places, places
    if sampling.temperature == 0:
        ids = own.argmax(dim=1)
    else:
        clocks = -uniform(row, places, own.shape[1]).to(own).log()
        ids = (filtered(own.double(), sampling) / clocks).argmax(dim=1)
    sure = own.clone()
    if rules.last:
        sure[:, list(rules.last)] = NEVER
    confidence = sure.softmax(dim=1).gather(1, ids[:, None])[:, 0]
    match settings.remasking:
        case "low_confidence":
            scores = confidence
        case "random":
            scores = uniform(row, places, None).to(confidence.dtype)
        case "halton":
            assert rules.order is not None, "an order of places"
            scores = -rules.order[places].to(confidence)
    legal = candidates[row, places] & own.gather(1, ids[:, None])[:, 0].isfinite()
    if official is not None:
        chosen = official.chosen(scores.masked_fill(~legal, NEVER), places, count)
        return places[chosen], ids[chosen]
    order = scores.masked_fill(~legal, NEVER).sort(descending=True, stable=True).indices
    picked = torch.zeros_like(legal)
    picked[order[:count]] = True
    if settings.threshold is not None:
        picked |= confidence >= settings.threshold
    picked &= legal
    order = order[picked[order]]  # best first
    keep = torch.ones_like(order, dtype=torch.bool)
    for marked, most in rules.limits:
        left = most - int((marked[state.ids[row]] & ~state.masked[row]).sum())
        counted = marked[ids[order]]
        keep &= ~counted | (counted.cumsum(dim=0) <= left)
    order = order[keep]
    return places[order], ids[order]


def _barred(own: Tensor, places: Tensor, row: int, rules: Rules, state: MaskState) -> Tensor:
    """Which ids (N, V) may not be proposed on the masked `places` (N,) of a row."""
    barred = rules.forbidden
    for marked, most in rules.limits:
        if int((marked[state.ids[row]] & ~state.masked[row]).sum()) >= most:
            barred = barred | marked
    barred = barred.expand_as(own)
    if rules.first is not None:
        barred = barred | (rules.first & (places == 0)[:, None])
    return barred


def _correct(
    logits: Tensor, written: Tensor, start: int, row: int, rules: Rules, least: float, state: MaskState
) -> bool:
    """Replace ids `written` (A,) of one row where another is as likely as `least`; whether any was."""
    places = written.nonzero()[:, 0]
    own = logits[places - start]
    barred = rules.forbidden.expand_as(own)
    if rules.first is not None:
        barred = barred | (rules.first & (places == 0)[:, None])
    best = own.masked_fill(barred, NEVER).softmax(dim=1).max(dim=1)
    changed = False
    for place, chance, new in zip(places.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
        old = int(state.ids[row, place])
        if new == old or chance < least:
            continue
        now = state.ids[row][state.free[row] & ~state.masked[row] | ~state.free[row]]
        if any(
            bool(marked[new]) > bool(marked[old]) and int(marked[now].sum()) >= most
            for marked, most in rules.limits
        ):
            continue
        state.ids[row, place], changed = new, True
    return changed


def _before(end: Tensor, state: MaskState) -> Tensor:
    """Whether each place of each row is before the row's end (P, A)."""
    return torch.arange(state.ids.shape[1], device=end.device) < end[:, None]


def _end_of(state: MaskState, row: int, stops: Sequence[Sequence[int]], official: "_Official | None") -> int:
    """The first place where one of `stops` stands whole among what is written of a row; A if none does."""
    length = state.ids.shape[1]
    if official is not None and int(state.end[row]) < length:
        stops = stops[:1]
    ids, open_ = state.ids[row].tolist(), (state.masked[row] | ~state.free[row]).tolist()
    found = [length] if official is None else [int(state.end[row])]
    for stop in stops:
        for place in range(length - len(stop) + 1):
            here = slice(place, place + len(stop))
            if tuple(ids[here]) == tuple(stop) and not any(open_[here]):
                found.append(place)
                break
    return min(found)


class _Official:
    """What the official samplers do otherwise, for comparisons with recordings of them.

    A place is masked if its id is [MASK], which may also be proposed. torch.topk decides on ties, among all
    places of a row, and so commits places at minus infinity when it runs out of others. Behind a stop that was
    found only the first of several stops is looked for. Only masks of the block itself are scheduled.
    """

    def __init__(self, state: MaskState, rules: Rules) -> None:
        self.state, self.rules = state, rules

    def chosen(self, scores: Tensor, places: Tensor, count: int) -> Tensor:
        """Indices of `places` that torch.topk takes of a whole row, whose other scores are minus infinity."""
        whole = torch.full((self.state.before + self.state.ids.shape[1],), NEVER, dtype=scores.dtype)
        whole[self.state.before + places] = scores
        taken = torch.zeros_like(whole, dtype=torch.bool)
        taken[whole.topk(min(count, len(whole))).indices] = True
        return taken[self.state.before + places].nonzero()[:, 0]
