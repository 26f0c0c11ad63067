import copy

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from pictish.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from pictish.training.optimizer import Muon, adamw, muon


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.position = nn.Parameter(torch.ones(5, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def decay_by_name(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}


def test_only_matrices_decay():
    optimizer = adamw(Part(), lr=1e-3, weight_decay=0.1, no_decay=("position",))
    assert decay_by_name(optimizer) == {
        "linear.weight": 0.1,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "position": 0.0,
    }
    assert optimizer.defaults["fused"]
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def names_of(optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def test_named_parameters_of_several_modules():
    parts = {"a": Part(), "b": Part()}
    named = [
        (f"{key}.{name}", value) for key, part in parts.items() for name, value in part.named_parameters()
    ]
    optimizer = adamw(named, lr=1e-3, weight_decay=0.1, no_decay=("*.position",))
    assert decay_by_name(optimizer)["b.position"] == 0.0
    assert sorted(names_of(optimizer)) == sorted(name for name, value in named if value.requires_grad)


def test_a_pattern_that_matches_nothing_and_nothing_to_train_are_refused():
    with pytest.raises(ValueError, match="pattern 'positions' matches none of 5 parameters"):
        adamw(Part(), lr=1e-3, weight_decay=0.1, no_decay=("positions",))
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        adamw(Part().requires_grad_(False), lr=1e-3, weight_decay=0.1)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.hidden(self.embedding(ids))))


def run(model: Deep, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + number)
        loss = model(torch.tensor([[number % 6, 1]])).square().mean()
        loss.backward()
        optimizer.step()


def test_muon_orthogonalizes_hidden_matrices_and_leaves_the_rest_to_adamw():
    torch.manual_seed(0)
    model = Deep()
    other = copy.deepcopy(model)
    settings = {"lr": 0.01, "weight_decay": 0.0}
    optimizer = muon(model, **settings, matrices={"hidden.weight"}, no_decay=("embedding.*",))
    assert sorted(names_of(optimizer)) == sorted(name for name, _ in model.named_parameters())
    before = model.hidden.weight.detach().clone()
    model.hidden.weight.grad = torch.randn(8, 4) @ torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    optimizer.step()
    singular = torch.linalg.svdvals(model.hidden.weight.detach() - before) / (0.01 * 0.2 * 8**0.5)
    assert ((singular > 0.6) & (singular < 1.3)).all(), "as large in every direction, scaled to AdamW's size"
    run(other, adamw(other, **settings), range(1))
    again = Deep()
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    torch.manual_seed(0)
    fresh = Deep()
    run(fresh, muon(fresh, **settings, matrices={"hidden.weight"}), range(1))
    for name in ("embedding.weight", "norm.weight", "head.weight", "head.bias"):
        assert torch.equal(fresh.get_parameter(name), again.get_parameter(name)), name
    assert not torch.equal(fresh.hidden.weight, again.hidden.weight)


def test_muon_goes_on_exactly_from_its_checkpoint():
    torch.manual_seed(0)
    model = Deep()
    names = [name for name, _ in model.named_parameters()]
    made = {"lr": 0.01, "weight_decay": 0.1, "matrices": {"hidden.weight"}}
    accelerate = Accelerator(cpu=True)
    optimizer = accelerate.prepare(muon(model, **made))  # which loads its state
    run(model, optimizer, range(3))
    tensors = {name: t.clone() for name, t in optimizer_tensors(optimizer, names).items()}
    assert "optimizer.hidden.weight.momentum_buffer" in tensors
    assert "optimizer.hidden.bias.exp_avg_sq" in tensors
    other = copy.deepcopy(model)
    run(model, optimizer, range(3, 6))
    resumed = muon(other, **made)
    load_optimizer_tensors(resumed, names, tensors)
    run(other, accelerate.prepare(resumed), range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_muon_refuses_matrices_in_shards():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        named = [("hidden.weight", nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])))]
        with pytest.raises(ValueError, match="optimizer muon: an update needs a whole matrix"):
            muon(named, 1e-3, 0.1, matrices={"hidden.weight"})
    finally:
        dist.destroy_process_group()


def test_muon_without_matrices_is_adamw():
    optimizer = muon(Deep(), 1e-3, 0.1, matrices=())
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_muon_takes_the_steps_of_torch(shape):
    generator = torch.Generator().manual_seed(0)
    first, second = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours = Muon([("w", first)], 0.02, 0.1)
    theirs = torch.optim.Muon([("w", second)], 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        first.grad = torch.randn(shape, generator=generator)
        second.grad = first.grad.clone()
        ours.step(), theirs.step()
    assert (first - 1).abs().mean() > 0.01
    assert torch.allclose(first, second, atol=2e-3)  # which computes in bf16


def test_muon_takes_convolutions_as_matrices():
    generator = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(kernel.shape, generator=generator)
    matrix.grad = kernel.grad.flatten(1).clone()
    Muon([("k", kernel)], 0.02, 0.1).step(), Muon([("m", matrix)], 0.02, 0.1).step()
    assert torch.equal(kernel.detach().flatten(1), matrix)
