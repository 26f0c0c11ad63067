"""Processes that share one small network out: `shards.py learn|kill FOLDER`."""

import os
import signal
import sys
from pathlib import Path

import diffusers.training_utils  # noqa: F401 (before the forks)
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import Shard as Rows

from pictish.training.average import Average
from pictish.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore,
    save_checkpoint,
)
from pictish.training.optimizer import adamw
from pictish.training.runtime import accelerator
from pictish.training.sharding import plain, prepare, shard, whole
from tests.forks import forked

BATCH = 12  # divisible by all numbers of processes


class Network(nn.Module):
    """Tied ends, blocks, a buffer, a frozen part; its 7 rows fit no number of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)) for _ in "ab"]
        )
        self.end = nn.Linear(6, 7, bias=False)
        self.end.weight = self.begin.weight
        self.scale = nn.Parameter(torch.ones(1))  # fewer rows than processes
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.seen += 1
        x = self.middle(ids) + self.frozen(self.begin(ids))
        return self.end(x) * self.scale

    def middle(self, ids: Tensor) -> Tensor:
        x = self.begin(ids)
        for block in self.blocks:
            x = x + block(x)
        return x

    @torch.no_grad()
    def measured(self, ids: Tensor) -> Tensor:
        """Something that is asked for by another name than forward."""
        return self.end(self.middle(ids)).square().mean()


def learn(run: Path, steps: int, sharded: bool) -> None:
    """Train from the last checkpoint on; the main process says what it came to."""
    accelerate = accelerator("cpu")
    torch.manual_seed(accelerate.process_index if sharded else 0)  # the main process's weights count
    network = Network()
    skeleton = shard(network, accelerate, methods=("measured",), frozen_whole=True) if sharded else None
    optimizer = adamw(network, 1e-2, 0.1)
    names = [name for name, _ in network.named_parameters()]
    average = Average(network, 0.9)
    with accelerate.main_process_first():
        first = restore(run, network, optimizer, names, average)
    model, optimizer = prepare(accelerate, network, optimizer)
    index, count = accelerate.process_index, accelerate.num_processes
    said = []
    for step in range(first, steps):
        ids = torch.randint(7, (BATCH, 5), generator=torch.Generator().manual_seed(step))
        loss = model(ids[index::count]).square().mean()
        accelerate.backward(loss)
        norm = plain(accelerate.clip_grad_norm_(network.parameters(), 0.5))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        with average.applied():
            measured = network.measured(ids)
            shown = whole(network, skeleton, accelerate)
            if shown is not None:
                assert not any(isinstance(p, DTensor) for p in shown.parameters())
                assert shown.end.weight is shown.begin.weight
                assert torch.allclose(shown.measured(ids), measured, rtol=1e-5)
        said.append(f"{step} {accelerate.reduce(loss.detach(), 'mean')} {norm} {measured}\n")
    tensors = {**network.state_dict(), **optimizer_tensors(optimizer, names), **average.tensors()}
    save_checkpoint(run, steps, tensors, {}, 2, accelerate)
    if accelerate.is_main_process:
        with (run / "said.txt").open("a") as file:
            file.writelines(said)


OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")


def die_in_a_save(run: Path, step: int, victim: int, moment: int) -> None:
    """Save step 1, then `step`, at whose `moment`-th file operation the victim dies."""
    accelerate = accelerator("cpu")
    mesh = init_device_mesh("cpu", (2,))

    def save(number: int) -> None:
        sharded = distribute_tensor(torch.full((3, 2), float(number)), mesh, [Rows(0)])
        save_checkpoint(run, number if number == 1 else step, {"w": sharded}, {}, 1, accelerate)

    save(1)
    calls = 0

    def die(event: str, arguments: tuple) -> None:
        nonlocal calls
        if event in OPERATIONS and accelerate.process_index == victim and str(run) in str(arguments[0]):
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    save(2)


def kill(folder: Path) -> None:
    """Each process killed at each of its file operations; says what the checkpoint then holds."""
    for step, victim in ((1, 0), (2, 0), (2, 1)):
        for moment in range(1, 60):
            run = folder / f"{step}-{victim}-{moment}"
            codes = forked(2, lambda: die_in_a_save(run, step, victim, moment))  # noqa: B023 (at once)
            latest = latest_checkpoint(run)
            assert latest is not None
            assert all(path.name.startswith("step-") for path in latest.parent.iterdir())
            values = load_checkpoint(latest)[0]["w"]
            assert values.shape == (3, 2)
            assert (values == values[0, 0]).all()
            print(step, victim, int(values[0, 0]), int(any(codes)), flush=True)
            if not any(codes):
                break


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(Path(sys.argv[2]))
    else:
        folder = Path(sys.argv[2])
        for name, steps, processes, sharded in (
            ("one", 8, 1, False),
            ("moved", 3, 2, True),
            ("moved", 5, 4, True),
            ("moved", 8, 1, False),
        ):
            run = folder / name
            codes = forked(processes, lambda: learn(run, steps, sharded))  # noqa: B023 (done at once)
            assert not any(codes), (name, steps, codes)
