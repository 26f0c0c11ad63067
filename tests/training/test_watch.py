"""Steps that go wrong, and what is done about them."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pictish.training.watch import ENOUGH, EXPLODED, Anomaly, Watch

ALONE = SimpleNamespace(num_processes=1, scaler=None, is_main_process=True)
NAMES = ["a.tar/1", "a.tar/2", "b.tar/9", "b.tar/7"]


def judge(watch: Watch, step: int, loss: float, norm: float = 1.0, asked: bool = False):
    norms = {"gradient_norm": torch.tensor(norm)}
    return watch.judge(step, torch.tensor(4 * loss), 4, norms, asked, lambda: NAMES)


def steady(watch: Watch, loss: float = 0.5, steps: int = ENOUGH) -> None:
    for step in range(1, steps + 1):
        assert judge(watch, step, loss).good


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
    watch = Watch(tmp_path, ALONE)
    steady(watch)
    with pytest.raises(Anomaly) as error:
        judge(watch, 21, loss, norm)
    line = str(error.value)
    for words in (f"step 21: {reason}", "a.tar/1, a.tar/2, b.tar/9 and 1 more", "--anomaly-skip 1"):
        assert words in line
    assert "\n" not in line
    facts = json.loads((tmp_path / "anomalies" / "step-00000021.json").read_text())
    assert facts["samples"] == NAMES
    assert facts["reason"] == reason


def test_losses_that_fall_or_waver_are_good(tmp_path):
    watch = Watch(tmp_path, ALONE)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 400):
        noise = float((torch.randn((), generator=generator) / 2).exp())
        assert judge(watch, step, 5 / step * noise).good
    assert judge(watch, 400, 0.15).good, "small losses are no explosion, whatever they were before"


def test_another_phase_may_have_other_losses(tmp_path):
    watch = Watch(tmp_path, ALONE)
    steady(watch, 0.02)
    watch.forget()
    assert judge(watch, 21, 3.0).good


def test_so_many_are_passed_over_and_buffers_put_back(tmp_path):
    watch = Watch(tmp_path, ALONE, allowed=2)
    module = nn.BatchNorm1d(2)
    for step in (1, 2):
        watch.begin(module)
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module(torch.full((3, 2), float("nan")))
        assert module.running_mean.isnan().any()
        assert not judge(watch, step, float("nan")).good
        assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    watch.begin(module)
    with pytest.raises(Anomaly, match="--anomaly-skip 3"):
        judge(watch, 3, float("nan"))


def test_what_it_knows_goes_through_a_checkpoint(tmp_path):
    whole, first = Watch(tmp_path, ALONE, allowed=1), Watch(tmp_path, ALONE, allowed=1)
    for watch in (whole, first):
        watch.begin(nn.Linear(1, 1))
        steady(watch, 0.3, 150)
        judge(watch, 151, float("nan"))
    second = Watch(tmp_path, ALONE, allowed=1)
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == whole.state()
    with pytest.raises(Anomaly):
        judge(second, 152, 0.3 * EXPLODED * 1.1)
    Watch(tmp_path, ALONE).load(None)  # a checkpoint of an earlier version has none


def test_the_numbers_of_a_line(tmp_path):
    watch = Watch(tmp_path, ALONE)
    for step, norm in enumerate((1.0, 7.0, 2.0), 1):
        judge(watch, step, 0.5, norm)
    assert watch.numbers() == {"gradient_norm": 2.0, "gradient_norm_max": 7.0, "skipped_steps": 0}
    assert watch.numbers() == {"skipped_steps": 0}


def test_an_infinite_gradient_of_fp16_is_its_scalers_business(tmp_path):
    watch = Watch(tmp_path, SimpleNamespace(num_processes=1, scaler=object(), is_main_process=True))
    assert judge(watch, 1, 0.5, float("inf")).good


def test_being_asked_to_stop_is_handed_on(tmp_path):
    watch = Watch(tmp_path, ALONE)
    assert judge(watch, 1, 0.5, asked=True) == (True, True)
    assert judge(watch, 2, 0.5) == (True, False)
