"""Numbers recorded from IAA's own code, where the recording lies beside the checkout."""

import pytest
import torch

from tests.tree import ROOT
from tools.compare_iaa import compare
from tools.compare_lavit import table

FIXTURE = ROOT.parent / "shared" / "fixtures" / "iaa_tiny"


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the recording is not here")
def test_an_import_gives_the_recorded_numbers(tmp_path):
    with torch.inference_mode():
        rows = compare(FIXTURE, tmp_path)
    assert len(rows) > 30
    assert [row for row in rows if not row.right] == [], table(rows)
