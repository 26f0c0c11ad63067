"""Which arithmetic a run computes in: `mixed_precision` of every training config."""

from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import torch

MixedPrecision = Literal["no", "bf16", "fp16", "auto"]
Resolved = Literal["no", "bf16", "fp16"]
_CHOICES = ("auto", "no", "bf16", "fp16")
_BF16_UNITS = ("amx_bf16", "avx512_bf16")  # of a CPU, as torch calls them


def resolve_precision(name: str, device: "torch.device") -> Resolved:
    """`name` itself, or for `auto`: bf16 where `device` has units for it, else no. ValueError for others.

    Without such units bf16 is emulated, which is slower than float32.
    """
    if name not in _CHOICES:
        raise ValueError(f"mixed_precision {name}: not known; give {', '.join(_CHOICES[:-1])} or fp16")
    if name == "auto":
        return "bf16" if has_bf16(device) else "no"
    return cast(Resolved, name)


def has_bf16(device: "torch.device") -> bool:
    """Whether `device` has units for bf16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(found.get(unit, False) for unit in _BF16_UNITS)
