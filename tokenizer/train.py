"""Trains a tokenizer: images from the cache, one visible loop, exact resume.

Everything random is a function of the seed and the step, so a resumed run repeats the undisturbed one bit for
bit (on the CPU) with no generator state to save.

Legend: B images, S side in pixels, N cells.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pictish.io.interrupt import Stopped, asked, in_units
from pictish.io.model_folder import fingerprint, locate_model
from pictish.tokenizer.cache import PictureCache, resized, training_caches
from pictish.tokenizer.config import PhaseConfig, TrainConfig
from pictish.tokenizer.conv import GridReconstructor, as_maps
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.losses import Teacher
from pictish.tokenizer.network import DynamicTokenizer, RoundTrip
from pictish.tokenizer.selector import ErrorSelector, choose, psnr_terms
from pictish.training.checkpoint import optimizer_tensors, restore, save_checkpoint
from pictish.training.isolation import training
from pictish.training.loss_guard import LossGuard
from pictish.training.metrics import MetricsLog
from pictish.training.optimizer import adamw, muon
from pictish.training.process_group import ProcessGroup
from pictish.training.runtime import accelerator, keep_freed_memory, seeded
from pictish.training.schedule import warmup_cosine
from pictish.training.sharding import plain, prepare, shard, whole

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

KMEANS_VECTORS = 16  # vectors a code before k-means places the codebook
MOST_VECTORS = 1 << 16  # of them in all: k-means holds the distance of each from every code
STATISTICS = 1024  # images from which a frozen network's features are standardised


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
    them; else each has all. Raises ValueError for settings that fit neither the data nor this machine,
    and for the next step that goes wrong; Stopped, with the run saved, when asked to.
    """
    keep_freed_memory()
    accelerate = accelerator(device, config.mixed_precision)
    torch.manual_seed(config.seed)
    teacher = Teacher(config.teacher, accelerate.device) if config.teacher else None
    network = DynamicTokenizer(config.model, teacher.encoder.features if teacher else 0).to(accelerate.device)
    if config.initial is not None:
        start_from(network, config.initial)
    process_group = ProcessGroup.of(accelerate)
    process_group.rows(config.batch_size)  # refused now where it cannot be shared out
    sides = config.model.encoder.image_size, _reconstructor(network).side
    with accelerate.main_process_first():  # it fills the cache, which the others then find
        training, validation = training_caches(config.data, max(sides), run, config.seed)
    first_pictures = training.batch(0, min(STATISTICS, len(training)), config.seed).to(accelerate.device)
    if isinstance(network.encoder, Encoder):
        network.encoder.fit_to(resized(first_pictures, sides[0]))
    if teacher:
        teacher.fit(as_maps(resized(first_pictures, sides[1])))
    skeleton = shard(network, accelerate, methods=CALLED, frozen_whole=True) if fsdp else None
    optimizer_of = partial(muon, matrices=block_matrices(network)) if config.optimizer == "muon" else adamw
    optimizer = optimizer_of(network, config.phases[0].learning_rate, config.weight_decay, no_decay=NO_DECAY)
    names = [name for name, _ in network.named_parameters()]
    guard = LossGuard(run, accelerate, anomaly_skip)
    with accelerate.main_process_first():  # it clears up after a killed save
        inputs = _inputs(config, network, teacher, training, validation)
        first = restore(run, network, optimizer, names, guard=guard, inputs=inputs)
    network.quantizer.set_process_group(process_group)
    main = accelerate.is_main_process
    model, optimizer = prepare(accelerate, network, optimizer)
    total = sum(phase.steps for phase in config.phases)
    window = Window(config)
    stretch = in_units(f"stretch of {config.log_every} steps")
    with MetricsLog(run, first, config.tensorboard, config.wandb, main=main) as metrics, stretch:
        for step in range(first, total):
            phase, within = _phase(config, step)
            if within == 0:
                guard.forget()
            if phase.quantize and within == 0:
                _start_codebook(network, training, config, step, process_group)
            generator = seeded(config.seed, step)
            pictures = training.batch(step, config.batch_size, config.seed, process_group).to(
                accelerate.device
            )
            pictures = with_flat(pictures, config.data.flat, generator, process_group)
            pixels, originals = (resized(pictures, side) for side in sides)
            rate = warmup_cosine(
                within,
                peak=phase.learning_rate,
                warmup=phase.warmup,
                total=phase.steps,
                floor=phase.learning_rate * phase.final_rate,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            guard.begin(network)
            with accelerate.autocast():
                noise = _noise(config, step)
                losses = model(pixels, originals, teacher, generator, phase.quantize, noise, process_group)
            accelerate.backward(losses.total)
            # apart, so that neither scales the other down
            apart = [p for name, p in network.named_parameters() if not name.startswith("selector.")]
            norm = plain(accelerate.clip_grad_norm_(apart, config.clip_norm))
            scores = network.selector.parameters()
            selector_norm = plain(accelerate.clip_grad_norm_(scores, config.clip_norm))
            done = step + 1
            batch = partial(training.names, step, config.batch_size, config.seed, process_group)
            norms = {"gradient_norm": norm, "selector_gradient_norm": selector_norm}
            good, stop = guard.check(done, losses.total * len(pixels), len(pixels), norms, asked(), batch)
            if good:
                optimizer.step()
                window.add(losses, len(pixels))
            optimizer.zero_grad(set_to_none=True)
            if window.steps and (done % config.log_every == 0 or done == total):
                metrics.write(
                    done, learning_rate=rate, **guard.numbers(), **window.numbers(phase, accelerate)
                )
            if done % config.validate_every == 0 or done == total:
                metrics.write(done, **validate(network, validation, config, phase.quantize))
            # only where no window is under way, so that the lines of the log stay those of an undisturbed run
            stop = stop and done % config.log_every == 0
            if done % config.checkpoint_every == 0 or done == total or stop:
                tensors = {**network.state_dict(), **optimizer_tensors(optimizer, names)}
                state = {"watch": guard.state(), "inputs": inputs}
                save_checkpoint(run, done, tensors, state, config.keep_checkpoints, accelerate)
            if progress is not None:
                progress(done, total)
            if stop and done < total:
                raise Stopped(f"interrupted; step {done} of {total} is saved, the same command resumes there")
    finished = whole(network, skeleton, accelerate)
    if finished is not None:
        calibrate(finished.eval(), validation, config)
        save_tokenizer(run / "model", finished, overwrite=True)
    return run / "model"


def _inputs(
    config: TrainConfig,
    network: DynamicTokenizer,
    teacher: Teacher | None,
    training: PictureCache,
    validation: PictureCache,
) -> dict[str, str]:
    """Fingerprints, by keys of the config, of what a run reads beside its checkpoint."""
    found = {"data.train": training.digest, "data.validation": validation.digest, "initial": "none"}
    if config.initial is not None:
        found["initial"] = fingerprint(locate_model(config.initial, "tokenizer"))
    if isinstance(network.encoder, Encoder):
        found["model.encoder.weights"] = network.encoder.sha256[:12]
    if teacher is not None:
        found["teacher.encoder.weights"] = teacher.encoder.sha256[:12]
    return found


def start_from(network: DynamicTokenizer, folder: str) -> None:
    """Take over the weights of a model folder, or of `starter`; the codebook and a teacher's head start anew.

    ValueError where the folder's network is of another shape.
    """
    weights = Tokenizer.from_folder(folder).network.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("quantizer.")}
    own = network.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            there = f"none of {name}" if name not in own else f"{name} of {tuple(own[name].shape)}"
            raise ValueError(
                f"initial: {folder} has {name} of {tuple(tensor.shape)}, this model {there}; "
                "start from a folder of the same encoder, merger and reconstructor"
            )
    network.load_state_dict(weights, strict=False)


LOGGED = (
    "total",
    "pixel",
    "mse",
    "features",
    "perceptual",
    "selector",
    "quantizer",
    "keep_rate",
)  # of Losses

# Methods that read weights and are called by others than `forward`.
CALLED = ("code_vectors", "round_trip", "leaky")

# Tables of positions and queries are embeddings: decay would pull cells towards one another.
NO_DECAY = ("position", "reconstructor.position", "reconstructor.dropped")


def block_matrices(network: DynamicTokenizer) -> set[str]:
    """Names of matrices and convolutions inside blocks, for Muon; embeddings and heads are none."""
    return {name for name, p in network.named_parameters() if p.ndim > 1 and ".blocks." in name}


class Window:
    """Means over the steps since the last line of the log, and the use of the codebook in them."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(len(LOGGED), dtype=torch.float64)
        self.steps = self.pictures = 0
        self.counts = torch.zeros(self.config.model.quantizer.codes, dtype=torch.long)
        self.since = time.monotonic()

    def add(self, losses, pictures: int) -> None:
        """Take in one step's losses."""
        self.sums += torch.stack([getattr(losses, name).detach().double().cpu() for name in LOGGED])
        self.steps += 1
        self.pictures += pictures
        if len(losses.ids):
            self.counts = _add_counts(self.counts, losses.ids)

    def numbers(self, phase: PhaseConfig, accelerate: "Accelerator") -> dict[str, float]:
        """What to log of all processes, then start afresh; warns when too small a part of the codebook is in
        use."""
        own = torch.cat([self.sums, self.counts]).float().to(accelerate.device)
        sums, counts = accelerate.reduce(own, "sum").cpu().split([len(LOGGED), len(self.counts)])
        result = dict(zip(LOGGED, (sums / self.steps / accelerate.num_processes).tolist(), strict=True))
        pictures = self.pictures * accelerate.num_processes
        result["pictures_per_second"] = pictures / (time.monotonic() - self.since)
        if phase.quantize:
            result |= code_numbers(counts, self.config.model.quantizer.codes)
            if result["usage"] < self.config.usage_alarm:
                logger.warning(
                    "only %.0f %% of the codebook was used in the last %d steps",
                    100 * result["usage"],
                    self.steps,
                )
        self._clear()
        return result


def code_numbers(counts: Tensor, codes: int) -> dict[str, float]:
    """Usage (share of `codes` seen), perplexity and dead codes from `counts` (at most codes,) of each id."""
    frequencies = counts[counts > 0].double() / counts.sum().clamp_min(1)
    used = int((counts > 0).sum())
    return {
        "usage": used / codes,
        "perplexity": float(torch.exp(-(frequencies * frequencies.log()).sum())),
        "dead_codes": codes - used,
    }


def validate(
    network: DynamicTokenizer, cache: PictureCache, config: TrainConfig, quantize: bool
) -> dict[str, float]:
    """Losses on the validation images with the deterministic selection, and how many tokens it keeps."""
    network.eval()
    psnr, lengths, counts = [], [], torch.zeros(0, dtype=torch.long)
    for pictures in cache.in_order(config.batch_size):
        there, errors = _round_trip(network, pictures.to(network.device), quantize=quantize)
        counts = _add_counts(counts, there.ids)
        psnr.append(errors.log10() * -10)
        lengths.append(there.keep.sum(dim=1))
    network.train()
    tokens = torch.cat(lengths).float()
    quantiles = torch.quantile(tokens, torch.tensor([0.05, 0.5, 0.95], device=tokens.device)).tolist()
    result = {"validation_psnr": float(torch.cat(psnr).mean()), "validation_tokens": float(tokens.mean())}
    result |= {f"validation_tokens_p{p}": q for p, q in zip((5, 50, 95), quantiles, strict=True)}
    if quantize:
        result |= {f"validation_{k}": v for k, v in code_numbers(counts, network.quantizer.codes).items()}
    return result


def _reconstructor(network: DynamicTokenizer) -> GridReconstructor:
    assert isinstance(network.reconstructor, GridReconstructor)  # the config refuses others
    return network.reconstructor


def _round_trip(
    network: DynamicTokenizer,
    pictures: Tensor,
    *,
    quantize: bool = True,
    draw: Callable[[Tensor], Tensor] = choose,
) -> tuple[RoundTrip, Tensor]:
    """Images (B, S, S, 3) uint8 through the codes and back, and their squared errors (B,) in [0, 1]."""
    pixels = resized(pictures, network.config.encoder.image_size)
    there = network.round_trip(pixels, quantize=quantize, draw=draw)
    found = network.pixels_in(there.features)
    assert found is not None
    target = as_maps(resized(pictures, _reconstructor(network).side))
    return there, (found.clamp(0, 1) - target).square().mean((1, 2, 3)).clamp_min(1e-10)


@torch.no_grad()
def calibrate(network: DynamicTokenizer, cache: PictureCache, config: TrainConfig) -> None:
    """Set on validation images how many codes are kept, and what PSNR is expected from each number of codes.

    Altered views are easier or harder than images as they are, which is what the model will meet.
    """
    selector, device = network.selector, network.device
    assert isinstance(selector, ErrorSelector)
    side = config.model.encoder.image_size
    batches = [pictures.to(device) for pictures in cache.in_order(config.batch_size)]
    network.set_level((resized(pictures, side) for pictures in batches), config.model.selector.rate)
    selector.calibration.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    terms, reached = [], []
    for pictures in batches:
        summed = selector.predicted_psnr(network.embed(resized(pictures, side)))  # (B, N)
        for budget in sorted({max(1, summed.shape[1] // part) for part in (64, 32, 16, 8, 4, 3, 2, 1)}):
            _, errors = _round_trip(network, pictures, draw=partial(choose, budget=budget))
            terms.append(psnr_terms(summed)[:, budget - 1])
            reached.append(errors.log10() * -10)
    selector.calibration.copy_(least_squares(torch.cat(terms), torch.cat(reached)))


def least_squares(terms: Tensor, reached: Tensor) -> Tensor:
    """Weights (4,) of `psnr_terms` (M, 4) for the PSNR (M,) that was reached.

    That of the first is at least 0.1: a prediction that says nothing must not turn round.
    """
    x, y = terms.double().cpu(), reached.double().cpu()
    found = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    if found[0] < 0.1:
        rest = torch.linalg.lstsq(x[:, 1:], (y - 0.1 * x[:, 0])[:, None]).solution[:, 0]
        found = torch.cat([found.new_tensor([0.1]), rest])
    return found.to(terms)


def with_flat(
    pictures: Tensor, fraction: float, generator: torch.Generator, process_group: ProcessGroup
) -> Tensor:
    """Images (B, S, S, 3) of which a `fraction` is replaced by images of one colour."""
    if not fraction:
        return pictures
    chance = process_group.drawn(torch.rand, (len(pictures),), generator)
    colours = (process_group.drawn(torch.rand, (len(pictures), 1, 1, 3), generator) * 256).to(torch.uint8)
    flat = (chance < fraction)[:, None, None, None].to(pictures.device)
    return torch.where(flat, colours.to(pictures.device), pictures)


def _add_counts(counts: Tensor, ids: Tensor) -> Tensor:
    fresh = torch.bincount(ids.detach().cpu(), minlength=len(counts))
    fresh[: len(counts)] += counts
    return fresh


def _phase(config: TrainConfig, step: int) -> tuple[PhaseConfig, int]:
    """The phase of `step` and the step within it."""
    for phase in config.phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise AssertionError(f"step {step} lies behind the last phase")


def _noise(config: TrainConfig, step: int) -> float:
    """Scale of the Gumbel noise: from 1 down to the configured one over the first phase, then that.

    With the noise goes the difference between training's draw and the threshold of inference.
    """
    progress = min(1.0, step / config.phases[0].steps)
    return 1.0 + (config.model.selector.noise - 1.0) * progress


def _start_codebook(
    network: DynamicTokenizer,
    training: PictureCache,
    config: TrainConfig,
    step: int,
    process_group: ProcessGroup,
) -> None:
    """Place the codes by k-means among kept tokens of as many batches as that takes."""
    generator = seeded(config.seed + 1, step)
    vectors: list[Tensor] = []
    codes = network.quantizer.codes
    while sum(map(len, vectors)) < max(codes, min(KMEANS_VECTORS * codes, MOST_VECTORS)):
        pictures = training.batch(step + len(vectors), config.batch_size, config.seed + 1, process_group)
        pixels = resized(pictures.to(network.device), config.model.encoder.image_size)
        vectors.append(network.code_vectors(pixels, generator, _noise(config, step), process_group))
    found = torch.cat(vectors)
    network.quantizer.start(found[found.isfinite().all(dim=1)])  # one broken image would spoil all codes
