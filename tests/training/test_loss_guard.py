"""Steps that go wrong, and what is done about them."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pictish.training.loss_guard import ENOUGH, EXPLODED, Anomaly, LossGuard

SINGLE_PROCESS = SimpleNamespace(num_processes=1, scaler=None, is_main_process=True)
NAMES = ["a.tar/1", "a.tar/2", "b.tar/9", "b.tar/7"]


def check(guard: LossGuard, step: int, loss: float, norm: float = 1.0, asked: bool = False):
    norms = {"gradient_norm": torch.tensor(norm)}
    return guard.check(step, torch.tensor(4 * loss), 4, norms, asked, lambda: NAMES)


def steady(guard: LossGuard, loss: float = 0.5, steps: int = ENOUGH) -> None:
    for step in range(1, steps + 1):
        assert check(guard, step, loss).good


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (float("nan"), 1, "its loss is nan"),
        (float("inf"), 1, "its loss is inf"),
        (0.5, float("nan"), "its gradient norm is nan"),
        (1.1 * EXPLODED * 0.5, 1, "its loss is 11, the median of the last 20 is 0.5"),
    ],
)
def test_a_bad_step_stops_the_run_and_names_its_samples(tmp_path, loss, norm, reason):
    guard = LossGuard(tmp_path, SINGLE_PROCESS)
    steady(guard)
    with pytest.raises(Anomaly) as error:
        check(guard, 21, loss, norm)
    line = str(error.value)
    for words in (f"step 21: {reason}", "a.tar/1, a.tar/2, b.tar/9 and 1 more", "--anomaly-skip 1"):
        assert words in line
    assert "\n" not in line
    facts = json.loads((tmp_path / "anomalies" / "step-00000021.json").read_text())
    assert facts["samples"] == NAMES
    assert facts["reason"] == reason


def test_losses_that_fall_or_waver_are_good(tmp_path):
    guard = LossGuard(tmp_path, SINGLE_PROCESS)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 400):
        noise = float((torch.randn((), generator=generator) / 2).exp())
        assert check(guard, step, 5 / step * noise).good
    assert check(guard, 400, 0.15).good, "small losses are no explosion, whatever they were before"


def test_another_phase_may_have_other_losses(tmp_path):
    guard = LossGuard(tmp_path, SINGLE_PROCESS)
    steady(guard, 0.02)
    guard.forget()
    assert check(guard, 21, 3.0).good


def test_so_many_are_passed_over_and_buffers_put_back(tmp_path):
    guard = LossGuard(tmp_path, SINGLE_PROCESS, allowed=2)
    module = nn.BatchNorm1d(2)
    for step in (1, 2):
        guard.begin(module)
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module(torch.full((3, 2), float("nan")))
        assert module.running_mean.isnan().any()
        assert not check(guard, step, float("nan")).good
        assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    guard.begin(module)
    with pytest.raises(Anomaly, match="--anomaly-skip 3"):
        check(guard, 3, float("nan"))


def test_what_it_knows_goes_through_a_checkpoint(tmp_path):
    whole, first = (
        LossGuard(tmp_path, SINGLE_PROCESS, allowed=1),
        LossGuard(tmp_path, SINGLE_PROCESS, allowed=1),
    )
    for guard in (whole, first):
        guard.begin(nn.Linear(1, 1))
        steady(guard, 0.3, 150)
        check(guard, 151, float("nan"))
    second = LossGuard(tmp_path, SINGLE_PROCESS, allowed=1)
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == whole.state()
    with pytest.raises(Anomaly):
        check(second, 152, 0.3 * EXPLODED * 1.1)
    LossGuard(tmp_path, SINGLE_PROCESS).load(None)  # a checkpoint of an earlier version has none


def test_the_numbers_of_a_line(tmp_path):
    guard = LossGuard(tmp_path, SINGLE_PROCESS)
    for step, norm in enumerate((1.0, 7.0, 2.0), 1):
        check(guard, step, 0.5, norm)
    assert guard.numbers() == {"gradient_norm": 2.0, "gradient_norm_max": 7.0, "skipped_steps": 0}
    assert guard.numbers() == {"skipped_steps": 0}


def test_an_infinite_gradient_of_fp16_is_its_scalers_business(tmp_path):
    guard = LossGuard(tmp_path, SimpleNamespace(num_processes=1, scaler=object(), is_main_process=True))
    assert check(guard, 1, 0.5, float("inf")).good


def test_being_asked_to_stop_is_handed_on(tmp_path):
    guard = LossGuard(tmp_path, SINGLE_PROCESS)
    assert check(guard, 1, 0.5, asked=True) == (True, True)
    assert check(guard, 2, 0.5) == (True, False)
