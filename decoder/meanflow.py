"""Pixel MeanFlow (arXiv 2505.13447; in pixels: He et al., 2026, github.com/Lyy-iiis/pMF): one to four steps.

A flow z_t = (1 - t) x + t n has a velocity v at each time. One step from z_t to z_r needs the average of v
between r and t, u(z_t, t, r). It satisfies u = v - (t - r) du/dt, where the derivative is along the flow: it
can be learned without a teacher network. The network predicts x, which is easier in pixels than a velocity:
u = (z_t - x) / t.

Legend: B images, C channels of what is denoised, H x W its size; z, x, u, v are (B, C, H, W). Times are
(B,), from 0 (clean) to 1 (noise), and r <= t.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pictish.decoder.condition import Conditioning
from pictish.decoder.config import ObjectiveConfig
from pictish.decoder.diffusion import DiffusionDecoder
from pictish.decoder.noise import draw_parts
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup

SCALE = 16.0  # of the times that are embedded; with 1,000, as elsewhere, du/dt would be huge
FLOOR = 0.05  # of the time that x is divided by, as in pMF and JiT (arXiv 2511.13720)
EPSILON = 0.01  # added to the errors that adaptive weighting divides by, as in pMF

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # z, and embedded t and t - r, to x


def draw_times(
    count: int,
    objective: ObjectiveConfig,
    generator: torch.Generator,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Times t and r of training, on the CPU; a fraction `objective.flow_matching` of them are equal.

    They may be one process's part of a batch's.
    """
    first = draw_parts(count, objective, generator, process_group)
    second = draw_parts(count, objective, generator, process_group)
    equal = process_group.drawn(torch.rand, (count,), generator) < objective.flow_matching
    second = torch.where(equal, first, second)
    return torch.maximum(first, second), torch.minimum(first, second)


def velocity_errors(
    model: nn.Module,
    network: DiffusionDecoder,
    z: Tensor,
    t: Tensor,
    r: Tensor,
    v: Tensor,
    conditioning: Conditioning,
    drop: Tensor,
    prior: Tensor | None,
    source: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Predicted x, and the squared errors of u + (t - r) du/dt as a prediction of the flow's velocity `v`.

    The derivative is taken for the images with r < t alone and is not trained through. `model` is
    `network`, perhaps wrapped for several processes.
    """
    # with gradients first: autocast keeps its copies of the weights, and those made without have none
    x = model(z, SCALE * t, conditioning, drop, prior, source, SCALE * (t - r)).float()
    u = (z - x) / _maps(t).clamp_min(FLOOR)
    rows = (r < t).nonzero().flatten()
    along = torch.zeros_like(u)
    if len(rows):
        conditioning, prior = (
            conditioning.each(lambda tensor: tensor[rows]),
            None if prior is None else prior[rows],
        )
        source = None if source is None else (source[0][rows], source[1][rows])
        predict = _frozen(network, conditioning, drop[rows], prior, source, (z.shape[-2], z.shape[-1]))
        along[rows] = derivative(predict, z[rows], t[rows], r[rows])
    return x, (u + _maps(t - r) * along - v).square()


@torch.no_grad()
def _frozen(
    network: DiffusionDecoder,
    conditioning: Conditioning,
    drop: Tensor,
    prior: Tensor | None,
    source: tuple[Tensor, Tensor] | None,
    size: tuple[int, int],
) -> Predict:
    """What the network predicts under these conditions, without gradients to its weights.

    Under autocast the weights are in its precision: autocast itself and forward mode disagree on the types of
    normalised maps (PyTorch 2.14).
    """
    conditions = network.condition(conditioning, drop, size)
    device, denoiser = drop.device.type, network.denoiser
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    tensors = chain(denoiser.named_parameters(), denoiser.named_buffers())
    weights = {name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in tensors}

    def predict(z: Tensor, t: Tensor, length: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            said = z, t, conditions, prior, source, length
            predicted: Tensor = torch.func.functional_call(denoiser, weights, said)
            return predicted

    return predict


def average_velocity(predict: Predict, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """u(z, t, r)."""
    x = predict(z, SCALE * t, SCALE * (t - r)).to(z.dtype)
    return (z - x) / _maps(t).clamp_min(FLOOR)


@torch.no_grad()
def derivative(predict: Predict, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """du/dt along the flow, r held: in forward mode, with the network's own velocity u(z, t, t) as dz/dt."""
    v = average_velocity(predict, z, t, t)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
        u = partial(average_velocity, predict, r=r)
        along: Tensor = torch.func.jvp(u, (z, t), (v, torch.ones_like(t)))[1]
    return along


def self_weighted(errors: Tensor) -> Tensor:
    """Errors (B,) divided by themselves, through which no gradient flows: all images pull alike."""
    return errors / (errors.detach() + EPSILON)


def draw(
    predict: Predict,
    noise: Tensor,
    steps: int,
    *,
    source: Tensor | None = None,
    strength: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """x from `noise` (B, C, H, W), in steps of equal length.

    With a clean `source` (B, C, H, W) the last `strength` of the steps are taken from it with noise on top
    (SDEdit, arXiv 2108.01073).
    """
    times = torch.linspace(1, 0, steps + 1).tolist()
    z, first = noise, 0
    if source is not None:
        first = max(0, steps - max(1, round(steps * strength)))
        z = torch.lerp(source, noise, times[first])
    for number in range(first, steps):
        t, r = times[number], times[number + 1]
        embedded = (z.new_full((len(z),), SCALE * time) for time in (t, t - r))
        z = torch.lerp(predict(z, *embedded), z, r / t)  # z - (t - r) u
        if progress is not None:
            progress(number - first + 1, steps - first)
    return z


def _maps(times: Tensor) -> Tensor:
    return times[:, None, None, None]
