"""One process's part of a training step, and the collectives by which all processes together learn what one
would.

Each takes its own rows of the step's batch, in order. Random numbers are drawn for the whole batch by every
process, which keeps its rows' ones: they belong to a sample, not to a process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class ProcessGroup:
    """Process `index` of `processes`; every method is called by all of them, in the same order."""

    index: int = 0
    processes: int = 1

    @classmethod
    def of(cls, accelerate: "Accelerator") -> "ProcessGroup":
        """The group of an accelerator, as seen by this process."""
        return cls(accelerate.process_index, accelerate.num_processes)

    def rows(self, count: int) -> slice:
        """Which of a batch of `count` are this process's; ValueError where they cannot be shared out."""
        if count % self.processes:
            raise ValueError(
                f"{self.processes} processes cannot divide a batch_size of {count}; give a multiple"
            )
        own = count // self.processes
        return slice(self.index * own, (self.index + 1) * own)

    def drawn(
        self,
        draw: Callable[..., Tensor],
        shape: Sequence[int],
        generator: torch.Generator,
        dim: int = 0,
    ) -> Tensor:
        """This process's rows of what `draw` (torch.rand, torch.randn) makes for all; `shape` is of its own.

        Rows lie along `dim`.
        """
        whole = [size * self.processes if place == dim else size for place, size in enumerate(shape)]
        return draw(whole, generator=generator).narrow(dim, self.index * shape[dim], shape[dim])

    def total(self, own: Tensor) -> Tensor:
        """The sum over all processes; gradients reach each of them."""
        return own if self.processes == 1 else _Sum.apply(own)

    def mean(self, values: Tensor, where: Tensor | None = None) -> Tensor:
        """A scalar whose mean over the processes is that of all their `values` (any shape), `where` true.

        As gradients are averaged over processes, that is what a process's loss should be. 0 of nothing.
        """
        chosen = values if where is None else values * where
        count = torch.tensor(float(values.numel())) if where is None else where.sum()
        return self.processes * chosen.sum() / self.total(count.to(chosen)).clamp_min(1)

    @torch.no_grad()
    def gathered(self, own: Tensor) -> Tensor:
        """The rows (m, ...) of all processes, one after the other; each may have another number of them."""
        if self.processes == 1:
            return own
        counts = [own.new_empty(1, dtype=torch.long) for _ in range(self.processes)]
        dist.all_gather(counts, own.new_full((1,), len(own), dtype=torch.long))
        lengths = [int(count) for count in counts]
        padded = own.new_zeros(max(lengths), *own.shape[1:])
        padded[: len(own)] = own
        every = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(every, padded)
        return torch.cat([rows[:length] for rows, length in zip(every, lengths, strict=True)])


SINGLE_PROCESS = ProcessGroup()


class _Sum(torch.autograd.Function):
    """all_reduce, whose gradient is the same of gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Sum.forward(ctx, gradients[0])
