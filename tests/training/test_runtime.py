import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from pictish.training.precision import resolve_precision
from pictish.training.runtime import accelerator, keep_freed_memory, resolve_device


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


@pytest.mark.usefixtures("no_cuda")
def test_without_cuda():
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(
        ValueError, match=r"^device cuda:1: this machine has no CUDA device; give auto or cpu$"
    ):
        resolve_device("cuda:1")


@pytest.mark.usefixtures("two_gpus")
def test_with_two_gpus():
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device cuda:2: this machine has 2 CUDA device\(s\)"):
        resolve_device("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_under_a_launcher_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda", "cuda:0"):
        assert resolve_device(name) == torch.device("cuda:1"), "where accelerate puts the model"
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"device cuda:2: this machine has 2 CUDA device\(s\)"):
        resolve_device("auto")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ValueError, match="not known; give auto, cpu"):
        resolve_device(name)


def test_accelerator_on_the_cpu_steps_a_model():
    world = accelerator("cpu")
    assert world.device == torch.device("cpu")
    model, optimizer = world.prepare(
        torch.nn.Linear(2, 2), torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    )
    assert next(model.parameters()).device.type == "cpu"
    assert optimizer.param_groups[0]["lr"] > 0


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="mixed_precision fp8: not known; give auto, no, bf16 or fp16"):
        accelerator("cpu", "fp8")


@pytest.mark.parametrize(("units", "found"), [({"amx_bf16": True}, "bf16"), ({"amx_bf16": False}, "no")])
def test_auto_takes_bf16_where_the_processor_has_units_for_it(monkeypatch, units, found):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_f": True, **units})
    assert resolve_precision("auto", torch.device("cpu")) == found
    assert resolve_precision("fp16", torch.device("cpu")) == "fp16"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation)
    assert resolve_precision("auto", torch.device("cuda")) == "no", "emulation is no unit"


def test_auto_is_resolved_before_accelerate_sees_it(monkeypatch, request):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, says accelerate
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    assert accelerator("cpu", "auto").mixed_precision == "bf16"


FAULTS = """
import resource
import torch
from pictish.training.runtime import keep_freed_memory
for keep in (False, True):
    if keep:
        keep_freed_memory()
    for step in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(12_000_000)  # 48 MB, more than glibc keeps by itself
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    as_it_is, kept = map(int, done.stdout.split())
    assert kept * 10 < as_it_is
    keep_freed_memory()  # and it may be called more than once
    keep_freed_memory()
