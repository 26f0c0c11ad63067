"""What a language model is trained on; a config chooses by `kind`.

Legend: B rows, L tokens, V ids, T tasks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pictish.lm.packing import IGNORED, Packed
from pictish.lm.sequence import TASKS


class Losses(NamedTuple):
    """Sums over learned tokens: their losses, and by task losses and numbers (T,), in the order of TASKS."""

    total: Tensor
    by_task: Tensor
    counts: Tensor


def autoregressive(model: Callable[[Packed], Tensor], packed: Packed) -> Losses:
    """Cross entropy of each learned token given those before it in its document."""
    logits = model(packed)  # (B, L, V)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), packed.targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    learned = (packed.targets != IGNORED).flatten()
    by_task = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), losses.detach())
    counts = losses.new_zeros(len(TASKS)).index_add(0, packed.tasks.flatten(), learned.to(losses.dtype))
    return Losses(losses.sum(), by_task, counts)


OBJECTIVES: dict[str, Callable[[Callable[[Packed], Tensor], Packed], Losses]] = {
    "autoregressive": autoregressive
}
