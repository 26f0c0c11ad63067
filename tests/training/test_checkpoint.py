import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from pictish.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    restore,
    save_checkpoint,
)
from pictish.training.optimizer import adamw
from pictish.training.schedule import warmup_cosine


class Run:
    """A small training run with everything that has state: weights, moments, a generator, a schedule."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
        self.optimizer = adamw(self.model, lr=1.0, weight_decay=0.1)
        self.generator = torch.Generator().manual_seed(seed)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.step = 0

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = warmup_cosine(self.step, peak=1e-2, warmup=3, total=20)
            inputs = torch.randn(5, 6, generator=self.generator)
            loss = (self.model(inputs) - inputs[:, :3]).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            losses.append(loss.item())
        return losses

    def tensors(self) -> dict[str, torch.Tensor]:
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        moments = optimizer_tensors(self.optimizer, self.names)
        return {**weights, **moments, "generator": self.generator.get_state()}

    def load(self, path) -> None:
        tensors, state = load_checkpoint(path)
        weights = {
            name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
        }
        self.model.load_state_dict(weights)
        load_optimizer_tensors(self.optimizer, self.names, tensors)
        self.generator.set_state(tensors["generator"])
        self.step = state["step"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_resume_is_bit_exact(tmp_path, stop):
    whole = Run()
    losses = whole.train(12)
    first = Run()
    assert first.train(stop) == losses[:stop]
    save_checkpoint(tmp_path, first.step, first.tensors(), {"seen": 3}, keep=2)
    second = Run(seed=1)  # other weights and another generator, all of which must be overwritten
    second.load(latest_checkpoint(tmp_path))
    assert second.train(12 - stop) == losses[stop:]
    assert same(whole.tensors(), second.tensors())


def test_restore_fills_module_and_optimizer_or_leaves_them_alone(tmp_path):
    first, second = Run(), Run(seed=1)
    untouched = second.tensors()
    assert restore(tmp_path, second.model, second.optimizer, second.names) == 0
    assert same(untouched, second.tensors())
    first.train(3)
    everything = {**first.model.state_dict(), **optimizer_tensors(first.optimizer, first.names)}
    save_checkpoint(tmp_path, 3, everything, {}, keep=1)
    assert restore(tmp_path, second.model, second.optimizer, second.names) == 3
    assert same(
        everything, {**second.model.state_dict(), **optimizer_tensors(second.optimizer, second.names)}
    )
    with pytest.raises(ValueError, match=r"do not fit this model: .*Missing key"):
        restore(tmp_path, nn.Linear(2, 2), second.optimizer, second.names)


def test_optimizer_state_survives_in_full():
    run = Run()
    run.train(2)
    moments = optimizer_tensors(run.optimizer, run.names)
    assert len(moments) == 3 * len(run.names)
    assert moments["optimizer.0.weight.exp_avg"].shape == (8, 6)
    assert moments["optimizer.0.weight.step"] == 2


def test_names_may_come_in_any_order_but_none_may_be_missing():
    run = Run()
    run.train(1)
    moments = optimizer_tensors(run.optimizer, run.names)
    assert same(moments, optimizer_tensors(run.optimizer, [*reversed(run.names), "frozen"]))
    with pytest.raises(AssertionError, match=r"3\.bias"):
        optimizer_tensors(run.optimizer, run.names[:-1])


def test_an_optimizer_prepared_by_accelerate_is_read_and_written():
    from pictish.training.runtime import accelerator

    run, other = Run(), Run(seed=1)
    world = accelerator("cpu")
    run.model, run.optimizer = world.prepare(run.model, run.optimizer)
    run.train(3)
    tensors = optimizer_tensors(run.optimizer, run.names)
    assert len(tensors) == 3 * len(run.names)
    other.model, other.optimizer = world.prepare(other.model, other.optimizer)
    other.train(1)
    load_optimizer_tensors(other.optimizer, other.names, tensors)
    assert same(tensors, optimizer_tensors(other.optimizer, other.names))


def test_loading_forgets_state_that_the_checkpoint_does_not_have():
    run = Run()
    run.train(2)
    load_optimizer_tensors(run.optimizer, run.names, {"model.0.weight": torch.zeros(1)})
    assert optimizer_tensors(run.optimizer, run.names) == {}


def test_optimizer_state_of_another_model_is_refused():
    run = Run()
    run.train(1)
    moments = optimizer_tensors(run.optimizer, run.names)
    with pytest.raises(ValueError, match=r"optimizer state of 9\.weight"):
        load_optimizer_tensors(run.optimizer, run.names, {"optimizer.9.weight.exp_avg": torch.zeros(1)})
    wrong = {**moments, "optimizer.0.weight.exp_avg": torch.zeros(6, 8)}
    with pytest.raises(ValueError, match=r"exp_avg of 0\.weight has shape \(6, 8\), the model \(8, 6\)"):
        load_optimizer_tensors(run.optimizer, run.names, wrong)


def test_layout_state_and_pruning(tmp_path):
    for step in (5, 20, 100):
        path = save_checkpoint(
            tmp_path, step, {"w": torch.full((2,), step)}, {"name": "x", "lr": 0.1}, keep=2
        )
    assert path == tmp_path / "checkpoints/step-00000100"
    names = sorted(one.name for one in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000020", "step-00000100"]
    assert sorted(one.name for one in path.iterdir()) == ["state.json", "tensors.safetensors"]
    tensors, state = load_checkpoint(latest_checkpoint(tmp_path))
    assert tensors["w"].tolist() == [100, 100]
    assert state == {"name": "x", "lr": 0.1, "step": 100}


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 2)}
    one = save_checkpoint(tmp_path / "one", 1, tensors, {"y": 1, "x": 2}, keep=1)
    two = save_checkpoint(tmp_path / "two", 1, dict(reversed(tensors.items())), {"x": 2, "y": 1}, keep=1)
    for name in ("tensors.safetensors", "state.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_tied_and_strided_tensors_are_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    path = save_checkpoint(tmp_path, 1, {"a": weight, "b": weight, "c": weight.T}, {}, keep=1)
    tensors, _ = load_checkpoint(path)
    assert torch.equal(tensors["a"], weight)
    assert torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["c"], weight.T)


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, keep=1)
    path = save_checkpoint(tmp_path, 1, {"w": torch.ones(1)}, {}, keep=1)
    assert load_checkpoint(path)[0]["w"].item() == 1
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_half_written_checkpoints_are_ignored_and_cleaned(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    good = save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, keep=3)
    half = good.parent / ".step-00000002.pictish-tmp"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    (good.parent / "notes.txt").write_text("kept")
    assert latest_checkpoint(tmp_path) == good
    assert sorted(one.name for one in good.parent.iterdir()) == ["notes.txt", "step-00000001"]


def test_a_replacement_cut_short_keeps_the_earlier_checkpoint(tmp_path):
    good = save_checkpoint(tmp_path, 1, {"w": torch.ones(1)}, {}, keep=1)
    good.rename(good.parent / ".step-00000001.pictish-old")  # killed between the two renames
    assert latest_checkpoint(tmp_path) == good
    assert load_checkpoint(good)[0]["w"].item() == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pictish.training.checkpoint import save_checkpoint

OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")

def child(run, step, moment):
    # dies at the given one of the file operations of the second save
    save_checkpoint(run, 1, {"w": torch.ones(4)}, {}, keep=1)
    calls = 0
    def die(event, args):
        nonlocal calls
        if event in OPERATIONS:
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(die)
    save_checkpoint(run, step, {"w": torch.full((4,), 2.0)}, {}, keep=1)
    os._exit(0)

for step in (1, 2):
    for moment in range(1, 60):
        run = Path(sys.argv[1]) / f"{step}-{moment}"
        pid = os.fork()
        if pid == 0:
            child(run, step, moment)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(step, moment, code, flush=True)
        if code != -signal.SIGKILL:
            break
"""


def test_sigkill_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    outcomes = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for step in (1, 2):
        codes = [code for one, _, code in outcomes if one == step]
        assert codes[-1] == 0  # the last child was not killed
        assert len(codes) > 8
        values = []
        for moment in range(1, len(codes) + 1):
            path = latest_checkpoint(tmp_path / f"{step}-{moment}")
            values.append(load_checkpoint(path)[0]["w"][0].item())
            assert all(one.name.startswith("step-") for one in path.parent.iterdir())
        assert values[0] == 1
        assert values[-1] == 2
        assert values == sorted(values)  # the old one up to some moment, the new one from then on


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, name):
    path = save_checkpoint(tmp_path, 1, {"w": torch.zeros(4)}, {}, keep=1)
    (path / name).write_bytes((path / name).read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"step-00000001: damaged checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_future_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"w": torch.zeros(4)}, {}, keep=1)
    document = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**document, "format_version": 3}))
    with pytest.raises(ValueError, match="checkpoint format 3"):
        load_checkpoint(path)
