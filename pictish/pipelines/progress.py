"""What a long call reports while it runs, and how it is cancelled."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["tokenizer", "language_model", "decoder"]


class Cancelled(Exception):
    """The call was cancelled between two steps; it returns nothing."""


@dataclass(frozen=True)
class Progress:
    """What a callback receives after each step of a batch."""

    stage: Stage
    step: int
    """Steps of this stage that are done, for the current batch."""
    num_steps: int
    """How many there are; the language model may finish in fewer."""
    done: int
    """Images (or texts) of earlier batches, which are finished."""
    total: int
    """Images (or texts) of the whole call."""


Callback = Callable[[Progress], None]
Cancel = threading.Event | Callable[[], bool]


@dataclass(frozen=True)
class Run:
    """One call under way: `total` results, a callback and a way to be cancelled."""

    total: int
    callback: Callback | None = None
    cancel: Cancel | None = None

    def check(self) -> None:
        """Raise Cancelled when that has been asked for."""
        asked = self.cancel.is_set if isinstance(self.cancel, threading.Event) else self.cancel
        if asked is not None and asked():
            raise Cancelled("cancelled between two steps")

    def steps(self, stage: Stage, done: int) -> Callable[[int, int], None]:
        """What a loop calls after each step, with the steps done and their number."""

        def after_step(step: int, num_steps: int) -> None:
            if self.callback is not None:
                self.callback(Progress(stage, step, num_steps, done, self.total))
            self.check()

        return after_step
