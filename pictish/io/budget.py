"""A bound on what a model folder's settings make the program allocate: what its weights account for.

Settings are a stranger's numbers, and a network is built before its weights are compared with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ALWAYS = 4 << 30  # bytes that any folder may ask for: a frozen encoder's weights may lie in another package
TIMES = 8  # its weights: as fp32 where they are stored as fp16, and built more than once
_EACH = 1 << 16  # bytes that every operation counts as, so that a million empty layers are refused too


class Refused(ValueError):
    """The settings ask for more than the weights account for."""


class Budget(TorchDispatchMode):
    """Inside, in this thread, tensors are made up to `most` bytes together; Refused before the next one."""

    def __init__(self, most: int, source: str) -> None:
        super().__init__()
        self._most, self._source = most, source
        self._used = 0
        self._sized: dict[Any, int | None] = {}  # place of the size among an operation's arguments

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        self._used += _EACH + self._asked(func, args, given)
        if self._used > self._most:
            raise Refused(
                f"{self._source}: its settings ask for more than {self._most:,} bytes of tensors, which its "
                "weights do not account for; it is damaged, or not to be trusted"
            )
        return func(*args, **given)

    def _asked(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """Bytes of the tensor that an operation makes from nothing but a size."""
        if func not in self._sized:
            names = [argument.name for argument in func._schema.arguments]
            makes = "self" not in names or func._schema.name.startswith("aten::new_")
            place = names.index("size") if makes and "size" in names else None
            self._sized[func] = place
        place = self._sized[func]
        if place is None:
            return 0
        size = args[place] if place < len(args) else kwargs.get("size", ())
        dtype = kwargs.get("dtype") or torch.float32
        return math.prod(int(side) for side in size) * int(dtype.itemsize)


def sized_like(folder: Path, source: str) -> Budget:
    """The budget of a model folder, by the bytes of the safetensors files in it."""
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.is_file())
    return Budget(ALWAYS + TIMES * stored, source)
