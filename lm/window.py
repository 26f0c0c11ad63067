"""What a language model's training tells its log of the steps since the last line.

Legend: T tasks.
"""

import time

import torch

from pictish.lm.objective import Losses, means, preferences
from pictish.lm.packing import Packed
from pictish.lm.sequence import TASKS


class Window:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(2, len(TASKS))
        self.alignment, self.preference = torch.zeros(2), torch.zeros(4)
        self.steps, self.padding, self.waited, self.tokens = 0, 0.0, 0.0, 0
        self.since = time.monotonic()

    def add(self, losses: Losses, packed: Packed, waited: float) -> None:
        """Take in one step's losses, and the seconds that its data was waited for."""
        self.sums += torch.stack([losses.by_task, losses.counts]).cpu()
        self.alignment += losses.alignment.cpu()
        self.preference += losses.preference.cpu()
        self.steps += 1
        self.padding += packed.padding
        self.waited += waited
        self.tokens += int((packed.documents > 0).sum())

    def numbers(self, accelerate) -> dict[str, float]:
        """What to log, then start afresh; losses are those of all processes."""
        seconds = time.monotonic() - self.since
        sums = accelerate.reduce(self.sums.to(accelerate.device), "sum").cpu()
        preference = accelerate.reduce(self.preference.to(accelerate.device), "sum")
        errors, places = accelerate.reduce(self.alignment.to(accelerate.device), "sum").tolist()
        result = {
            **means(*sums),
            **({"alignment": errors / places} if places else {}),
            **preferences(preference),
            "padding": self.padding / self.steps,
            "waiting": self.waited / seconds,
            "tokens_per_second": self.tokens / seconds,
        }
        self._clear()
        return result
