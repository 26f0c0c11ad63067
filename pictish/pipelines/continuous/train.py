"""Trains an output projector: captions through a frozen language model, features of their images out.

It reads like decoder/train.py. Everything random is a function of the seed and the step.

Legend: B images, N cells, F feature channels, S side in pixels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.data.members import image_members
from pictish.data.samples import DamagedSample, Pair, parse_sample
from pictish.data.shards import find_shards, open_shard
from pictish.decoder.condition import check_reads_features, conditioning_on
from pictish.decoder.config import ObjectiveConfig
from pictish.decoder.diffusion import DiffusionDecoder, load_diffusion
from pictish.decoder.objective import Batch, diffusion_losses, samples_of, sheet_of
from pictish.decoder.train import batch_of
from pictish.io.files import matching, write_atomic
from pictish.io.interrupt import Stopped, asked, in_units
from pictish.io.model_folder import find_decoder, fingerprint
from pictish.lm.adapted import Base, read_base
from pictish.lm.output_projector import OutputProjector, save_output_projector
from pictish.lm.vocabulary import text_ids
from pictish.pipelines.continuous.config import TrainConfig
from pictish.tokenizer.cache import PictureCache, training_caches
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.selector import choose
from pictish.training.checkpoint import optimizer_tensors, restore, save_checkpoint
from pictish.training.isolation import training
from pictish.training.loss_guard import LossGuard
from pictish.training.metrics import MeanLosses, MetricsLog
from pictish.training.optimizer import adamw
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup
from pictish.training.runtime import accelerator, keep_freed_memory, seeded
from pictish.training.schedule import warmup_cosine
from pictish.training.sharding import plain, prepare

logger = logging.getLogger(__name__)

VALIDATION_SEED = 7  # of noise and times, the same at each validation
SHOWN = 8  # images of a sheet

Captions = Sequence[tuple[str, ...]]  # of each sample of a cache, one or more


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

    Language model, tokenizer and decoder are frozen. `anomaly_skip` steps that go wrong are passed over.
    Raises ValueError for settings that fit neither the models, the data nor this machine, and for the next
    step that goes wrong; Stopped, with the run saved, when asked to.
    """
    if fsdp:
        raise ValueError("--fsdp: an output projector is not sharded; train without it, by DDP")
    keep_freed_memory()
    accelerate = accelerator(device, config.mixed_precision)
    base = read_base(config.language_model, accelerate.device)
    tokenizer = Tokenizer.from_folder(config.tokenizer, accelerate.device)
    decoder = _decoder(config, tokenizer)
    torch.manual_seed(config.seed)
    projector = OutputProjector.beside(
        base.language, config.model, tokenizer.cells, tokenizer.network.features
    ).to(accelerate.device)
    process_group = ProcessGroup.of(accelerate)
    process_group.rows(config.batch_size)  # refused now where it cannot be shared out
    side = tokenizer.network.pixel_side or tokenizer.image_size if decoder is None else decoder.config.side
    with accelerate.main_process_first():  # it fills the cache, which the others then find
        images, unseen = training_caches(config.data, max(side, tokenizer.image_size), run, config.seed)
    captions, others = (
        captions_of(shards, cache, config.caption_key)
        for shards, cache in ((config.data.train, images), (config.data.validation, unseen))
    )
    optimizer = adamw(projector, config.learning_rate, config.weight_decay)
    names = [name for name, _ in projector.named_parameters()]
    guard = LossGuard(run, accelerate, anomaly_skip)
    inputs = {
        "data.train": images.digest,
        "language_model": base.fingerprint,
        "tokenizer": tokenizer.fingerprint,
    }
    if config.decoder is not None:
        inputs["decoder"] = fingerprint(_decoder_folder(config.decoder))
    with accelerate.main_process_first():  # it clears up after a killed save
        first = restore(run, projector, optimizer, names, guard=guard, inputs=inputs)
    model, optimizer = prepare(accelerate, projector, optimizer)
    losses_of = partial(_losses, base=base, tokenizer=tokenizer, decoder=decoder, config=config)
    window = MeanLosses()
    stretch = in_units(f"stretch of {config.log_every} steps")
    with (
        MetricsLog(run, first, config.tensorboard, config.wandb, main=accelerate.is_main_process) as metrics,
        stretch,
    ):
        for step in range(first, config.steps):
            generator = seeded(config.seed, step)
            at = step, config.batch_size, config.seed, process_group
            pictures = images.batch(*at)
            chance = process_group.drawn(torch.rand, (len(pictures),), generator).tolist()
            choices = [captions[number] for number in images.numbers(*at)]
            said = [listed[int(n * len(listed))] for listed, n in zip(choices, chance, strict=True)]
            batch = batch_of(tokenizer, pictures, side, choose)
            rate = warmup_cosine(step, peak=config.learning_rate, warmup=config.warmup, total=config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            guard.begin(projector)
            with accelerate.autocast():
                losses = losses_of(model, said, batch, generator=generator, process_group=process_group)
            accelerate.backward(losses["loss"])
            norm = plain(accelerate.clip_grad_norm_(projector.parameters(), config.clip_norm))
            done = step + 1
            loss = losses["loss"] * len(pictures)
            found = loss, len(pictures), {"gradient_norm": norm}
            good, stop = guard.check(done, *found, asked(), partial(images.names, *at))
            if good:
                optimizer.step()
                window.add(losses)
            optimizer.zero_grad(set_to_none=True)
            if window.steps and (done % config.log_every == 0 or done == config.steps):
                numbers = {**guard.numbers(), **window.numbers(accelerate, config.batch_size)}
                metrics.write(done, learning_rate=rate, **numbers)
            if done % config.validate_every == 0 or done == config.steps:
                metrics.write(
                    done, **_validate(projector, losses_of, tokenizer, unseen, others, side, config)
                )
            drawn = config.sample_every and (done % config.sample_every == 0 or done == config.steps)
            if drawn and accelerate.is_main_process:
                sheet = _sheet(projector, base, tokenizer, decoder, unseen, others, side)
                write_atomic(run / "samples" / f"step-{done:08d}.png", sheet)
            # only where no window is under way, so that the lines of the log stay those of an undisturbed run
            stop = stop and done % config.log_every == 0
            if done % config.checkpoint_every == 0 or done == config.steps or stop:
                tensors = {**projector.state_dict(), **optimizer_tensors(optimizer, names)}
                state = {"watch": guard.state(), "inputs": inputs}
                save_checkpoint(run, done, tensors, state, config.keep_checkpoints, accelerate)
            if progress is not None:
                progress(done, config.steps)
            if stop and done < config.steps:
                raise Stopped(
                    f"interrupted; step {done} of {config.steps} is saved, the same command resumes there"
                )
    if accelerate.is_main_process:
        save_output_projector(
            run / "model", projector, base.fingerprint, tokenizer.fingerprint, overwrite=True
        )
    return run / "model"


def captions_of(shards: Sequence[str], cache: PictureCache, caption_key: str | None = None) -> Captions:
    """The captions of a cache's samples, in their order; an image without any has an empty prompt.

    How many these are is logged. ValueError where no image has a caption.
    """
    found: list[tuple[str, ...]] = []
    for path in find_shards(matching(shards)):
        with open_shard(path) as shard:
            for key in shard.samples:
                members = shard.read(key)
                if "" in image_members(members):  # as the cache is built
                    found.append(_captions(path.name, key, members, caption_key))
    captions = [listed or ("",) for listed in found[: len(cache.samples)]]
    assert len(captions) == len(cache.samples), (len(captions), len(cache.samples))
    without = [name for name, listed in zip(cache.samples, captions, strict=True) if listed == ("",)]
    if len(without) == len(captions):
        raise ValueError(f"no captions in {', '.join(shards)}: shards of images with captions were asked for")
    if without:
        logger.warning(
            "%d of %d images have no caption, and are drawn from an empty prompt: %s%s",
            len(without),
            len(captions),
            ", ".join(without[:10]),
            f" and {len(without) - 10} more" if len(without) > 10 else "",
        )
    return captions


def _captions(shard: str, key: str, members: Mapping[str, bytes], caption_key: str | None) -> tuple[str, ...]:
    """Those of a sample; none where it is no image with captions."""
    try:
        sample = parse_sample(shard, key, members, caption_key=caption_key)
    except DamagedSample:
        return ()
    return sample.captions if isinstance(sample, Pair) else ()


def prompt_ids(base: Base, captions: Sequence[str]) -> list[list[int]]:
    """Captions as the language model reads them."""
    return [text_ids(base.text_tokenizer, caption) for caption in captions]


def _losses(
    model: Callable[..., Tensor],
    captions: Sequence[str],
    batch: Batch,
    *,
    base: Base,
    tokenizer: Tokenizer,
    decoder: DiffusionDecoder | None,
    config: TrainConfig,
    generator: torch.Generator,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """Scalars by name, `loss` among them; `model` is the projector as accelerate wrapped it."""
    found = model(base.language, prompt_ids(base, captions)).float()
    losses = {"features_error": F.mse_loss(found, batch.features)}
    losses["loss"] = config.objective.features * losses["features_error"]
    if decoder is not None and config.objective.diffusion:
        read = conditioning_on(found, tokenizer)
        seen = Batch(found, read.codes, read.real, batch.target, read.pixels)
        objective = ObjectiveConfig(dropout=0.0, source=0.0)
        drawn = diffusion_losses(decoder, decoder, None, seen, objective, generator, process_group)
        losses["diffusion_error"] = drawn["loss"]
        losses["loss"] = losses["loss"] + config.objective.diffusion * drawn["loss"]
    return losses


@torch.no_grad()
def _validate(
    projector: OutputProjector,
    losses_of: Callable[..., dict[str, Tensor]],
    tokenizer: Tokenizer,
    cache: PictureCache,
    captions: Captions,
    side: int,
    config: TrainConfig,
) -> dict[str, float]:
    """Mean losses over the validation images by their first captions, with the same noise every time."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    found: dict[str, float] = {}
    for start, pictures in enumerate(cache.in_order(config.batch_size)):
        listed = captions[start * config.batch_size :][: len(pictures)]
        said = [each[0] for each in listed]
        batch = batch_of(tokenizer, pictures, side, choose)
        for name, value in losses_of(projector, said, batch, generator=generator).items():
            key = f"validation_{name}"
            found[key] = found.get(key, 0.0) + value.item() * len(pictures) / len(cache)
    return found


@torch.no_grad()
def _sheet(
    projector: OutputProjector,
    base: Base,
    tokenizer: Tokenizer,
    decoder: DiffusionDecoder | None,
    cache: PictureCache,
    captions: Captions,
    side: int,
) -> bytes:
    """PNG: a row each of validation images, what their own features show, and what is drawn by captions."""
    batch = batch_of(tokenizer, next(cache.in_order(SHOWN)), side, choose)
    said = [listed[0] for listed in captions[: len(batch.target)]]
    found = projector(base.language, prompt_ids(base, said)).float()
    rows = [batch.target, batch.plain, tokenizer.pixels_in(found)]
    if decoder is not None:
        guidance = decoder.config.sampling.guidance
        rows.append(samples_of(decoder, conditioning_on(found, tokenizer), guidance))
    return sheet_of([row for row in rows if row is not None])


def _decoder(config: TrainConfig, tokenizer: Tokenizer) -> DiffusionDecoder | None:
    """The frozen decoder of the objective; ValueError for one that reads codes."""
    if config.decoder is None:
        return None
    decoder = load_diffusion(_decoder_folder(config.decoder), tokenizer)
    check_reads_features(decoder.config.condition)
    return decoder.to(tokenizer.device).eval().requires_grad_(False)


def _decoder_folder(folder: str) -> Path:
    found = find_decoder(folder, "diffusion")
    if found is None:
        raise ValueError(f"decoder: {folder} holds no diffusion decoder")
    return found
