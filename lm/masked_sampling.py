"""Filling masks: one loop over an explicit state of what is written and what is still masked.

    for each block, from left to right:
        until nothing of it is masked:
            logits = denoise(state, rows, block, step)      guided, of the block's places alone
            ids, confidence = a proposal for each masked place
            commit the best, by confidence, by chance or in a fixed order; correct what was written

What a row gets depends on the others of its batch by no more than rounding: it draws from its own generator,
and for its own masked places alone. [MASK] is never proposed, of equal scores the lowest place wins, and
nothing that has no probability is committed.

diffusers' `BlockRefinementScheduler` is not wrapped: it recognises masks by their id, draws from one
generator for a whole batch, knows neither limits, stops nor rows that have ended, and leaves the order of
ties to torch.topk. Its thresholds for committing and for editing mean the same here.

Legend: P rows, R rows that go on, A places of a span, W places of a block, N masked places of a row, V ids.
"""

import functools
import itertools
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
GREEDY = Sampling(temperature=0)


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
    official_quirks: bool = False  # as the official samplers do it, see `_official_choice`

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
    forbidden: Tensor  # (V,) bool: never; [MASK] is not either, but counts in confidences
    first: Tensor | None = None  # (V,) bool: not on the first place, so that no text is empty
    limits: tuple[tuple[Tensor, int], ...] = ()  # maximum number, in a span, of the ids marked (V,)
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
        raise ValueError(
            f"length {length} is no multiple of block_length {block_length}; "
            f"{_multiples(length, block_length)} would fit"
        )
    blocks = length // block_length
    if steps % blocks:
        raise ValueError(
            f"steps {steps} cannot be divided among {blocks} blocks; {_multiples(steps, blocks)} would fit"
        )
    return steps // blocks


def _multiples(near: int, of: int) -> str:
    """The multiples on both sides of a number, in words; 0 is none."""
    below, above = near - near % of, near + -near % of
    return f"{below} or {above}" if below else f"{above}"


def counts_of(masked: int, steps: int, schedule: Schedule) -> list[int]:
    """How many of `masked` places each step commits; linear: as many in each, the first ones one more."""
    if schedule == "linear":
        return [masked // steps + (step < masked % steps) for step in range(steps)]
    counts, left = [], masked
    for step in range(steps):
        after = min(max(0, left - 1), round(masked * math.cos(math.pi / 2 * (step + 1) / steps)))
        counts.append(left - after)
        left = after
    return counts


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


@dataclass(frozen=True, eq=False)
class _Work:
    """All that stays the same while a state is filled."""

    denoise: Denoise
    state: MaskState
    rules: Rules
    settings: MaskedSampling
    sampling: Sampling
    uniform: Uniform


def fill(
    denoise: Denoise,
    state: MaskState,
    rules: Rules,
    settings: MaskedSampling,
    uniform: Uniform,
    *,
    sampling: Sampling = GREEDY,
    block_length: int | None = None,
    first: int = 0,
    last: int | None = None,
    limit: int = 0,
    progress: Progress | None = None,
) -> MaskState:
    """Fill the masks of `state`, block by block from place `first` to `last`, by default the whole span.

    Blocks are added before `last` for rows that have met no stop, up to `limit` places. ValueError for logits
    that are no numbers, and where nothing may stand that is likely at all.
    """
    work = _Work(denoise, state, rules, settings, sampling, uniform)
    last = state.ids.shape[1] if last is None else last
    block_length = block_length or last - first
    total = max(int(state.masked.sum()), limit * len(state.ids))
    start = 0  # what stands before the first block belongs to it
    going = torch.arange(len(state.ids), device=state.ids.device)
    while len(going):
        stop = min(first + block_length, last)
        for _ in _fill_block(work, going.tolist(), start, first, stop):
            if progress is not None:
                progress(min(total, int((state.free & ~state.masked).sum())), total)
        start = first = stop
        if first == last and last < limit:
            more = min(block_length, limit - last)
            state.insert(last, more, rules.mask)
            last += more
        if first == last:
            break
        going = going[(state.masked & _before_end(state)).any(dim=1)[going]]
    return state


def _fill_block(work: _Work, going: list[int], start: int, first: int, stop: int) -> Iterator[None]:
    """Fill the masks of rows before `stop`, yielding after each step.

    The block begins at `first`; `start` is the first place whose logits are asked for.
    """
    state, settings = work.state, work.settings
    official = settings.official_quirks
    window = slice(0, state.ids.shape[1]) if official else slice(start, stop)
    scheduled = state.masked[:, first if official else 0 : stop].sum(dim=1).tolist()
    counts = {row: counts_of(scheduled[row], settings.steps, settings.schedule) for row in going}
    corrections = dict.fromkeys(going, 0 if settings.correction is None else CORRECTIONS)
    block = torch.arange(state.ids.shape[1], device=state.ids.device) < stop
    for step in itertools.count():
        candidates = state.masked & block & _before_end(state)
        rows = [row for row in going if candidates[row].any() or corrections[row]]
        if not rows or (official and step == settings.steps):
            return
        logits = work.denoise(state, torch.tensor(rows, device=state.ids.device), window, step)
        if not logits.amax(dim=-1).isfinite().all():
            raise ValueError("the model's logits are not finite numbers; its weights may have diverged")
        for row, own in zip(rows, logits, strict=True):
            filled = not candidates[row].any()
            written = (state.free & ~state.masked & block & _before_end(state))[row, window]
            if not filled:
                count = counts[row][step] if step < settings.steps else len(block)
                _commit(work, row, own, window.start, candidates[row], count)
            changed = settings.correction is not None and _correct(work, row, own, window.start, written)
            if filled:
                corrections[row] = corrections[row] - 1 if changed else 0
            state.end[row] = _end_of(work, row)
        yield


def _commit(work: _Work, row: int, logits: Tensor, start: int, candidates: Tensor, count: int) -> None:
    """Write the `count` best proposals of a row for its `candidates` (A,), and those above the threshold.

    `logits` (W, V) are those of places from `start` on.
    """
    state, rules, settings = work.state, work.rules, work.settings
    wanted = state.masked[row] if settings.official_quirks else candidates
    places = wanted[start : start + len(logits)].nonzero()[:, 0] + start  # (N,)
    own = logits[places - start]  # (N, V)
    own = (own.double() if settings.float64 else own).masked_fill(_barred(work, row, places), NEVER)
    choices = own.clone()
    if not settings.official_quirks:
        choices[:, rules.mask] = NEVER
    if work.sampling.temperature == 0:
        ids = choices.argmax(dim=1)
    else:  # the race of clocks of lm/sampling.py
        clocks = -work.uniform(row, places, own.shape[1]).log()
        ids = (filtered(choices.double(), work.sampling) / clocks).argmax(dim=1)
    sure = own.index_fill(1, torch.tensor(rules.last, device=own.device, dtype=torch.long), NEVER)
    confidence = sure.softmax(dim=1).gather(1, ids[:, None])[:, 0]
    match settings.remasking:
        case "low_confidence":
            scores = confidence
        case "random":
            scores = work.uniform(row, places, None).to(confidence)
        case "halton":
            assert rules.order is not None, "a fixed order is an image's"
            scores = -rules.order[places].to(confidence)
    legal = candidates[places] & choices.gather(1, ids[:, None])[:, 0].isfinite()
    scores = scores.masked_fill(~legal, NEVER)
    if settings.official_quirks:
        chosen = _official_choice(state, scores, places, count)
    else:
        order = scores.sort(descending=True, stable=True).indices
        picked = legal & (confidence >= (settings.threshold or torch.inf))
        picked[order[:count]] = True
        chosen = _within_limits(work, row, ids, order[(picked & legal)[order]])
        if count and len(chosen) == 0:
            raise ValueError("masks are left on which no allowed id is likely at all; fewer rules would fit")
    state.ids[row, places[chosen]] = ids[chosen]
    state.masked[row, places[chosen]] = False
    if settings.official_quirks:
        state.masked[row] = state.ids[row] == rules.mask


def _within_limits(work: _Work, row: int, ids: Tensor, order: Tensor) -> Tensor:
    """Those of `order`, indices of the proposed `ids` with the best first, that no limit forbids."""
    keep = torch.ones_like(order, dtype=torch.bool)
    for marked, most in work.rules.limits:
        counted = marked[ids[order]]
        keep &= ~counted | (counted.cumsum(dim=0) <= most - _written(work, row, marked))
    return order[keep]


def _written(work: _Work, row: int, marked: Tensor) -> int:
    """How many of the ids that a row has are `marked` (V,)."""
    return int(marked[work.state.ids[row][~work.state.masked[row]]].sum())


def _barred(work: _Work, row: int, places: Tensor) -> Tensor:
    """Which ids (N, V) may not be proposed on masked `places` (N,) of a row."""
    barred = work.rules.forbidden
    for marked, most in work.rules.limits:
        if _written(work, row, marked) >= most:
            barred = barred | marked
    barred = barred.expand(len(places), -1)
    if work.rules.first is not None:
        barred = barred | (work.rules.first & (places == 0)[:, None])
    return barred


def _correct(work: _Work, row: int, logits: Tensor, start: int, written: Tensor) -> bool:
    """Replace what was `written` (W,) before in a row where another id is likely enough; whether any was."""
    state, rules, least = work.state, work.rules, work.settings.correction
    assert least is not None
    inside = written.nonzero()[:, 0]
    barred = rules.forbidden.expand(len(inside), -1)
    if rules.first is not None:
        barred = barred | (rules.first & (inside + start == 0)[:, None])
    chances = logits[inside].masked_fill(barred, NEVER).softmax(dim=1)
    chances[:, rules.mask] = 0
    best = chances.max(dim=1)
    changed = False
    for place, chance, new in zip(inside.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
        old = int(state.ids[row, place + start])
        full = any(
            marked[new] > marked[old] and _written(work, row, marked) >= n for marked, n in rules.limits
        )
        if new != old and chance >= least and not full:
            state.ids[row, place + start], changed = new, True
    return changed


def _before_end(state: MaskState) -> Tensor:
    """Whether each place is before its row's end (P, A)."""
    return torch.arange(state.ids.shape[1], device=state.ids.device) < state.end[:, None]


def _end_of(work: _Work, row: int) -> int:
    """The first place where a stop stands whole among what was written of a row; A if none does."""
    state, stops = work.state, work.rules.stops
    length = state.ids.shape[1]
    found = [length]
    if work.settings.official_quirks and int(state.end[row]) < length:
        found, stops = [int(state.end[row])], stops[:1]
    ids, there = state.ids[row].tolist(), (state.free & ~state.masked)[row].tolist()
    for stop in stops:
        places = range(length - len(stop) + 1)
        found += [
            n for n in places if tuple(ids[n : n + len(stop)]) == stop and all(there[n : n + len(stop)])
        ][:1]
    return min(found)


def _official_choice(state: MaskState, scores: Tensor, places: Tensor, count: int) -> Tensor:
    """Indices of `places` that the official samplers commit.

    They leave ties to torch.topk among all places of a row, and so commit some at minus infinity when it runs
    out of others. What else they do otherwise: a place is masked if its id is [MASK], which may be proposed;
    only masks of the block itself are scheduled; and behind a stop that was found only the first of several
    stops is looked for.
    """
    whole = scores.new_full((state.before + state.ids.shape[1],), NEVER)
    whole[state.before + places] = scores
    taken = torch.zeros_like(whole, dtype=torch.bool)
    taken[whole.topk(min(count, len(whole))).indices] = True
    return taken[state.before + places].nonzero()[:, 0]
