import json
import sys

import numpy as np
import pytest
import torch

from pictish.training.metrics import MetricsLog


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path / "run", resume_step=0)
    log.write(1, loss=torch.tensor(0.5), rate=np.float32(0.25), codes=7)
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 0.5, "rate": 0.25, "codes": 7}]
    log.close()


def test_resume_drops_later_lines_and_a_line_cut_short(tmp_path):
    with MetricsLog(tmp_path, resume_step=0) as log:
        for step in range(1, 6):
            log.write(step, loss=step / 10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    with MetricsLog(tmp_path, resume_step=3) as log:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
        log.write(4, loss=9.0)
    assert lines(tmp_path)[-1] == {"step": 4, "loss": 9.0}
    assert len(lines(tmp_path)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_empty(tmp_path):
    with MetricsLog(tmp_path, resume_step=0) as log:
        log.write(1, loss=1.0)
    MetricsLog(tmp_path, resume_step=0).close()
    assert lines(tmp_path) == []


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install tensorboard$"):
        MetricsLog(tmp_path, resume_step=0, tensorboard=True)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, resume_step=0, tensorboard=True) as log:
        log.write(1, loss=0.5)
        log.write(2, loss=0.25)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


class Stub:
    """What `wandb.init` was called with, and what its run was told."""

    def __init__(self):
        self.runs = []

    def init(self, **settings):
        self.runs.append((settings, self.Run()))
        return self.runs[-1][1]

    class Run:
        def __init__(self):
            self.told, self.finished = [], False

        def log(self, values, step=None, **_):
            self.told.append((step, values))

        def finish(self):
            self.finished = True


def test_wandb_gets_the_same_numbers_and_resumes_its_run(tmp_path, monkeypatch):
    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: True)
    run = tmp_path / "first-run"
    run.mkdir()
    (run / "config.yaml").write_text("steps: 3\n")
    with MetricsLog(run, resume_step=0, wandb=True) as log:
        log.write(1, loss=2.5)
    with MetricsLog(run, resume_step=1, wandb=True) as log:
        log.write(2, loss=1.5)
    with MetricsLog(run, resume_step=0, wandb=True):
        pass
    settings = [settings for settings, _ in stub.runs]
    assert settings[0] == {
        "project": "pictish",
        "id": settings[1]["id"],
        "name": "first-run",
        "dir": str(run),
        "resume": "allow",
        "config": {"steps": 3},
    }
    assert settings[2]["id"] != settings[0]["id"], "a run that begins again is another one"
    assert [each.told for _, each in stub.runs] == [[(1, {"loss": 2.5})], [(2, {"loss": 1.5})], []]
    assert all(each.finished for _, each in stub.runs)


def test_wandb_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install wandb$"):
        MetricsLog(tmp_path, resume_step=0, wandb=True)
