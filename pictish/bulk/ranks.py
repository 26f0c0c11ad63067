"""Which of several processes this one is, when torchrun, accelerate or Slurm's srun started it."""

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
_PATIENCE = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Rank:
    """Number `number` of `count` processes, `local` among those of its machine."""

    number: int = 0
    count: int = 1
    local: int = 0
    torchrun: bool = False  # or accelerate launch: when one process ends badly, the others are killed

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Rank":
        """As the launcher's variables say; a lone process without one.

        SLURM_STEP_NUM_TASKS is set by srun alone; a batch script, which is one process, has SLURM_NTASKS too.
        """
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            number, count, local = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
            return cls(number, count, local, torchrun=True)
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
            number, count = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
            return cls(number, count, int(environment.get("SLURM_LOCALID", "0")))
        return cls()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th of the items, beginning with that of our number."""
        return list(items[self.number :: self.count])

    def wait_for_others(self) -> None:
        """Return when all processes have come here: torchrun would kill the ones that still work.

        Slurm lets them finish, and a lone process waits for nobody.
        """
        if not self.torchrun:
            return
        from torch.distributed import rendezvous

        store, _, _ = next(iter(rendezvous("env://", self.number, self.count, timeout=_PATIENCE)))
        store.set(f"pictish/{self.number}", "ended")
        store.wait([f"pictish/{number}" for number in range(self.count)], _PATIENCE)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and self.number == 0:
            import time

            time.sleep(2)  # the store lives here, and the others are still reading it


def devices(asked: str, rank: Rank, processes: int) -> list[str]:
    """The device of each of `processes`: CUDA devices in turn unless one is named."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked not in ("auto", "cuda") or not count:
        return [asked] * processes
    return [f"cuda:{(rank.local * processes + number) % count}" for number in range(processes)]
