"""Learning-rate schedules: pure functions of the step."""

import math


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate of `step` (from 0): a linear rise over `warmup` steps, a cosine from `peak` to `floor`.

    Step `warmup - 1` already has `peak`; from step `total` on it stays at `floor`.
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"schedule: warmup={warmup} must lie between 0 and total={total}")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
