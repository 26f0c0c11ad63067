"""Inner adaptors: decoder layers, an embedding table, a final norm and a head beside a frozen language model.

After IAA (Inner-Adaptor Architecture, arXiv 2408.12902). An insertion layer is a whole decoder layer of the
base's own class: it reads what base layer `point` gives, and what it gives goes to base layer `point + 1`.

    table -> base layer 0 -> insertion 0 -> base layer 1 -> ... -> norm -> head

`adapted` makes of a base and an adaptor a transformers model of its own, which shares the base's weights and
has its own list of layers, numbered for the cache. The base itself is not changed and does not know of it: a
call of the base runs no operation of any adaptor, whichever are loaded, and no adaptor runs one of another's.

Legend: D width, V ids.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

End = Literal["own", "tied"]  # of table, norm and head: its own weights, or the base's
Start = Literal["identity", "copy"]
OUTPUTS = ("o_proj", "down_proj", "c_proj", "out_proj", "fc2", "fc_out", "dense", "dense_4h_to_h")
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


class Adaptor(nn.Module):
    """The weights of an adaptor; a table, norm or head that is None is the base's."""

    def __init__(
        self,
        points: Sequence[int],
        layers: Sequence[nn.Module],
        table: nn.Module | None = None,
        norm: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        assert len(points) == len(layers), f"{len(layers)} layers for {len(points)} points"
        self.points = tuple(points)
        self.layers = nn.ModuleList(layers)
        self.table, self.norm, self.head = table, norm, head


def default_points(layers: int) -> tuple[int, ...]:
    """Two of every five base layers, the first ones, as in IAA: 14 points of 32 layers."""
    return tuple(layer for layer in range(layers) if layer % 5 < 2)


def check_points(points: Sequence[int], layers: int) -> None:
    """ValueError unless `points` are distinct layers, in ascending order, of a base with `layers` layers."""
    rising = all(before < after for before, after in pairwise(points))
    if not rising or not all(0 <= point < layers for point in points):
        raise ValueError(
            f"insertion points {', '.join(map(str, points))}: rising numbers from 0 to {layers - 1} "
            f"would fit, for the base has {layers} layers"
        )


@torch.no_grad()
def new_adaptor(
    base: PreTrainedModel,
    points: Sequence[int],
    *,
    table: End = "own",
    norm: End = "own",
    head: End = "own",
    start: Start = "identity",
) -> Adaptor:
    """An adaptor for `base`, on its device and of its type.

    Its layers start as copies of the base layers that they follow, its ends as copies of the base's. With
    `identity` the layers' output projections are zeroed, so that the adapted model gives the base's logits,
    bit for bit. Beside a quantized base it is for weights to be loaded into: what would be a copy of a
    quantized matrix is random. ValueError for points that the base does not have, a base whose layers are not
    found, and, with `identity`, layers whose output projections are not known.
    """
    stack = _layers(base)
    check_points(points, len(stack))
    layers = [_fresh_layer(base, point) for point in points]
    if start == "identity":
        for layer in layers:
            _silence(layer)
    own_head = base.get_output_embeddings()
    return Adaptor(
        points,
        layers,
        _fresh(base.get_input_embeddings()) if table == "own" else None,
        _fresh(_decoder(base).get_submodule(_norm_name(base))) if norm == "own" else None,
        _fresh_head(own_head) if head == "own" and own_head is not None else None,
    )


def adapted(base: PreTrainedModel, adaptor: Adaptor) -> PreTrainedModel:
    """A causal LM that computes `base` with the layers and ends of `adaptor`; every weight is shared.

    It takes what the base takes: masks, positions, caches of any kind, embeddings. Its cache has a layer for
    each of its own layers, so no cache passes between it and the base. Of a base that is moved, made another
    type or given another attention afterwards, make it anew.
    """
    stack = _layers(base)
    check_points(adaptor.points, len(stack))
    inserted = dict(zip(adaptor.points, adaptor.layers, strict=True))
    order: list[tuple[int, nn.Module | None]] = []  # base layer, and what is inserted behind it
    for number in range(len(stack)):
        order.append((number, None))
        if number in inserted:
            order.append((number, inserted[number]))
    config = _widened_config(base.config, [number for number, _ in order])
    layers = [
        _numbered(_shallow(stack[number] if layer is None else layer), place, config.get_text_config())
        for place, (number, layer) in enumerate(order)
    ]
    model, decoder, name = _shallow_path(base, config)
    setattr(decoder, name, nn.ModuleList(layers))
    if adaptor.norm is not None:
        setattr(decoder, _norm_name(base), adaptor.norm)
    if adaptor.table is not None:
        model.set_input_embeddings(adaptor.table)
    if adaptor.head is not None:
        model.set_output_embeddings(adaptor.head)
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return model.train(base.training)


def base_layer_places(adaptor: Adaptor, layers: int) -> list[int]:
    """Position of each of the base's `layers` layers in the adapted model."""
    return [number + sum(point < number for point in adaptor.points) for number in range(layers)]


def _layers_name(base: PreTrainedModel) -> str:
    """The dotted name of the base's list of decoder layers."""
    if hasattr(base, "peft_config"):
        raise ValueError("the base has LoRA adapters; merge them into its weights first")
    count = base.config.get_text_config().num_hidden_layers
    found = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and len({*map(type, module)}) == 1
    ]
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(found) != 1:
        raise ValueError(
            f"{base.config.model_type}: {len(found)} lists of {count} equal layers found, one was expected; "
            "inner adaptors cannot be inserted"
        )
    return found[0]


def _layers(base: PreTrainedModel) -> nn.ModuleList:
    layers = base.get_submodule(_layers_name(base))
    assert isinstance(layers, nn.ModuleList)
    return layers


def _decoder(base: PreTrainedModel) -> nn.Module:
    return base.get_submodule(_layers_name(base).rpartition(".")[0])


def _norm_name(base: PreTrainedModel) -> str:
    """What the decoder calls the norm behind its last layer: its last child that has a row of D weights."""
    table: Any = base.get_input_embeddings()
    shape = (table.weight.shape[1],)
    norms = [
        name
        for name, child in _decoder(base).named_children()
        if tuple(getattr(getattr(child, "weight", None), "shape", ())) == shape
    ]
    if not norms:
        raise ValueError(f"{base.config.model_type}: no final norm found; inner adaptors cannot be inserted")
    return norms[-1]


def _fresh(module: nn.Module) -> nn.Module:
    """A copy with weights of its own, without hooks."""
    made = copy.deepcopy(module)
    for part in made.modules():
        for name in HOOKS:
            getattr(part, name).clear()
    return made.requires_grad_(True)


def _fresh_layer(base: PreTrainedModel, point: int) -> nn.Module:
    """A layer of its own like the base's at `point`: of a quantized one, of its class and sizes."""
    layer: Any = _layers(base)[point]
    if not is_quantized(layer):
        return _fresh(layer)
    return type(layer)(base.config.get_text_config(), layer_idx=point)


def _fresh_head(head: Any) -> nn.Module:
    if not is_quantized(head):
        return _fresh(head)
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)


def is_quantized(module: nn.Module) -> bool:
    """Whether any of its weights is made of several tensors, as torchao's are."""
    return any(hasattr(parameter, "tensor_data_names") for parameter in module.parameters())


def _silence(layer: nn.Module) -> None:
    """Zero the projections by which a layer's blocks add to the hidden state: attention's and the MLP's."""
    outputs = [
        module for name, module in layer.named_modules() if name.rpartition(".")[2] in OUTPUTS and name
    ]
    if len(outputs) != 2:
        raise ValueError(
            f"{type(layer).__name__}: {len(outputs)} output projections found, two were expected; "
            "start: copy would fit"
        )
    for module in outputs:
        for parameter in module.parameters():
            parameter.zero_()


def _shallow(module: Any) -> Any:
    """Another module object with the same parameters, buffers and children; what is set on it stays there.

    Hooks are left behind: transformers puts its own on layers when hidden states are first asked for.
    """
    made = module.__new__(type(module))
    made.__dict__ = {**module.__dict__}
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        made.__dict__[name] = copy.copy(module.__dict__[name])
    for name in HOOKS:
        made.__dict__[name] = type(module.__dict__[name])()
    made.__dict__.pop("_output_capturing_hooks_installed", None)
    return made


def _shallow_path(base: PreTrainedModel, config: Any) -> tuple[PreTrainedModel, nn.Module, str]:
    """A shallow copy of the base and of all modules down to the one with the layers, that one, and the name
    of the layers in it."""
    *above, name = _layers_name(base).split(".")
    model = module = _shallow(base)
    model.config = config
    for child in above:
        setattr(module, child, _shallow(getattr(module, child)))
        module = getattr(module, child)
        if hasattr(module, "config"):
            module.config = config.get_text_config()
    return model, module, name


def _numbered(layer: nn.Module, place: int, config: Any) -> nn.Module:
    """A shallow copy of a layer at a place of the cache: what in it knows its number is copied, too."""
    for name, child in list(layer.named_children()):
        if hasattr(child, "layer_idx"):
            child = _shallow(child)
            setattr(layer, name, child)
            _set(child, place, config)
    _set(layer, place, config)
    return layer


def _set(module: Any, place: int, config: Any) -> None:
    if hasattr(module, "layer_idx"):
        module.layer_idx = place
    if hasattr(module, "config"):
        module.config = config


def _widened_config(config: Any, order: Sequence[int]) -> Any:
    """The base's settings for the layers `order`, by the base layer that each is or follows."""
    made = copy.deepcopy(config)
    made._attn_implementation = config._attn_implementation
    text = made.get_text_config()
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = len(order)
    if kinds is not None:
        text.layer_types = [kinds[number] for number in order]
    return made
