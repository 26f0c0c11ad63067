"""Numbers recorded from LaVIT's own code, where the fixture lies beside the checkout; faults count."""

import pytest
import torch

from tests.tree import ROOT
from tools.compare_lavit import Recorded, Row, all_stages, compare, same, table, tensors

FIXTURE = ROOT.parent / "shared" / "fixtures" / "lavit_tiny"


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the recorded fixture is not here")
def test_an_import_gives_the_recorded_numbers(tmp_path):
    with torch.inference_mode():
        rows = compare(FIXTURE, all_stages(), tmp_path)
    assert len(rows) > 70
    assert [row for row in rows if not row.right] == [], table(rows)


def test_a_difference_beyond_the_tolerance_is_told():
    ours = torch.zeros(3)
    assert tensors("x", ours, ours + 9e-5).right
    assert not tensors("x", ours, ours + 2e-4).right
    assert not tensors("x", ours, ours + torch.nan).right
    assert not tensors("x", ours, torch.zeros(4)).right
    assert same("x", [1, 2], [1, 2]) == Row("x", True, equal="2 of 2")
    assert not same("x", [1, 2], [1, 3]).right
    assert "OUTSIDE" in table([same("x", [1], [2])])


def test_what_was_looked_at_is_known():
    store = Recorded({"a.1": 1, "a.2": 2, "b": 3})
    assert store.kinds("a.") == ["1", "2"]
    assert store["b"] == 3
    assert store.seen == {"b"}
