"""What a host has set decides nothing and stays; threads and forked children load and compute."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pictish import Pipeline
from pictish.training.accelerate_settings import check_environment
from pictish.training.isolation import training
from pictish.training.runtime import accelerator
from tests.tree import ROOT

THREADS_AND_FORK = """
import hashlib, os, sys, threading, time
import torch
before = torch.nn.init.normal_, torch.get_default_dtype(), torch.get_rng_state().tolist()
from pictish import Pipeline
from pictish.training.isolation import inference
start, loaded, failed = threading.Barrier(4), [], []

def load(number):
    start.wait()
    try:
        pipeline = Pipeline.from_pretrained(sys.argv[1], device="cpu")
        pipeline.language if number % 2 else pipeline.reconstructor()
        loaded.append(pipeline)
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=load, args=[number]) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
assert before == (torch.nn.init.normal_, torch.get_default_dtype(), torch.get_rng_state().tolist())
assert torch.get_num_threads() == 2, "else nothing would hang"

@inference
def large():
    return torch.ones(1_000_000).exp().sum().item()  # by both threads of OpenMP

def drawn(pipeline):
    picture = pipeline.generate("a red car", seed=1, max_codes=6)
    tokens = pipeline.tokenize(picture)
    return hashlib.sha256(picture.tobytes() + tokens.to_bytes() + str(large()).encode()).digest()

found = {drawn(pipeline) for pipeline in loaded}
assert len(found) == 1, "all are the same model"
read, write = os.pipe()
child = os.fork()
if not child:
    os.write(write, drawn(loaded[0]))
    os._exit(0)
end = time.monotonic() + 600
while not os.waitpid(child, os.WNOHANG)[0]:
    if time.monotonic() > end:
        os.kill(child, 9)
        raise AssertionError("the child hangs")
    time.sleep(0.05)
assert {os.read(read, 32)} == found
"""


def test_threads_load_at_once_and_a_forked_child_computes(whole_model):
    """In a process of its own: what is to be imported at once has not been imported before."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", THREADS_AND_FORK, str(whole_model)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr


def state():
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_device(),
        torch.get_rng_state().tolist(),
    )


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def matmul_precision(name):
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


HOSTS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "matmul": lambda: matmul_precision("medium"),
    "inference": torch.inference_mode,
    "device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def expected(whole_model):
    return everything(whole_model)


def everything(folder):
    """Images, codes and words of a model that is loaded for it."""
    pipeline = Pipeline.from_pretrained(folder, device="cpu")
    picture = pipeline.generate("a red car", seed=1, max_codes=6)
    edited = pipeline.edit(picture, "make it blue", seed=2, max_codes=6)
    preview = pipeline.reconstructor(preview=True)(pipeline.tokenize([picture]))[0]
    said = pipeline.describe(picture, max_new_tokens=4)
    return picture.tobytes(), edited.tobytes(), preview.tobytes(), pipeline.tokenize(picture), said


@pytest.mark.parametrize("host", HOSTS)
def test_what_a_host_has_set_changes_no_result_and_stays(whole_model, expected, host):
    with HOSTS[host]():
        before = state()
        found = everything(whole_model)
        assert state() == before
    assert found == expected


def test_settings_come_back_after_the_last_of_several_threads():
    from pictish.training.isolation import inference

    first_in, first_out = threading.Event(), threading.Event()
    seen = []

    @inference
    def outer():
        first_in.set()
        first_out.wait(30)
        seen.append(torch.get_default_dtype())

    with default_dtype(torch.float64):
        thread = threading.Thread(target=outer)
        thread.start()
        first_in.wait(30)
        inference(lambda: None)()
        first_out.set()
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64


class Config:
    def __init__(self, mixed_precision="no"):
        self.mixed_precision = mixed_precision


@training
def trained(config, device="cpu", *, fsdp=False):
    accelerate = accelerator(device, config.mixed_precision)
    torch.manual_seed(3)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    weight = torch.nn.Linear(4, 4).weight
    with accelerate.autocast():
        return accelerate.mixed_precision, accelerate.gradient_accumulation_steps, weight.sum().item()


@pytest.fixture
def no_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("no_state")
@pytest.mark.parametrize("host", [*HOSTS, "no_grad"])
def test_a_training_has_its_own_state_and_leaves_the_host_with_its(host):
    first = trained(Config())
    hosts = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    with (torch.no_grad if host == "no_grad" else HOSTS[host])():
        before = state()
        for precision in ("no", "bf16", "no"):  # trainings after one another
            found = trained(Config(precision))
            assert found[:2] == (precision, 1)
            assert found[2] == first[2]
        assert state() == before
    assert (hosts.mixed_precision, hosts.gradient_accumulation_steps) == ("bf16", 4)
    assert Accelerator(cpu=True).mixed_precision == "bf16"


@pytest.mark.usefixtures("no_state")
def test_two_trainings_at_once_are_refused():
    @training
    def outer(config, device="cpu", *, fsdp=False):
        trained(Config())

    with pytest.raises(ValueError, match="another training is under way in this process"):
        outer(Config())
    trained(Config())


def refusal(device="cpu", precision="no", fsdp=False, **environment):
    try:
        check_environment(environment, torch.device(device), precision, fsdp)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1"),
    ],
)
def test_settings_of_accelerate_that_a_run_does_not_follow_are_refused_by_name(name, value):
    assert name in (refusal(**{name: value}) or "")


def test_settings_that_change_nothing_are_taken():
    launched = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    launched |= {"ACCELERATE_USE_CPU": "False", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
    assert refusal(**launched) is None
    assert refusal(precision="bf16", ACCELERATE_MIXED_PRECISION="bf16", ACCELERATE_USE_CPU="true") is None
    assert refusal(precision="bf16", **launched) is None
    assert refusal(fsdp=True, ACCELERATE_USE_FSDP="true", FSDP_OFFLOAD_PARAMS="false") is None
    assert "give device cpu" in (refusal("cuda", ACCELERATE_USE_CPU="true") or "")
    assert "FSDP_OFFLOAD_PARAMS" in (refusal(fsdp=True, FSDP_OFFLOAD_PARAMS="true") or "")
    assert refusal(FSDP_OFFLOAD_PARAMS="true") is None, "without fsdp it means nothing"
