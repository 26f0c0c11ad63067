"""The runtime of a run: the device by name, accelerate set up for it, and the generator of a step."""

import logging
import os
from typing import TYPE_CHECKING

import torch

from pictish.training.precision import resolve_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there; otherwise a one-line ValueError.

    Under a launcher (`accelerate launch`, torchrun) each process takes the CUDA device of its own number, as
    accelerate does, and `name` is the type.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    kind, colon, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise ValueError(f"device {name}: not known; give auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        index = os.environ.get("LOCAL_RANK", "0")
        name = f"cuda:{index}"
    if kind == "cuda" and int(index or 0) >= count:
        there = f"{count} CUDA device(s)" if count else "no CUDA device"
        raise ValueError(f"device {name}: this machine has {there}; give auto or cpu")
    return torch.device(name)


def accelerator(device: str, mixed_precision: str = "no") -> "Accelerator":
    """An accelerate.Accelerator on `device` (as `resolve_device`), in the precision of `resolve_precision`.

    accelerate never wraps FSDP around a network: see sharding.py. What this leaves in the environment and in
    accelerate's state is undone by `isolation.training`, inside which training functions call it.
    """
    from accelerate import Accelerator

    target = resolve_device(device)
    precision = resolve_precision(mixed_precision, target)
    if mixed_precision == "auto":
        logger.info("mixed_precision auto: %s", precision)
    if target.type == "cuda" and target.index is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        torch.cuda.set_device(target)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(target)  # accelerate would take cuda:0
    return Accelerator(cpu=target.type == "cpu", mixed_precision=precision)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step: about twice the speed of a training step on the CPU.

    The kernel fills a fresh allocation page by page at 2 GB/s where a copy runs at 17. Elsewhere: nothing.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    top_pad, trim_threshold, mmap_max = -2, -1, -4  # names of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


def seeded(seed: int, step: int) -> torch.Generator:
    """A step's generator on the CPU; also seeds torch's global one, for dropout and the quantizer library."""
    mixed = (seed * 1_000_003 + step) % 2**63
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)
