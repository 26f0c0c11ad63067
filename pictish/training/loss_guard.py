"""Guards a training run: a step with a non-finite or exploding loss changes nothing, and stops the run.

A step went wrong when its loss or its gradient is no finite number, or when its loss is far above what the
last ones were. What is judged is the same on all processes, so they stop or go on together.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pictish.io.files import sync

if TYPE_CHECKING:
    from accelerate import Accelerator

REMEMBERED = 100  # good steps whose losses are compared with
ENOUGH = 20  # of them before any comparison
EXPLODED = 20.0  # times their median
SMALL = 0.01  # a median below this counts as this: a model that fits its data is not exploding
FOLDER = "anomalies"
_SHOWN = 3  # names of samples in the message


class Anomaly(ValueError):
    """A step went wrong, and no more steps may be skipped."""


class Verdict(NamedTuple):
    """What all processes do with a step."""

    good: bool  # whether its gradient may change the weights
    stop: bool  # whether one of them was asked to stop


class LossGuard:
    """Judges each step of a run before it changes the weights.

    `small`: what a median is taken for at least. `allowed`: how many bad steps of the whole run are passed
    over, their buffers (codebooks that learn in the forward pass) put back as `begin` found them; the next
    one is an Anomaly. Each is written to `run/anomalies/step-00001000.json` with the names of the batch's
    samples.
    """

    def __init__(self, run: Path, accelerate: "Accelerator", allowed: int = 0, small: float = SMALL) -> None:
        if allowed < 0:
            raise ValueError(f"anomaly skip {allowed}: 0 or more steps can be skipped")
        self._run, self._accelerate, self._allowed, self._small = run, accelerate, allowed, small
        self._losses: deque[float] = deque(maxlen=REMEMBERED)
        self._skipped = 0
        self._norms: dict[str, list[float]] = {}  # of good steps since the last line of the log
        self._buffers: dict[str, Tensor] = {}
        self._module: nn.Module | None = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as plain JSON."""
        return {"losses": list(self._losses), "skipped": self._skipped}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave; None leaves it as it is."""
        if state is not None:
            self._losses.extend(map(float, state["losses"]))
            self._skipped = int(state["skipped"])

    def forget(self) -> None:
        """Another phase begins, whose losses are other ones."""
        self._losses.clear()

    def begin(self, module: nn.Module) -> None:
        """A step begins: remember the buffers that its forward pass may change."""
        self._module = module
        if self._allowed > self._skipped:
            self._buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    def check(
        self,
        step: int,
        losses: Tensor,
        count: Tensor | float,
        norms: Mapping[str, Tensor],
        asked: bool,
        names: Callable[[], Sequence[str]],
    ) -> Verdict:
        """Whether step `step` (from 1) is good: its mean loss is `losses` (a sum) over `count`.

        `norms` are its gradient's, before clipping, under the names of the log; `asked` says whether this
        process was asked to stop, `names` what its samples are called. Raises Anomaly, on all processes, when
        it is bad and no more may be passed over.
        """
        numbers = torch.stack([losses.detach().double().cpu(), torch.as_tensor(count).double().cpu()])
        stop = torch.tensor([float(asked)], dtype=torch.float64)
        if self._accelerate.num_processes > 1:
            # fp32 is what every backend and device can add
            both = torch.cat([numbers, stop]).float().to(self._accelerate.device)
            both = self._accelerate.reduce(both, "sum").double().cpu()
            numbers, stop = both[:2], both[2:]
        loss = float(numbers[0] / numbers[1].clamp_min(1))
        sizes = {name: float(norm) for name, norm in norms.items()}
        reason = self._reason(loss, sizes)
        if reason is None:
            self._losses.append(loss)
            for name, size in sizes.items():
                self._norms.setdefault(name, []).append(size)
        else:
            self._pass_over(step, loss, sizes, reason, names())
        return Verdict(reason is None, bool(stop.item()))

    def numbers(self) -> dict[str, float]:
        """For a line of the log: gradient norms of the last good step, the largest since the last line, and
        how many bad steps the run has had."""
        result: dict[str, float] = {"skipped_steps": self._skipped}
        for name, sizes in self._norms.items():
            result |= {name: sizes[-1], f"{name}_max": max(sizes)}
        self._norms = {}
        return result

    def _reason(self, loss: float, norms: Mapping[str, float]) -> str | None:
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if len(self._losses) >= ENOUGH:
            usual = statistics.median(self._losses)
            if loss > EXPLODED * max(usual, self._small):
                return f"its loss is {loss:.4g}, the median of the last {len(self._losses)} is {usual:.4g}"
        # with fp16 an infinite gradient is how the scaler finds its scale, and passes the step over itself
        if self._accelerate.scaler is None:
            for name, norm in norms.items():
                if not math.isfinite(norm):
                    return f"its {name.replace('_', ' ')} is {norm}"
        return None

    def _pass_over(
        self, step: int, loss: float, norms: Mapping[str, float], reason: str, names: Sequence[str]
    ) -> None:
        every = list(names)
        if self._accelerate.num_processes > 1:
            every = self._accelerate.gather_for_metrics(every, use_gather_object=True)
        path = self._run / FOLDER / f"step-{step:08d}.json"
        if self._accelerate.is_main_process:
            sizes = {name: str(norm) for name, norm in norms.items()}  # JSON has no NaN
            _write(path, {"step": step, "reason": reason, "loss": str(loss), **sizes, "samples": every})
        if self._skipped >= self._allowed:
            more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
            raise Anomaly(
                f"step {step}: {reason}; its batch ({', '.join(every[:_SHOWN])}{more}: see {path}) was not "
                f"learned; what is saved in {self._run} is good; --anomaly-skip {self._allowed + 1} "
                "skips such a step"
            )
        self._skipped += 1
        assert self._module is not None
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                buffer.copy_(self._buffers[name])
        if self._accelerate.scaler is not None:  # or the next step could not take its gradients' scale away
            self._accelerate.scaler.update()


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    """A JSON file, whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.pictish-tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(facts, sort_keys=True, indent=1) + "\n")
        file.flush()
        sync(file.fileno())
    temporary.replace(path)
