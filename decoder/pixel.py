"""Draws images from codes: the sampling loop of the diffusion decoder.

Legend: B images, N cells, C channels of what is denoised, H x W its size, S pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict, Unpack

import torch
from einops import rearrange, repeat
from torch import Tensor

from pictish.data.tokens import TokenizedImage
from pictish.decoder import meanflow
from pictish.decoder.condition import Conditioning
from pictish.decoder.config import HeadsConfig, MeanFlowNoise
from pictish.decoder.diffusion import DiffusionDecoder, load_diffusion
from pictish.decoder.schedulers import as_model_sees, begin, build_scheduler, check_scheduler, take_step
from pictish.io.model_folder import find_decoder, fingerprint
from pictish.tokenizer.dynamic import Tokenizer
from pictish.training.isolation import inference, loading

Progress = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True)
class Source:
    """An image to start from, for edits: RGB (S, S, 3) uint8 and which cells (N,) bool are to stay."""

    pixels: Tensor
    stays: Tensor


class DrawSettings(TypedDict, total=False):
    """How images are drawn; the model's own settings are `model.config.sampling` and `redraw`.

    Images come squashed to `size`, as the tokenizer saw them. `sources` keep what stays of an image;
    `strength` below 1 starts from them instead of from noise alone.
    """

    steps: Required[int]
    guidance: Required[float]
    scheduler: Required[str | None]
    size: tuple[int, int] | None  # height, width
    sources: Sequence[Source] | None
    strength: float
    progress: Progress | None


class Decoder:
    """A trained diffusion decoder with the tokenizer whose codes it draws."""

    def __init__(
        self, model: DiffusionDecoder, tokenizer: Tokenizer, name: str, device: str | torch.device = "cpu"
    ):
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.fingerprint = name
        self.device = torch.device(device)
        self.side = model.config.side

    @classmethod
    @loading
    def from_folder(
        cls,
        folder: str | Path,
        tokenizer: Tokenizer,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Decoder":
        """Load a model folder, or the shipped `"starter"`; ValueError when it fits another tokenizer.

        `dtype` is the denoiser's alone.
        """
        path = find_decoder(folder, "diffusion")
        if path is None:
            raise ValueError(f"{folder}: a diffusion decoder was asked for, and it holds none")
        model = load_diffusion(path, tokenizer)
        model.denoiser.to(dtype)
        return cls(model, tokenizer, fingerprint(path), device)

    @inference
    def decode(
        self,
        tokens: Sequence[TokenizedImage],
        generators: Sequence[torch.Generator],
        **settings: Unpack[DrawSettings],
    ) -> Tensor:
        """Images as uint8 (B, height, width, 3).

        Each image's noise comes from its own generator (on the CPU) and its shapes are fixed: same codes,
        seed and device, same pixels, whatever else is in the batch. Raises ValueError for another tokenizer's
        tokens and for settings the model cannot take.
        """
        assert len(generators) == len(tokens), (len(generators), len(tokens))
        self._check(settings)  # before the work of reading the tokens
        return self._drawn(self.conditioning(tokens), generators, settings)

    @inference
    def draw(
        self,
        conditioning: Conditioning,
        generators: Sequence[torch.Generator],
        **settings: Unpack[DrawSettings],
    ) -> Tensor:
        """The same from conditions, however they came about."""
        self._check(settings)
        return self._drawn(conditioning, generators, settings)

    def _drawn(
        self, conditioning: Conditioning, generators: Sequence[torch.Generator], settings: DrawSettings
    ) -> Tensor:
        height, width = settings.get("size") or (self.side, self.side)
        sources, strength = settings.get("sources"), settings.get("strength", 1.0)
        count, group = len(generators), self.model.config.micro_batch
        pictures = []
        groups = range(0, count, group)
        for number, start in enumerate(groups):
            chosen = list(range(start, min(start + group, count)))
            padded = chosen + [start] * (group - len(chosen))  # blanks repeat the first
            shape = (self.model.channels, *(n * self.model.sample_size // self.side for n in (height, width)))
            noise = [torch.randn(shape, generator=generators[index]) for index in chosen]
            noise += [noise[0]] * (group - len(chosen))
            drawn = sample(
                self.model,
                conditioning.each(lambda tensor, rows=padded: tensor[rows]),  # type: ignore[misc]
                torch.stack(noise).to(self.device),
                [generators[index] for index in chosen] + [torch.Generator()] * (group - len(chosen)),
                steps=settings["steps"],
                guidance=settings["guidance"],
                scheduler=settings["scheduler"],
                source=self._source([sources[index] for index in padded]) if sources else None,
                strength=strength,
                progress=_part(settings.get("progress"), number, len(groups)),
            )
            pictures.append(drawn[: len(chosen)])
        rgb = torch.cat(pictures) if pictures else torch.empty(0, 3, height, width)
        return rearrange((rgb * 255).round().to(torch.uint8), "b c h w -> b h w c").cpu()

    def conditioning(self, tokens: Sequence[TokenizedImage]) -> Conditioning:
        """What the denoiser's conditions are made of."""
        condition = self.model.config.condition
        own = isinstance(condition, HeadsConfig) and condition.trunk is not None
        features = None if own else self.tokenizer.reconstruct(tokens)
        codes, real = self.tokenizer.code_vectors(tokens)
        pixels = None if features is None else self.tokenizer.pixels_in(features)
        return Conditioning(features, codes, real, pixels).each(lambda tensor: tensor.to(self.device))

    def _source(self, sources: Sequence[Source]) -> tuple[Tensor, Tensor]:
        """RGB images (B, 3, S, S) in [0, 1], and where they stay in maps (B, 1, H, W)."""
        pixels = torch.stack([source.pixels for source in sources]).to(self.device)
        clean = rearrange(pixels, "b h w c -> b c h w").float() / 255
        p = self.model.sample_size // self.tokenizer.grid[0]
        stays = torch.stack([source.stays for source in sources]).to(clean)
        return clean, repeat(stays, "b (y x) -> b 1 (y p) (x q)", y=self.tokenizer.grid[0], p=p, q=p)

    def check(self, steps: int, guidance: float, scheduler: str | None) -> None:
        """ValueError for settings that this decoder cannot take."""
        if not 1 <= steps <= 1000:
            raise ValueError(f"steps: {steps} asked for; 1 to 1000 fit, and 0 for the preview")
        if not 0 <= guidance <= 100:
            raise ValueError(f"guidance: {guidance} asked for; 0 to 100 fit, 1 is none")
        check_scheduler(scheduler, self.model.config.noise, steps)

    def _check(self, settings: DrawSettings) -> None:
        if unknown := settings.keys() - DrawSettings.__annotations__.keys():
            raise TypeError(f"{min(unknown)}: no such argument")
        steps, scheduler = settings["steps"], settings["scheduler"]
        self.check(steps, settings["guidance"], scheduler)
        size, sources = settings.get("size") or (self.side, self.side), settings.get("sources")
        strength = settings.get("strength", 1.0)
        if not 0 < strength <= 1:
            raise ValueError(f"strength: {strength} asked for; above 0 to 1 fit")
        if strength < 1 and sources is None:
            raise ValueError(f"strength: {strength} asked for, but no source image to start from; omit it")
        if strength < 1:
            check_scheduler(scheduler, self.model.config.noise, steps, strength)
        # maps of cells beside the image need whole cells
        cell = self.side // self.tokenizer.grid[0] if self.model.config.condition.channels else 1
        unit = math.lcm(cell, self.model.denoiser.shrink * self.model.denoiser.patch)
        if any(n % unit or not self.side // 2 <= n <= 2 * self.side for n in size):
            raise ValueError(
                f"size: {size[1]} x {size[0]} pixels asked for; multiples of {unit} from {self.side // 2} to "
                f"{2 * self.side} fit this decoder"
            )
        if sources is not None and not self.model.config.condition.source:
            raise ValueError("this decoder was not trained with source images; it cannot keep parts of one")
        if sources is not None and size != (self.side, self.side):
            raise ValueError(f"size: a source image is drawn at {self.side} x {self.side} pixels alone")


def sample(
    model: DiffusionDecoder,
    conditioning: Conditioning,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    guidance: float,
    scheduler: str | None,
    source: tuple[Tensor, Tensor] | None = None,
    strength: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """RGB images (B, 3, S, S) in [0, 1] from `noise` (B, C, H, W).

    Classifier-free guidance (arXiv 2207.12598) runs both branches in one forward. `source` is RGB images
    (B, 3, S, S) in [0, 1] and where they stay (B, 1, H, W). With a `strength` below 1 the last of the steps
    are taken, from what is known with noise on top: the source, or, about a prior, what stays of it.
    """
    prior = model.prior(conditioning, (noise.shape[-2], noise.shape[-1]))
    known, shown = None, None
    if source:
        known = model.encode(source[0], prior)
        shown = (known * source[1], source[1])
    branches = 1 if guidance == 1 else 2
    # conditioned, then not
    drop = torch.arange(branches, device=noise.device).repeat_interleave(len(noise)).bool()
    repeated = conditioning.each(lambda tensor: torch.cat([tensor] * branches))
    conditions = model.condition(repeated, drop, (noise.shape[-2], noise.shape[-1]))
    start = shown[0] if shown and prior is not None else known  # no residual: what the new codes tell
    start = start if strength < 1 else None
    beside = (torch.cat([shown[0]] * branches), torch.cat([shown[1]] * branches)) if shown else None
    about = None if prior is None else torch.cat([prior] * branches)
    if isinstance(model.config.noise, MeanFlowNoise):

        def predict(z: Tensor, t: Tensor, length: Tensor) -> Tensor:
            z, t, length = (torch.cat([tensor] * branches) for tensor in (z, t, length))
            predicted = model.denoiser(z, t, conditions, about, beside, length)
            return guided(predicted, guidance, branches)

        x = meanflow.draw(predict, noise, steps, source=start, strength=strength, progress=progress)
    else:
        schedule = build_scheduler(scheduler, model.config.noise)
        times, x = begin(schedule, steps, strength, start, noise)
        bounded = not model.free or model.noise.config.predicts not in ("epsilon", "velocity")
        for done, time in enumerate(times, 1):
            noisy = as_model_sees(schedule, x, time)
            at = time.to(x.device).expand(len(x) * branches)
            both = torch.cat([noisy] * branches)
            predicted = model.denoiser(both, at, conditions, about, beside)
            if bounded:
                clean = guided(model.noise.clean(predicted, both, at), guidance, branches)
                output = model.noise.for_scheduler(model.within(clean, prior), noisy, at[: len(x)])
            else:  # no way round by x_0, which would lose digits
                output = guided(predicted, guidance, branches)
            x = take_step(schedule, output, time, x, generators)
            if progress is not None:
                progress(done, len(times))
    if not x.isfinite().all():
        name, other = (scheduler, ", or another scheduler") if scheduler else (model.config.noise.kind, "")
        raise ValueError(f"{name}: no finite numbers after {steps} steps; take others{other}")
    if known is not None and shown is not None:
        x = torch.lerp(x, known, shown[1])
    return model.decode(x, prior).clamp(0, 1)


def guided(said: Tensor, scale: float, branches: int) -> Tensor:
    """What all `branches` say as one: with codes, and then, where there are two, without."""
    if branches == 1:
        return said
    with_codes, without = said.chunk(2)
    return without + scale * (with_codes - without)


def _part(progress: Progress | None, number: int, groups: int) -> Progress | None:
    """Progress of one group as progress of all."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, groups * total)
