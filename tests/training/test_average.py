"""The moving average of weights: its formula, what it puts back, and that a checkpoint holds all of it."""

import copy

import pytest
import torch
from torch import nn

from pictish.training.average import Average


def module() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    made[1].requires_grad_(False)
    return made


def step(made: nn.Module, number: int) -> None:
    with torch.no_grad():
        for place, parameter in enumerate(made.parameters()):
            parameter.copy_(torch.full_like(parameter, float(number + place)))


def test_it_is_the_average_with_diffusers_warm_up():
    made = module()
    average = Average(made, decay=0.9)
    expected = made[0].weight.detach().clone()
    for number in range(1, 40):
        step(made, number)
        average.update()
        decay = 0.0 if number == 1 else min((1 + number - 1) / (10 + number - 1), 0.9)
        expected = decay * expected + (1 - decay) * number
    with average.applied():
        assert torch.allclose(made[0].weight, expected, rtol=1e-4)
    assert 20 < expected.mean() < 38.5


def test_inside_the_average_outside_the_weights_also_after_an_error():
    made = module()
    average = Average(made, decay=0.9)
    for number in (1, 2, 3):
        step(made, number)
        average.update()
    own = copy.deepcopy(made.state_dict())
    with average.applied():
        assert not torch.equal(made[0].weight, own["0.weight"])
        assert torch.equal(made[1].weight, own["1.weight"]), "what is frozen has no average"
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert all(torch.equal(tensor, own[name]) for name, tensor in made.state_dict().items())


def test_a_checkpoint_holds_all_of_it():
    made, other = module(), module()
    whole, first = Average(made, 0.9), Average(other, 0.9)
    for number in range(1, 8):
        step(made, number)
        whole.update()
        if number == 4:
            tensors = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    assert sorted(tensors) == ["average.0.bias", "average.0.weight", "average.steps"]
    step(other, 4)
    first.load({**tensors, "0.weight": torch.zeros(1)})
    for number in range(5, 8):
        step(other, number)
        first.update()
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, first.tensors()[name]), name


def test_named_parameters_are_averaged_also_while_they_are_frozen():
    made = module()
    average = Average(made, 0.9, names={"0.weight", "1.bias"})
    made.requires_grad_(False)
    for number in range(1, 5):
        step(made, number)
        average.update()
    assert sorted(average.tensors()) == ["average.0.weight", "average.1.bias", "average.steps"]
    with average.applied():
        assert float(made[0].weight[0, 0]) < 3.9
        assert float(made[0].bias[0]) == 5.0, "not among the names"
    assert float(made[0].weight[0, 0]) == 4.0


def test_without_decay_there_is_none():
    made = module()
    average = Average(made, decay=0)
    before = copy.deepcopy(made.state_dict())
    average.update()
    average.load({})
    assert average.tensors() == {}
    with average.applied():
        assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
