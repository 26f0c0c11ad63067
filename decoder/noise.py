"""How noise is mixed with images, and what the network says about the mixture.

All processes are x_t = a x_0 + b n with levels a and b of a time t from 0 (clean) to 1,000 (noise), so every
prediction can be read as x_0: one form for guidance and for any scheduler.

Legend: B images, T entries of a table; x, n, predictions are (B, C, H, W), times and levels (B,).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pictish.decoder.config import AnyNoise, DiffusionNoise, ObjectiveConfig
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup

TIMES = 1000  # what diffusers calls num_train_timesteps
FLOOR = 0.15  # of the noise level that an error of x_0 is divided by: cleaner images weigh no more


@dataclass(frozen=True)
class Noise:
    """A noise process and what is predicted of it."""

    config: AnyNoise

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Levels (a, b) of `times` in [0, 1000], each (B, 1, 1, 1), interpolated between whole times."""
        if not isinstance(self.config, DiffusionNoise):
            b = times.float() / TIMES
            a = 1 - b
        else:
            products = alphas_cumprod(self.config).to(times.device)  # (T,)
            place = times.float().clamp(0, TIMES - 1)
            below = place.floor().long()
            above = (below + 1).clamp_max(TIMES - 1)
            # the logarithm of the signal-to-noise ratio is nearly straight between neighbours
            ratio = torch.logit(products)
            product = torch.sigmoid(torch.lerp(ratio[below], ratio[above], place - below))
            a, b = product.sqrt(), (1 - product).sqrt()
        return a[:, None, None, None], b[:, None, None, None]

    def draw_times(
        self,
        count: int,
        objective: ObjectiveConfig,
        generator: torch.Generator,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> Tensor:
        """Training times (B,) on the CPU; whole numbers for a diffusion process, as samplers visit them.

        They may be one process's part of a batch's.
        """
        times = draw_parts(count, objective, generator, process_group) * TIMES
        return times.floor() if isinstance(self.config, DiffusionNoise) else times

    def mix(self, x: Tensor, n: Tensor, times: Tensor) -> Tensor:
        """Images at these times."""
        a, b = self.levels(times)
        return a * x + b * n

    def target(self, x: Tensor, n: Tensor, times: Tensor) -> Tensor:
        """What the network should say."""
        a, b = self.levels(times)
        match self.config.predicts:
            case "epsilon":
                return n
            case "v":  # arXiv 2202.00512
                return a * n - b * x
            case "velocity":
                return n - x
            case "x0":
                return x

    def clean(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """x_0 by a prediction about `noisy`."""
        a, b = self.levels(times)
        match self.config.predicts:
            case "epsilon":
                return (noisy - b * prediction) / a
            case "v":
                return a * noisy - b * prediction
            case "velocity":
                return noisy - b * prediction
            case "x0":
                return prediction

    def for_scheduler(self, clean: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """What a scheduler made by `decoder/pixel.py` takes: epsilon, or the velocity of a flow."""
        a, b = self.levels(times)
        if not isinstance(self.config, DiffusionNoise):
            return (noisy - clean) / b.clamp_min(1e-3)
        return (noisy - a * clean) / b

    def weights(self, times: Tensor, objective: ObjectiveConfig) -> Tensor:
        """Weights (B, 1, 1, 1) of squared errors of the target."""
        a, b = self.levels(times)
        if objective.weighting == "velocity":
            return b.clamp_min(FLOOR) ** -2 if self.config.predicts == "x0" else torch.ones_like(b)
        if objective.weighting == "min_snr":
            ratio = (a / b) ** 2
            capped = ratio.clamp_max(objective.gamma)
            by_name = {"epsilon": capped / ratio, "v": capped / (ratio + 1)}
            return by_name.get(self.config.predicts, capped)
        return torch.ones_like(b)


def draw_parts(
    count: int,
    objective: ObjectiveConfig,
    generator: torch.Generator,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Tensor:
    """Times (B,) from 0 to 1 by the distribution of `objective`, on the CPU."""
    if objective.times == "logit_normal":
        normal = process_group.drawn(torch.randn, (count,), generator)
        return torch.sigmoid(objective.mean + objective.deviation * normal)
    return process_group.drawn(torch.rand, (count,), generator)


@lru_cache(maxsize=16)
def alphas_cumprod(config: DiffusionNoise) -> Tensor:
    """Squared signal levels (T,) of the betas, as diffusers computes them; on the CPU, not to be changed."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    with torch.inference_mode(False):  # the first caller may draw, the next one train
        return DDPMScheduler(TIMES, config.beta_start, config.beta_end, config.beta_schedule).alphas_cumprod
