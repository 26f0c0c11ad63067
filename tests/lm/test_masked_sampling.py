"""The loop that fills masks: schedules, orders, thresholds, limits, stops and growth, on made-up networks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pictish.lm.masked_sampling import (
    MaskedSampling,
    MaskState,
    Rules,
    counts_of,
    fill,
    halton_order,
    steps_per_block,
    uniform_of,
)
from pictish.lm.sampling import Sampling

MASK, EOS, WIDTH = 9, 0, 10


class Table:
    """The same logits whatever is written, and a record of what was."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits  # (P, A, V)
        self.calls: list[tuple[list[int], slice, int, list[list[int]]]] = []

    def __call__(self, state: MaskState, rows: Tensor, block: slice, step: int) -> Tensor:
        seen = state.ids.masked_fill(state.masked, MASK)
        self.calls.append((rows.tolist(), block, step, seen.tolist()))
        length = state.ids.shape[1]
        logits = torch.cat(
            [self.logits, self.logits[:, -1:].expand(-1, max(0, length - self.logits.shape[1]), -1)], 1
        )
        return logits[rows][:, block]


def table(*rows: list[tuple[int, float]]) -> Table:
    """Each place's likeliest id and how far its logit is above the others'."""
    logits = torch.zeros(len(rows), len(rows[0]), WIDTH)
    for number, row in enumerate(rows):
        for place, (token, height) in enumerate(row):
            logits[number, place, token] = height
    return Table(logits)


def masks(rows: int, length: int) -> MaskState:
    masked = torch.ones(rows, length, dtype=torch.bool)
    return MaskState(torch.full((rows, length), MASK), masked, masked.clone())


def rules(*never: int, **more) -> Rules:
    forbidden = torch.zeros(WIDTH, dtype=torch.bool)
    forbidden[list(never)] = True
    return Rules(MASK, forbidden, **more)


def marked(*ids: int) -> Tensor:
    return torch.isin(torch.arange(WIDTH), torch.tensor(ids))


def filled(network, state, allowed=None, seeds=(0, 1, 2, 3), blocks=None, limit=0, sampling=None, **settings):
    return fill(
        network,
        state,
        allowed or rules(),
        MaskedSampling(**settings),
        uniform_of([torch.Generator().manual_seed(seed) for seed in seeds]),
        block_length=blocks,
        limit=limit,
        sampling=sampling or Sampling(temperature=0),
    )


def written(network: Table, row: int = 0) -> list[set[int]]:
    """Which places each call found filled."""
    return [{place for place, token in enumerate(seen[row]) if token != MASK} for *_, seen in network.calls]


FOUR = [(1, 2.0), (2, 4.0), (3, 1.0), (4, 3.0)]


def test_the_most_confident_are_written_first():
    network = table(FOUR)
    state = filled(network, masks(1, 4), steps=4)
    assert state.ids.tolist() == [[1, 2, 3, 4]]
    assert not state.masked.any()
    assert written(network) == [set(), {1}, {1, 3}, {0, 1, 3}]


def test_of_equals_the_lowest_place_and_the_lowest_id_win():
    network = Table(torch.zeros(1, 5, WIDTH))
    state = filled(network, masks(1, 5), steps=5)
    assert state.ids.tolist() == [[0] * 5]
    assert written(network) == [set(range(n)) for n in range(5)]


def test_a_schedule_divides_the_masks():
    assert counts_of(12, 5, "linear") == [3, 3, 2, 2, 2]
    assert counts_of(4, 8, "linear") == [1, 1, 1, 1, 0, 0, 0, 0]
    for count, steps in ((64, 8), (64, 16), (5, 8), (0, 3)):
        cosine = counts_of(count, steps, "cosine")
        assert sum(cosine) == count
        assert len(cosine) == steps
    assert counts_of(64, 8, "cosine") == sorted(counts_of(64, 8, "cosine"))
    assert counts_of(64, 8, "cosine")[0] == 1


def test_a_block_that_is_filled_early_costs_no_more_forwards():
    network = table(FOUR)
    filled(network, masks(1, 4), steps=9)
    assert len(network.calls) == 4


def test_blocks_are_filled_from_left_to_right_with_their_own_steps():
    network = table(FOUR)
    filled(network, masks(1, 4), steps=2, blocks=2)
    assert written(network) == [set(), {1}, {0, 1}, {0, 1, 3}]
    assert [(block.start, block.stop, step) for _, block, step, _ in network.calls] == [
        (0, 2, 0),
        (0, 2, 1),
        (2, 4, 0),
        (2, 4, 1),
    ]


def test_a_threshold_writes_all_that_is_sure_and_one_at_least():
    network = table([(1, 9.0), (2, 9.0), (3, 1.0), (4, 0.5)])
    filled(network, masks(1, 4), steps=4, threshold=0.9)
    assert written(network) == [set(), {0, 1}, {0, 1, 2}]


def test_a_random_order_is_the_rows_own():
    network, other = table(FOUR), table(FOUR)
    filled(network, masks(1, 4), steps=4, remasking="random", seeds=(5,))
    filled(other, masks(1, 4), steps=4, remasking="random", seeds=(6,))
    assert written(network) != written(other)
    again = table(FOUR)
    filled(again, masks(1, 4), steps=4, remasking="random", seeds=(5,))
    assert written(network) == written(again)


def test_the_halton_order_spreads_over_the_grid():
    order = halton_order(8, 8)
    assert sorted(order) == list(range(64))
    first = [divmod(order.index(turn), 8) for turn in range(4)]
    assert len({(row // 4, column // 4) for row, column in first}) >= 3, "not all in one quarter"
    assert len(halton_order(3, 5)) == 15
    network = table(FOUR)
    filled(network, masks(1, 4), rules(order=torch.tensor([3, 0, 1, 2])), steps=4, remasking="halton")
    assert written(network) == [set(), {1}, {1, 2}, {1, 2, 3}]


def test_mask_is_never_written_and_nothing_that_is_impossible():
    logits = torch.zeros(1, 3, WIDTH)
    logits[..., MASK] = 50
    assert not (filled(Table(logits), masks(1, 3), steps=3).ids == MASK).any()
    logits = torch.full((1, 3, WIDTH), float("-inf"))
    logits[0, :, 5] = 0
    assert filled(Table(logits), masks(1, 3), steps=1).ids.tolist() == [[5, 5, 5]]
    with pytest.raises(ValueError, match="no allowed id is likely at all"):
        filled(Table(logits), masks(1, 3), rules(5), steps=1)
    with pytest.raises(ValueError, match="not finite numbers"):
        filled(Table(torch.full((1, 3, WIDTH), torch.nan)), masks(1, 3), steps=1)


def test_what_is_given_stays_and_masks_between_are_filled():
    state = masks(1, 4)
    state.ids[0, 1], state.masked[0, 1], state.free[0, 1] = 7, False, False
    network = table(FOUR)
    assert filled(network, state, steps=3, correction=0.01).ids.tolist() == [[1, 7, 3, 4]]


def test_written_ids_are_corrected_above_a_threshold_and_it_ends():
    class Changing(Table):
        """Says 1 while anything is masked, then 2."""

        def __call__(self, state, rows, block, step):
            super().__call__(state, rows, block, step)
            logits = torch.zeros(len(rows), state.ids.shape[1], WIDTH)
            logits[:, :, 1 if state.masked.any() else 2] = 5
            return logits[:, block]

    plain = filled(Changing(torch.zeros(1, 3, WIDTH)), masks(1, 3), steps=3)
    assert plain.ids.tolist() == [[1, 1, 1]]
    network = Changing(torch.zeros(1, 3, WIDTH))
    assert filled(network, masks(1, 3), steps=3, correction=0.5).ids.tolist() == [[2, 2, 2]]
    assert len(network.calls) == 3 + 2, "a pass that changes, and one that finds nothing to"
    unsure = filled(Changing(torch.zeros(1, 3, WIDTH)), masks(1, 3), steps=3, correction=0.999)
    assert unsure.ids.tolist() == [[1, 1, 1]]

    class Restless(Table):
        def __call__(self, state, rows, block, step):
            super().__call__(state, rows, block, step)
            logits = torch.zeros(len(rows), state.ids.shape[1], WIDTH)
            logits[:, :, 1 + step % 2] = 50
            return logits[:, block]

    network = Restless(torch.zeros(1, 3, WIDTH))
    filled(network, masks(1, 3), steps=1, correction=0.5)
    assert len(network.calls) == 1 + 16


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("correction", [None, 0.1])
def test_limits_hold_whatever_the_network_wants(steps, correction):
    many, few = marked(1, 2, 3, 4, 5), marked(6)
    wants_many, wants_few = table([(1, 5.0)] * 6), table([(6, 5.0)] * 6)
    allowed = rules(0, 7, 8, limits=((many, 2), (few, 4)))
    ids = filled(wants_many, masks(1, 6), allowed, steps=steps, correction=correction).ids[0]
    assert int(many[ids].sum()) == 2
    ids = filled(wants_few, masks(1, 6), allowed, steps=steps, correction=correction).ids[0]
    assert int(few[ids].sum()) == 4


def test_rows_end_at_a_stop_once_all_before_it_is_there():
    network = table([(1, 1.0), (2, 2.0), (EOS, 9.0), (4, 8.0), (5, 7.0)], [(1, 5.0)] * 5)
    state = filled(network, masks(2, 5), rules(stops=((EOS,),)), steps=5)
    assert state.end.tolist() == [2, 5]
    assert state.ids[0, :2].tolist() == [1, 2]
    assert state.masked[0, 3:].all(), "nothing behind the end is filled"
    rows = [rows for rows, *_ in network.calls]
    assert rows[:3] == [[0, 1]] * 3
    assert rows[3:] == [[1]] * 2, "it has left the batch"


def test_stops_of_several_ids_end_at_the_first_that_is_whole():
    network = table([(1, 1.0), (5, 9.0), (6, 8.0), (5, 7.0), (6, 6.0)])
    state = filled(network, masks(1, 5), rules(stops=((7,), (5, 6))), steps=5)
    assert state.end.tolist() == [1]
    assert len(network.calls) == 3


def test_blocks_are_added_until_a_row_ends():
    network = table([(1, 5.0)] * 5 + [(EOS, 5.0)])
    state = filled(network, masks(1, 2), rules(stops=((EOS,),)), steps=2, blocks=2, limit=9)
    assert state.end.tolist() == [5]
    assert state.ids[0, :5].tolist() == [1] * 5
    endless = filled(table([(1, 5.0)]), masks(1, 1), rules(stops=((EOS,),)), steps=2, blocks=2, limit=5)
    assert endless.ids.tolist() == [[1] * 5], "no longer than the limit"


def test_a_suffix_stays_behind_what_grows():
    state = masks(1, 4)
    state.ids[0, 2:], state.masked[0, 2:], state.free[0, 2:] = torch.tensor([7, EOS]), False, False
    fill(
        table([(1, 5.0)]),
        state,
        rules(stops=((EOS,),)),
        MaskedSampling(steps=2),
        uniform_of([torch.Generator()]),
        block_length=2,
        last=2,
        limit=6,
        sampling=Sampling(temperature=0),
    )
    assert state.ids.tolist() == [[1] * 6 + [7, EOS]]
    assert state.end.tolist() == [8], "a stop in the suffix is none"


def test_no_text_is_empty():
    barred = marked(EOS, 3)
    state = filled(table([(EOS, 9.0)] * 3), masks(1, 3), rules(first=barred, stops=((EOS,),)), steps=3)
    assert int(state.end[0]) >= 1
    assert not barred[state.ids[0, 0]]


def test_late_ids_are_written_when_all_else_is():
    network = table([(EOS, 9.0), (2, 1.0), (3, 2.0)])
    filled(network, masks(1, 3), rules(last=(EOS,)), steps=3)
    assert written(network) == [set(), {2}, {1, 2}]


@pytest.mark.parametrize("settings", [{}, {"remasking": "random"}, {"threshold": 0.5}, {"correction": 0.4}])
def test_a_row_is_what_it_is_alone(settings):
    chance = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(3, 12, WIDTH, generator=chance)
    sampling = Sampling(temperature=0.8, top_k=5)
    allowed = rules(stops=((EOS,),))
    together = filled(Table(logits), masks(3, 4), allowed, (7, 8, 9), 4, 12, sampling, steps=3, **settings)
    for row in range(3):
        alone = filled(
            Table(logits[row : row + 1]),
            masks(1, 4),
            allowed,
            (7 + row,),
            4,
            12,
            sampling,
            steps=3,
            **settings,
        )
        end = int(alone.end[0])
        assert int(together.end[row]) == (end if end < alone.ids.shape[1] else together.ids.shape[1])
        assert together.ids[row, :end].tolist() == alone.ids[0, :end].tolist()


def test_a_seed_gives_the_same_and_another_another():
    logits = torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=1)
    first, again, other = (
        filled(Table(logits), masks(1, 8), None, (seed,), sampling=sampling, steps=4).ids.tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_steps_and_blocks_that_do_not_divide_are_refused_with_the_nearest_that_do():
    assert steps_per_block(12, 4, 6) == 2
    with pytest.raises(
        ValueError, match=r"^length 50 is no multiple of block_length 16; 48 or 64 would fit$"
    ):
        steps_per_block(50, 16, 8)
    with pytest.raises(ValueError, match=r"^steps 7 cannot be divided among 3 blocks; 6 or 9 would fit$"):
        steps_per_block(48, 16, 7)
    with pytest.raises(ValueError, match=r"steps 2 cannot be divided among 3 blocks; 3 would fit"):
        steps_per_block(48, 16, 2)
    for wrong in ({"steps": 0}, {"threshold": 0.0}, {"correction": 1.5}):
        with pytest.raises(ValueError, match="would fit"):
            MaskedSampling(**wrong)
    assert replace(MaskedSampling(), steps=3).steps == 3
