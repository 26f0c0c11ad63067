"""The numbers of a run, one JSON line a step."""

import io
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from pictish.io.files import sync, write_atomic
from pictish.io.plain_yaml import read_yaml

if TYPE_CHECKING:
    from accelerate import Accelerator


class MetricsLog:
    """Appends to `run/metrics.jsonl`, after dropping lines past `resume_step` and a line cut short.

    With `tensorboard` the same numbers go to `run/tensorboard`, with `wandb` to a run of Weights & Biases,
    both through accelerate's trackers; ValueError if the library is not installed. Of several processes only
    the `main` one writes.
    """

    def __init__(
        self,
        run: Path,
        resume_step: int,
        tensorboard: bool = False,
        wandb: bool = False,
        *,
        main: bool = True,
    ) -> None:
        self._file: TextIO
        self._trackers: list[Any] = []
        if not main:
            self._file = io.StringIO()  # for nobody
            return
        run.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._trackers.append(_tensorboard(run))
        if wandb:
            self._trackers.append(_wandb(run, resume_step))
        self.path = run / "metrics.jsonl"
        if self.path.exists():
            _truncate(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, **numbers: float) -> None:
        """Append `{"step": step, ...}`; one-element tensors and numpy numbers are taken too."""
        plain = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        for tracker in self._trackers:
            tracker.log(plain, step=step)

    def close(self) -> None:
        """Flush and close; writing afterwards is an error."""
        self._file.close()
        for tracker in self._trackers:
            tracker.finish()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class MeanLosses:
    """Mean losses over the steps since the last line of the log."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._losses: dict[str, list[Tensor]] = {}
        self.steps = 0
        self._since = time.monotonic()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take in one step's losses, scalars by name; all processes have the same, a step may lack some."""
        self.steps += 1
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value.detach())

    def numbers(self, accelerate: "Accelerator", batch_size: int) -> dict[str, float]:
        """Means over all processes, whose batches together are `batch_size` images; then start afresh."""
        result = {"pictures_per_second": self.steps * batch_size / (time.monotonic() - self._since)}
        own = {name: torch.stack(values).double().mean() for name, values in self._losses.items()}
        result |= {name: accelerate.reduce(mean, "mean").item() for name, mean in own.items()}
        self._clear()
        return result


def _truncate(path: Path, resume_step: int) -> None:
    """Keep the lines up to and including `resume_step`, atomically."""
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the line the run was writing when it was killed
        if step <= resume_step:
            kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}.pictish-tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        sync(file.fileno())
    temporary.replace(path)


def _tensorboard(run: Path) -> Any:
    from accelerate.tracking import TensorBoardTracker
    from accelerate.utils import is_tensorboard_available

    if not is_tensorboard_available():
        raise ValueError("tensorboard logging: no tensorboard is installed; pip install tensorboard")
    tracker = TensorBoardTracker("tensorboard", logging_dir=run)
    tracker.start()
    return tracker


def _wandb(run: Path, resume_step: int) -> Any:
    """A run of the project `pictish`, named after the folder; RUN/wandb-id says which one is resumed."""
    from accelerate.tracking import WandBTracker
    from accelerate.utils import is_wandb_available

    if not is_wandb_available():
        raise ValueError("wandb logging: wandb is not installed; pip install wandb")
    note = run / "wandb-id"
    if resume_step == 0 or not note.is_file():
        write_atomic(note, secrets.token_hex(4).encode("ascii"))
    settings = run / "config.yaml"
    tracker = WandBTracker(
        "pictish",
        id=note.read_text("ascii"),
        name=run.resolve().name,
        dir=str(run),
        resume="allow",
        config=read_yaml(settings) if settings.is_file() else None,
    )
    tracker.start()
    return tracker
