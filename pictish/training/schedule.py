"""Learning-rate schedules: pure functions of the step."""

import math


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate of `step` (from 0): a linear rise over `warmup` steps, a cosine from `peak` to `floor`.

    Step `warmup - 1` already has `peak`; from step `total` on it stays at `floor`.
    """
    check_warmup(warmup, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def check_warmup(warmup: int, steps: int) -> None:
    """ValueError when `steps` of training end before their `warmup` does."""
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup {warmup} must be 0 to steps, which is {steps}")
