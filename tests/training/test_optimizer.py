import pytest
import torch
from torch import nn

from pictish.training.optimizer import adamw, parameter_names


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


def test_named_parameters_of_several_modules():
    parts = {"a": Part(), "b": Part()}
    named = [
        (f"{key}.{name}", value) for key, part in parts.items() for name, value in part.named_parameters()
    ]
    optimizer = adamw(named, lr=1e-3, weight_decay=0.1, no_decay=("*.position",))
    assert decay_by_name(optimizer)["b.position"] == 0.0
    assert sorted(parameter_names(optimizer)) == sorted(name for name, value in named if value.requires_grad)


def test_a_pattern_that_matches_nothing_and_nothing_to_train_are_refused():
    with pytest.raises(ValueError, match="pattern 'positions' matches none of 5 parameters"):
        adamw(Part(), lr=1e-3, weight_decay=0.1, no_decay=("positions",))
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        adamw(Part().requires_grad_(False), lr=1e-3, weight_decay=0.1)
