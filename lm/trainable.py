"""Which weights a stage of training changes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import compress
from operator import not_
from typing import Any

import torch
from torch import Tensor, nn

from pictish.lm.adapted import BASE, AdaptedModel
from pictish.lm.config import StageConfig
from pictish.lm.model import UnifiedModel
from pictish.training.sharding import local, local_rows

NEW_ROWS = "new rows"  # among the patterns: the rows of embedding and head that widening added
ADAPTERS = "*.lora_*"  # how peft names the weights of LoRA
HEADS = "alignment."  # how the names of heads begin that are there for training alone


@contextmanager
def trainable(model: UnifiedModel, patterns: Sequence[str]) -> Iterator[float]:
    """Let gradients reach parameters whose names match one of `patterns`; gives their share of all weights.

    `new rows` stands for the images' rows of embedding and head. Where LoRA adapters stand in for the
    language model's weights, `*` means the adapters, the new rows and the projector; of a model with an inner
    adaptor, the adaptor and the projector. Heads of alignment are always trained. Raises ValueError for a
    pattern that matches nothing, for one that matches weights that adapters stand in for, and for one that
    matches those of an inner adaptor's base.
    """
    named = dict(model.named_parameters())
    if isinstance(model, AdaptedModel):
        patterns = _without_base(model, patterns)
    if any(fnmatchcase(name, ADAPTERS) for name in named):
        everything = (ADAPTERS, NEW_ROWS, *(["projector.*"] if model.projector is not None else []))
        patterns = everything if tuple(patterns) == ("*",) else patterns
        own = [n for n in named if n.startswith("language.") and not fnmatchcase(n, ADAPTERS)]
        for pattern in patterns:
            if found := next((name for name in own if fnmatchcase(name, pattern)), None):
                raise ValueError(
                    f"trainable: {pattern!r} matches {found}, which lora's adapters stand in for; "
                    f"{', '.join(everything)} would fit"
                )
    unmatched = [
        pattern
        for pattern in patterns
        if pattern != NEW_ROWS and not any(fnmatchcase(n, pattern) for n in named)
    ]
    if unmatched:
        raise ValueError(f"trainable: no weights match {unmatched[0]!r}; their names are like {min(named)}")
    for name, parameter in named.items():
        matched = any(fnmatchcase(name, pattern) for pattern in patterns)
        parameter.requires_grad_(matched or name.startswith(HEADS))
    count = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    handles = []
    if NEW_ROWS in patterns:
        first, last = model.vocabulary.text, model.vocabulary.size

        def only_new(parameter: Tensor) -> None:
            assert parameter.grad is not None
            begin, _ = local_rows(parameter.grad)  # of a sharded one
            gradient = local(parameter.grad)
            gradient[: max(0, first - begin)] = 0
            gradient[max(0, last - begin) :] = 0

        for parameter in vocabulary_rows(model):
            if not parameter.requires_grad:
                parameter.requires_grad_(True)
                handles.append(parameter.register_post_accumulate_grad_hook(only_new))
                count += (last - first) * parameter.shape[1:].numel()
    try:
        yield count / sum(parameter.numel() for parameter in named.values())
    finally:
        for handle in handles:
            handle.remove()


def _without_base(model: AdaptedModel, patterns: Sequence[str]) -> Sequence[str]:
    """Patterns for an adaptor's training; ValueError for one that reaches into the frozen base."""
    everything = ("adaptor.*", *(["projector.*"] if model.projector is not None else []))
    if tuple(patterns) == ("*",):
        return everything
    own = {id(parameter) for parameter in model.adaptor.parameters()}
    for pattern in patterns:
        found = next((n for n, _ in model.named_parameters() if fnmatchcase(n, pattern)), "")
        rows = pattern == NEW_ROWS and any(id(p) not in own for p in vocabulary_rows(model))
        if found.startswith(BASE) or rows:
            raise ValueError(
                f"trainable: {pattern!r} matches {found or 'rows'} of the adaptor's base, which stays as it "
                f"is; {', '.join(everything)} would fit"
            )
    return patterns


PARTS = {
    "vision tower": "vision.encoder.",
    "vision projector": "vision.projector.",
    "separator": "vision.separator",
    "adaptor": "adaptor.",
    "projector": "projector.",
    "language model": "language.",
}  # what a stage trains or freezes as one, by the beginnings of names


def shares(model: UnifiedModel) -> list[str]:
    """How much of each part is trained now, and what is frozen, a line each."""
    lines = []
    for part, start in PARTS.items():
        own = [p for name, p in model.named_parameters() if name.startswith(start)]
        if total := sum(parameter.numel() for parameter in own):
            trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            said = f"{100 * trained / total:.1f} % trained" if trained else "frozen"
            lines.append(f"{part} ({total:,} weights) {said}")
    return lines


def scale_tower(optimizer: torch.optim.Optimizer, model: UnifiedModel, stage: StageConfig) -> None:
    """Have the vision tower learn at the stage's own rate: its parameters become groups with a `scale`."""
    if stage.vision_learning_rate is None or model.vision is None:
        return
    tower = {id(parameter) for parameter in model.vision.encoder.parameters()}
    scale = stage.vision_learning_rate / stage.learning_rate
    for group in list(optimizer.param_groups):
        lists = {name: group[name] for name in ("params", "param_names") if name in group}
        inside = [id(parameter) in tower for parameter in group["params"]]
        if any(inside):
            own: dict[str, Any] = {name: list(compress(values, inside)) for name, values in lists.items()}
            optimizer.param_groups.append({**group, **own, "scale": scale})
            for name, values in lists.items():
                group[name] = list(compress(values, map(not_, inside)))


def vocabulary_rows(model: UnifiedModel) -> list[nn.Parameter]:
    """The parameters that have one row an id: embedding, and head where it is another."""
    embedding, head = model.language.get_input_embeddings(), model.language.get_output_embeddings()
    candidates = (embedding.weight, getattr(head, "weight", None), getattr(head, "bias", None))
    found: list[nn.Parameter] = []
    for parameter in candidates:
        if isinstance(parameter, nn.Parameter) and all(parameter is not other for other in found):
            found.append(parameter)
    return found


def trained_by(model: UnifiedModel, stages: Sequence[Sequence[str]]) -> set[str]:
    """Names of the parameters, heads of alignment excepted, that any stage of these patterns trains."""
    names: set[str] = set()
    for patterns in stages:
        with trainable(model, patterns):
            names |= {name for name, p in model.named_parameters() if p.requires_grad}
    return {name for name in names if not name.startswith(HEADS)}


def layer_matrices(model: UnifiedModel) -> set[str]:
    """Names of the language model's matrices between its embeddings and its head."""
    embeddings = [m.weight for m in model.language.modules() if isinstance(m, nn.Embedding)]
    outside = {id(parameter) for parameter in (*vocabulary_rows(model), *embeddings)}
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith("language.") and parameter.ndim == 2 and id(parameter) not in outside
    }
