"""What decoders are trained on, and the grid of images that shows how far they are.

Legend: B images, N cells, F feature channels, C code dimension, S side in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from pictish.data.images import png_bytes
from pictish.decoder.condition import ConditionEncoder, Conditioning, hide
from pictish.decoder.config import MeanFlowNoise, ObjectiveConfig
from pictish.decoder.diffusion import DiffusionDecoder
from pictish.decoder.meanflow import draw_times, self_weighted, velocity_errors
from pictish.decoder.noise import TIMES
from pictish.decoder.pixel import sample
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.losses import map_distances
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup

QUARTERS = 4  # of the times, logged apart: an average hides which noise levels learn


class Batch(NamedTuple):
    """What the codes of B images say, and the images."""

    features: Tensor  # (B, N, F) of the reconstructor
    codes: Tensor  # (B, N, C), see `Conditioning`
    real: Tensor  # (B, N) bool
    target: Tensor  # (B, 3, S, S) in [0, 1]
    plain: Tensor | None  # (B, 3, s, s): the pixels among the predicted features, where there are any

    @property
    def conditioning(self) -> Conditioning:
        return Conditioning(self.features, self.codes, self.real, self.plain)


def preview_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Squared error of the preview, and PSNR in dB with and without the head."""
    assert batch.plain is not None, "build_preview refuses tokenizers without pixels"
    picture = model(batch.features, batch.plain).float()
    return {
        "loss": F.mse_loss(picture, batch.target),
        "psnr": _psnr(picture, batch.target),
        "psnr_headless": _psnr(batch.plain, batch.target),
    }


def diffusion_losses(
    model: nn.Module,
    network: DiffusionDecoder,
    encoder: Encoder | None,
    batch: Batch,
    objective: ObjectiveConfig,
    generator: torch.Generator,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """The weighted squared error of the prediction, and that of x_0 (in its units) by quarters of the time.

    Of MeanFlow it is that of the velocity; `velocity_error` is its mean before an adaptive weighting, and x_0
    is predicted where the two times are equal.
    All draws come from `generator` on the CPU. `model` is `network`, perhaps wrapped for several processes;
    `encoder` is what `objective.perceptual` compares images by. `batch` may be one process's rows of the
    step's: the mean of all processes' losses is then the batch's.
    """
    prior = network.prior(batch.conditioning)
    clean = network.encode(batch.target, prior)
    count, device = len(clean), clean.device
    average = isinstance(network.noise.config, MeanFlowNoise)
    if average:
        t, r = (times.to(device) for times in draw_times(count, objective, generator, process_group))
        times, equal = t * TIMES, t == r
    else:
        times = network.noise.draw_times(count, objective, generator, process_group).to(device)
        equal = torch.ones_like(times, dtype=torch.bool)
    n = process_group.drawn(torch.randn, clean.shape, generator).to(clean)
    drop = (process_group.drawn(torch.rand, (count,), generator) < objective.dropout).to(device)
    source = None
    if network.config.condition.source:
        assert isinstance(network.condition, ConditionEncoder), "heads take no source"
        source = hide(clean, generator, objective.source, network.condition.grid, process_group)
    noisy = network.noise.mix(clean, n, times)
    adaptive = objective.weighting == "adaptive"
    if average:
        seen = batch.conditioning, drop, prior, source
        found, errors = velocity_errors(model, network, noisy, t, r, n - clean, *seen)
        losses = {"velocity_error": errors.mean()}
        losses["loss"] = self_weighted(errors.sum((1, 2, 3))).mean() if adaptive else losses["velocity_error"]
    else:
        predicted = model(noisy, times, batch.conditioning, drop, prior, source).float()
        errors = (predicted - network.noise.target(clean, n, times)).square()
        losses = {"loss": (errors * network.noise.weights(times, objective)).mean()}
        found = network.noise.clean(predicted, noisy, times)
    if objective.perceptual:
        assert encoder is not None
        pictures = network.decode(found, prior).clamp(-1, 2)
        near = times <= objective.perceptual_below * TIMES
        distances = torch.zeros_like(times)  # (B,)
        if near.any():
            distances[near] = _perceptual(encoder, pictures[near], batch.target[near])
        losses["perceptual"] = distances.mean()
        weighed = self_weighted(distances).mean() if adaptive else losses["perceptual"]
        losses["loss"] = losses["loss"] + objective.perceptual * weighed
    with torch.no_grad():
        by_picture = process_group.gathered((found.clamp(-10, 10) - clean).square().mean((1, 2, 3)))
        quarter = (process_group.gathered(times) * QUARTERS / TIMES).long().clamp_max(QUARTERS - 1)
        quarter[~process_group.gathered(equal)] = QUARTERS  # not of x_0
        for number in range(QUARTERS):
            if (quarter == number).any():
                losses[f"x0_error_{number + 1}of{QUARTERS}"] = by_picture[quarter == number].mean()
    return losses


def _perceptual(encoder: Encoder, pictures: Tensor, targets: Tensor) -> Tensor:
    """Distances (B,) of images (B, 3, S, S) from targets in the encoder's feature maps."""
    with torch.autocast(pictures.device.type, enabled=False):  # its depthwise convolutions are slow in bf16
        with torch.no_grad():
            theirs = encoder.levels(targets.float())
        return map_distances(encoder.levels(pictures.float()), theirs)


@torch.no_grad()
def grid_of_pictures(network: nn.Module, batch: Batch) -> bytes:
    """PNG: a row each of originals, the pixels among the predicted features, and what is drawn."""
    rows = [batch.target]
    if batch.plain is not None:
        rows.append(batch.plain)
    network.eval()
    if isinstance(network, DiffusionDecoder):
        for guidance in sorted({1.0, network.config.sampling.guidance}):
            rows.append(samples_of(network, batch.conditioning, guidance))
    elif batch.plain is not None:
        rows.append(network(batch.features, batch.plain))
    network.train()
    return sheet_of(rows)


def samples_of(network: DiffusionDecoder, conditioning: Conditioning, guidance: float) -> Tensor:
    """Images (B, 3, S, S) in [0, 1], the first from seed 0, the second from seed 1 and so on."""
    count, device = len(conditioning.codes), conditioning.codes.device
    generators = [torch.Generator().manual_seed(number) for number in range(count)]
    size = (network.channels, network.sample_size, network.sample_size)
    noise = torch.stack([torch.randn(size, generator=generator) for generator in generators])
    usual = network.config.sampling
    return sample(
        network,
        conditioning,
        noise.to(device),
        generators,
        steps=usual.steps,
        guidance=guidance,
        scheduler=usual.scheduler,
    )


def sheet_of(rows: Sequence[Tensor]) -> bytes:
    """PNG of rows of images (B, 3, s, s) in [0, 1], one below the other, at the size of the first row."""
    size = rows[0].shape[-2:]
    rgb = torch.stack([F.interpolate(row, size=size, mode="nearest") for row in rows])  # (rows, B, 3, S, S)
    pixels = rearrange((rgb.clamp(0, 1).cpu() * 255).round().to(torch.uint8), "k b c h w -> (k h) (b w) c")
    return png_bytes(Image.fromarray(pixels.numpy()))


def _psnr(picture: Tensor, target: Tensor) -> Tensor:
    """Mean PSNR in dB of images (B, 3, S, S) in [0, 1]."""
    errors = (picture.detach().clamp(0, 1) - target).square().mean((1, 2, 3))
    return (-10 * torch.log10(errors.clamp_min(1e-10))).mean()
