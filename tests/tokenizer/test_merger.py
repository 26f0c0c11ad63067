"""The merger: exact masking, causality to the bit, and one set of weights in two forms."""

import pytest
import torch

from pictish.tokenizer.merger import Merger, kept_rows

CELLS, WIDTH = 16, 32


@pytest.fixture(scope="module")
def merger() -> Merger:
    torch.manual_seed(0)
    merger = Merger(WIDTH, 4, 2.0, 2).eval().requires_grad_(False)
    for block in merger.blocks:  # these start at zero
        torch.nn.init.normal_(block.attend_dropped.out.weight, std=0.2)
    return merger


def random_keep(count: int, rows: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, CELLS, generator=generator).argsort(dim=1)
    return order < count


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(5, CELLS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 3, 7, 15, 16])
def test_gathered_equals_dense_onkept_rows(merger, hidden, count):
    keep = random_keep(count)
    dense = merger(hidden, keep)[keep]
    rows, real = kept_rows(keep, min(CELLS, count + 3))
    gathered = merger.gathered(hidden, keep, rows, real)[real]
    assert torch.allclose(dense, gathered, atol=1e-5)
    assert torch.isfinite(merger.gathered(hidden, keep, rows, real)).all()


@pytest.mark.parametrize("form", ["dense", "gathered"])
def test_a_later_kept_patch_never_changes_an_earlier_output(merger, hidden, form):
    keep = random_keep(8)
    cells = [row.nonzero().squeeze(1) for row in keep]
    changed = hidden.clone()
    for picture, kept in enumerate(cells):
        changed[picture, kept[5]] += 3.0

    def run(x: torch.Tensor) -> torch.Tensor:
        if form == "dense":
            return torch.stack([merger(x, keep)[picture, kept] for picture, kept in enumerate(cells)])
        return merger.gathered(x, keep, *kept_rows(keep, 8))

    before, after = run(hidden), run(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(dim=-1).all()


def test_dropped_patches_reach_every_kept_token(merger, hidden):
    keep = random_keep(6)
    changed = hidden.clone()
    for picture, row in enumerate(keep):
        changed[picture, (~row).nonzero()[0]] += 3.0
    before, after = merger(hidden, keep), merger(changed, keep)
    assert (before[keep] != after[keep]).any(dim=-1).all()


def test_a_dropped_row_is_the_token_it_would_have_become(hidden):
    """Dense rows stand for what inference computes from kept ones alone.

    Exact for one block; in further blocks the kept rows themselves have seen the patch as a dropped one.
    """
    torch.manual_seed(0)
    merger = Merger(WIDTH, 4, 2.0, 1).eval().requires_grad_(False)
    torch.nn.init.normal_(merger.blocks[0].attend_dropped.out.weight)
    keep = random_keep(6)
    dense = merger(hidden, keep)
    for picture, row in enumerate(keep):
        for cell in (~row).nonzero().squeeze(1).tolist():
            added = keep.clone()
            added[picture, cell] = True
            assert torch.allclose(dense[picture, cell], merger(hidden, added)[picture, cell], atol=1e-5)


def test_cross_attention_adds_nothing_when_nothing_is_dropped(merger, hidden):
    keep = torch.ones(5, CELLS, dtype=torch.bool)
    normal = merger(hidden, keep)
    torch.manual_seed(1)
    other = Merger(WIDTH, 4, 2.0, 2).eval().requires_grad_(False)
    other.load_state_dict(merger.state_dict())
    for block in other.blocks:
        torch.nn.init.normal_(block.attend_dropped.out.weight)
        torch.nn.init.normal_(block.attend_dropped.out.bias)
    assert torch.equal(normal, other(hidden, keep))
    assert not torch.equal(merger(hidden, random_keep(8)), other(hidden, random_keep(8)))
