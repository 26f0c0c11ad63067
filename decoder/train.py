"""Trains a decoder: codes of the frozen tokenizer in, pixels out; one visible loop, exact resume.

It reads like tokenizer/train.py. Everything random is a function of the seed and the step.

Legend: B images, N cells, F feature channels, S side in pixels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pictish.decoder.config import DiffusionConfig, MeanFlowNoise, PreviewConfig, TrainConfig
from pictish.decoder.denoiser import Latents
from pictish.decoder.diffusion import DiffusionDecoder, save_diffusion
from pictish.decoder.objective import Batch, diffusion_losses, grid_of_pictures, preview_losses
from pictish.decoder.preview import PreviewHead, build_preview, save_preview
from pictish.io.files import write_atomic
from pictish.io.interrupt import Stopped, asked, in_units
from pictish.tokenizer.cache import PictureCache, resized, training_caches
from pictish.tokenizer.conv import as_maps
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.selector import choose, draw_keep
from pictish.training.average import Average
from pictish.training.checkpoint import optimizer_tensors, restore, save_checkpoint
from pictish.training.isolation import training
from pictish.training.loss_guard import LossGuard
from pictish.training.metrics import MeanLosses, MetricsLog
from pictish.training.optimizer import adamw, muon
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup
from pictish.training.resume import fingerprint_of
from pictish.training.runtime import accelerator, keep_freed_memory, seeded
from pictish.training.schedule import warmup_cosine
from pictish.training.sharding import plain, prepare, shard, whole

VALIDATION_SEED = 7  # of noise and times, the same at each validation


@training
def train(
    config: TrainConfig,
    run: Path,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    *,
    anomaly_skip: int = 0,
    fsdp: bool = False,
) -> Path:
    """Train by `config` in the folder `run`, from its last checkpoint on; returns the folder `run/model`.

    `anomaly_skip` steps that go wrong are passed over. With `fsdp` the processes share the weights out among
    them; else each has all. Raises ValueError for settings that fit neither the
    tokenizer, the data nor this machine, and for the next step that goes wrong; Stopped, with the run saved,
    when asked to.
    """
    if fsdp and isinstance(config.model, DiffusionConfig) and isinstance(config.model.noise, MeanFlowNoise):
        raise ValueError("--fsdp: noise of kind meanflow needs unsharded weights; omit it")
    keep_freed_memory()
    accelerate = accelerator(device, config.mixed_precision)
    tokenizer = Tokenizer.from_folder(config.tokenizer, accelerate.device)
    sides = tokenizer.image_size, _side(config, tokenizer)
    torch.manual_seed(config.seed)
    network = build(config, tokenizer).to(accelerate.device)  # first: it refuses what does not fit at once
    process_group = ProcessGroup.of(accelerate)
    process_group.rows(config.batch_size)  # refused now where it cannot be shared out
    main = accelerate.is_main_process
    with accelerate.main_process_first():  # it fills the cache, which the others then find
        training, validation = training_caches(config.data, max(sides), run, config.seed)
    skeleton = shard(network, accelerate, frozen_whole=True) if fsdp else None
    optimizer_of = partial(muon, matrices=block_matrices(network)) if config.optimizer == "muon" else adamw
    optimizer = optimizer_of(network, config.learning_rate, config.weight_decay)
    names = [name for name, _ in network.named_parameters()]
    average = Average(network, config.objective.ema if isinstance(network, DiffusionDecoder) else 0.0)
    guard = LossGuard(run, accelerate, anomaly_skip)
    encoder = None
    if config.objective.perceptual:
        assert config.teacher is not None  # the config refuses it otherwise
        encoder = Encoder(config.teacher).at_all_levels().to(accelerate.device)
    with accelerate.main_process_first():  # it clears up after a killed save
        inputs = _inputs(tokenizer, network, encoder, training)
        first = restore(run, network, optimizer, names, average, guard, inputs)
    model, optimizer = prepare(accelerate, network, optimizer)
    losses_of = partial(_losses, config=config, network=network, encoder=encoder)
    window = MeanLosses()
    network.train()  # diffusers gives a loaded network in evaluation mode
    stretch = in_units(f"stretch of {config.log_every} steps")
    with MetricsLog(run, first, config.tensorboard, config.wandb, main=main) as metrics, stretch:
        for step in range(first, config.steps):
            generator = seeded(config.seed, step)
            pictures = training.batch(step, config.batch_size, config.seed, process_group)
            draw = partial(_draw, config=config, generator=generator, process_group=process_group)
            batch = batch_of(tokenizer, pictures, sides[1], draw)
            rate = warmup_cosine(step, peak=config.learning_rate, warmup=config.warmup, total=config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            guard.begin(network)
            with accelerate.autocast():
                losses = losses_of(model, batch, generator=generator, process_group=process_group)
            accelerate.backward(losses["loss"])
            norm = plain(accelerate.clip_grad_norm_(network.parameters(), config.clip_norm))
            done = step + 1
            samples = partial(training.names, step, config.batch_size, config.seed, process_group)
            loss = losses["loss"] * len(pictures)
            good, stop = guard.check(done, loss, len(pictures), {"gradient_norm": norm}, asked(), samples)
            if good:
                optimizer.step()
                average.update()
                window.add(losses)
            optimizer.zero_grad(set_to_none=True)
            if window.steps and (done % config.log_every == 0 or done == config.steps):
                numbers = {**guard.numbers(), **window.numbers(accelerate, config.batch_size)}
                metrics.write(done, learning_rate=rate, **numbers)
            if done % config.validate_every == 0 or done == config.steps:
                batches = _in_order(tokenizer, validation, sides[1], config.batch_size)
                with average.applied():
                    metrics.write(done, **validate(network, losses_of, batches))
            if config.sample_every and (done % config.sample_every == 0 or done == config.steps):
                with average.applied():
                    shown = whole(network, skeleton, accelerate)
                    if shown is not None:
                        sheet = grid_of_pictures(shown, next(_in_order(tokenizer, validation, sides[1], 8)))
                        write_atomic(run / "samples" / f"step-{done:08d}.png", sheet)
            # only where no window is under way, so that the lines of the log stay those of an undisturbed run
            stop = stop and done % config.log_every == 0
            if done % config.checkpoint_every == 0 or done == config.steps or stop:
                tensors = {**network.state_dict(), **optimizer_tensors(optimizer, names), **average.tensors()}
                state = {"watch": guard.state(), "inputs": inputs}
                save_checkpoint(run, done, tensors, state, config.keep_checkpoints, accelerate)
            if progress is not None:
                progress(done, config.steps)
            if stop and done < config.steps:
                raise Stopped(
                    f"interrupted; step {done} of {config.steps} is saved, the same command resumes there"
                )
    with average.applied():
        finished = whole(network, skeleton, accelerate)
        if finished is not None:
            save(run / "model", finished, config, tokenizer)
    return run / "model"


def _inputs(
    tokenizer: Tokenizer, network: nn.Module, encoder: Encoder | None, training: PictureCache
) -> dict[str, str]:
    """Fingerprints, by keys of the config, of what a run reads beside its checkpoint."""
    found = {"data.train": training.digest, "tokenizer": tokenizer.fingerprint}
    if encoder is not None:
        found["teacher.weights"] = encoder.sha256[:12]
    if isinstance(network, DiffusionDecoder):
        parts: dict[str, Any] = {"model.denoiser.folder": network.denoiser.network}
        if isinstance(network.latents, Latents):
            parts["model.autoencoder.folder"] = network.latents.autoencoder
        for key, part in parts.items():
            settings = {name: value for name, value in part.config.items() if not name.startswith("_")}
            found[key] = fingerprint_of(settings)
    return found


BLOCKS = (".down_blocks.", ".mid_block.", ".up_blocks.", ".transformer_blocks.", "stages.")


def block_matrices(network: nn.Module) -> set[str]:
    """Names of the matrices and convolutions of blocks, for Muon; the first and last layers are none."""
    named = [name for name, parameter in network.named_parameters() if parameter.ndim > 1]
    return {name for name in named if any(part in name for part in BLOCKS)}


def build(config: TrainConfig, tokenizer: Tokenizer) -> PreviewHead | DiffusionDecoder:
    """An untrained decoder for the tokenizer's codes; ValueError when the two do not fit."""
    if isinstance(config.model, PreviewConfig):
        return build_preview(config.model, tokenizer)
    return DiffusionDecoder(config.model, tokenizer)


def save(folder: Path, network: nn.Module, config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Write the model folder."""
    if isinstance(network, DiffusionDecoder):
        save_diffusion(folder, network, tokenizer.fingerprint, overwrite=True)
    else:
        assert isinstance(network, PreviewHead), network
        assert isinstance(config.model, PreviewConfig), config.model
        save_preview(folder, network, config.model, tokenizer.fingerprint, overwrite=True)


@torch.no_grad()
def validate(
    network: nn.Module, losses_of: Callable[..., dict[str, Tensor]], batches: Iterator[Batch]
) -> dict[str, float]:
    """Mean losses over the validation images at the automatic length, with the same noise every time."""
    network.eval()
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    found: dict[str, list[float]] = {}
    for batch in batches:
        for name, value in losses_of(network, batch, generator=generator).items():
            found.setdefault(f"validation_{name}", []).extend([value.item()] * len(batch.target))
    network.train()
    return {name: _mean(values) for name, values in found.items()}


def _losses(
    model: nn.Module,
    batch: Batch,
    generator: torch.Generator,
    config: TrainConfig,
    network: nn.Module,
    encoder: Encoder | None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """Scalars by name, `loss` among them; `model` is `network` as accelerate wrapped it."""
    if isinstance(network, DiffusionDecoder):
        return diffusion_losses(model, network, encoder, batch, config.objective, generator, process_group)
    return preview_losses(model, batch)


def _in_order(tokenizer: Tokenizer, cache: PictureCache, side: int, size: int) -> Iterator[Batch]:
    for pictures in cache.in_order(size):
        yield batch_of(tokenizer, pictures, side, choose)


def batch_of(tokenizer: Tokenizer, pictures: Tensor, side: int, draw: Callable[[Tensor], Tensor]) -> Batch:
    """What the codes say of uint8 images (B, S, S, 3), and the images at `side` pixels."""
    pictures = pictures.to(tokenizer.device)
    there = tokenizer.network.round_trip(resized(pictures, tokenizer.image_size), draw=draw)
    plain = tokenizer.pixels_in(there.features)
    return Batch(there.features, there.codes, there.real, as_maps(resized(pictures, side)), plain)


def _side(config: TrainConfig, tokenizer: Tokenizer) -> int:
    """Of the images that are drawn."""
    if isinstance(config.model, DiffusionConfig):
        return config.model.side
    return tokenizer.network.pixel_side or tokenizer.image_size  # `build` refuses a tokenizer of no pixels


def _draw(
    logits: Tensor, config: TrainConfig, generator: torch.Generator, process_group: ProcessGroup
) -> Tensor:
    kept = draw_keep(
        logits,
        0.1,
        generator,
        fixed_length=config.fixed_length_probability,
        exploration=0.0,
        process_group=process_group,
    )
    return kept.keep


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
