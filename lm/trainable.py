"""Which weights a stage of training changes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import Tensor, nn

from pictish.lm.model import UnifiedModel
from pictish.training.sharding import local, local_rows

NEW_ROWS = "new rows"  # among the patterns: the rows of embedding and head that widening added
ADAPTERS = "*.lora_*"  # how peft names the weights of LoRA


@contextmanager
def trainable(model: UnifiedModel, patterns: Sequence[str]) -> Iterator[float]:
    """Let gradients reach parameters whose names match one of `patterns`; gives their share of all weights.

    `new rows` stands for the pictures' rows of embedding and head. Where LoRA adapters stand in for the
    language model's weights, `*` means the adapters, the new rows and the projector. Raises ValueError for a
    pattern that matches nothing, and for one that matches weights that adapters stand in for.
    """
    named = dict(model.named_parameters())
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
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    count = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    handles = []
    if NEW_ROWS in patterns:
        first, last = model.vocabulary.begin, model.vocabulary.size

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


def vocabulary_rows(model: UnifiedModel) -> list[nn.Parameter]:
    """The parameters that have one row an id: embedding, and head where it is another."""
    embedding, head = model.language.get_input_embeddings(), model.language.get_output_embeddings()
    candidates = (embedding.weight, getattr(head, "weight", None), getattr(head, "bias", None))
    found: list[nn.Parameter] = []
    for parameter in candidates:
        if isinstance(parameter, nn.Parameter) and all(parameter is not other for other in found):
            found.append(parameter)
    return found
