"""Trains a language model on text and image codes; one visible loop, exact resume.

It reads like tokenizer/train.py. The order of samples and every choice about them are functions of the seed
and a position in the stream; the objective, and dropout inside the model, draw from generators seeded by the
step. A step's rows come from `data.lanes` streams in equal parts, which the processes share out: their number
changes nothing about what is learned.

Legend: B rows, L tokens a row, T tasks.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pictish.data.mixture import Mixture, Report
from pictish.io.files import one_line
from pictish.io.interrupt import Stopped, asked, in_units
from pictish.lm.adapted import AdaptedModel, base_unchanged, locate_base, weights_fingerprint
from pictish.lm.captions import known_captions
from pictish.lm.config import Masked, Preference, PretrainedModel, TrainConfig
from pictish.lm.documents import EncodeImages, Maker, sources_of
from pictish.lm.model import ImageTokens, Output, UnifiedModel, codes_in_words
from pictish.lm.objective import OBJECTIVES, Losses, Objective
from pictish.lm.packing import Packed, Position, batches, pack
from pictish.lm.packing_check import check_packing
from pictish.lm.preference import Reference
from pictish.lm.sequence import Document
from pictish.lm.start import starting_model
from pictish.lm.trainable import (
    layer_matrices,
    scale_tower,
    shares,
    trainable,
    trained_by,
    vocabulary_rows,
)
from pictish.lm.validation import validate, validation_documents
from pictish.lm.vocabulary import text_ids
from pictish.lm.window import Window
from pictish.training.average import Average
from pictish.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    load_weights,
    optimizer_tensors,
    save_checkpoint,
)
from pictish.training.isolation import training
from pictish.training.loss_guard import LossGuard
from pictish.training.metrics import MetricsLog
from pictish.training.optimizer import adamw, muon
from pictish.training.prefetch import Prefetcher
from pictish.training.resume import check_inputs, fingerprint_of
from pictish.training.runtime import accelerator, keep_freed_memory, seeded
from pictish.training.schedule import warmup_cosine
from pictish.training.sharding import plain, prepare, shard, whole

logger = logging.getLogger(__name__)

PREFETCH_DEPTH = 4  # steps read and packed before they are needed
Show = Callable[[UnifiedModel, int], None]  # draws sample images of the model as it is at a step


@training
def train(
    config: TrainConfig,
    run: Path,
    image_tokens: ImageTokens | None,
    device: str = "auto",
    *,
    encode_images: EncodeImages | None = None,
    show: Show | None = None,
    code_vectors: Tensor | None = None,
    report: Report | None = None,
    progress: Callable[[int, int], None] | None = None,
    anomaly_skip: int = 0,
    fsdp: bool = False,
) -> Path:
    """Train by `config` in the folder `run`, from its last checkpoint on; returns the folder `run/model`.

    `image_tokens` says whose codes are learned, `encode_images` encodes raw images, `show` also draws
    before the first step; soft targets and alignment need the `code_vectors` (C, W) of the image tokenizer.
    What could not be used of the data in the whole run is logged at the end, whatever ends it, and added to
    `report`; of several processes each tells of the others up to the last checkpoint. `anomaly_skip` steps
    that go wrong are passed over. With `fsdp` the processes share the weights out among them; else each has
    all. Raises
    ValueError for settings that fit neither the data, nor the run's last checkpoint, nor this machine, and
    for the next step that goes wrong; Stopped, with the run saved, when asked to.
    """
    keep_freed_memory()
    accelerate = accelerator(device, config.mixed_precision)
    with accelerate.main_process_first():  # it writes what the others then read
        config = _with_own_positions(config, run)
        model = starting_model(config, image_tokens, run, code_vectors).to(accelerate.device).train()
    check_packing(model, config.data.length)
    if config.checkpointing:
        model.language.activation_checkpointing_enable({"use_reentrant": False})
    if fsdp and config.adaptor is not None:
        raise ValueError("an adaptor's base is not sharded; train without --fsdp, by DDP")
    skeleton = shard(model, accelerate) if fsdp else None
    maker = _maker(config, model, encode_images)
    build = OBJECTIVES[config.objective.kind]
    vectors = None if code_vectors is None else code_vectors.to(accelerate.device)
    objective = build(config.objective, model.vocabulary, vectors)
    measured = build(config.objective.none(), model.vocabulary, None)
    every_stage = [stage.trainable for stage in config.stages]
    if isinstance(config.objective, Preference):  # compares with the model before any checkpoint is loaded
        reference = Reference(model, trained_by(model, every_stage))
        objective, measured = (replace(one, reference=reference) for one in (objective, measured))
    optimizer_of = partial(muon, matrices=layer_matrices(model)) if config.optimizer == "muon" else adamw
    report = Report() if report is None else report
    total = sum(stage.steps for stage in config.stages)
    firsts = accumulate((stage.steps for stage in config.stages), initial=0)
    main = accelerate.is_main_process
    with accelerate.main_process_first():  # it clears up after a killed save, and fills the cache
        own_inputs = _inputs(model, config)
        begun = _Begun.read(run, model, image_tokens, own_inputs)
        validation = validation_documents(config, maker, image_tokens, run, report)
    report.note(begun.skipped)
    inputs = {**begun.inputs, **own_inputs}
    average = Average(model, config.ema, trained_by(model, every_stage) if config.ema else ())
    if begun.step:
        average.load(begun.moments)
    guard = LossGuard(run, accelerate, anomaly_skip, small=objective.small)
    guard.load(begun.guard)
    if show is not None and begun.step < total:
        with average.applied():
            shown = whole(model, skeleton, accelerate)
            if shown is not None:
                show(shown.eval(), begun.step)  # a sample that cannot be drawn is said now, not hours later
        model.train()
    with (
        _told(report, main),
        base_unchanged(model),
        MetricsLog(run, begun.step, config.tensorboard, config.wandb, main=main) as metrics,
    ):
        for number, (first, stage) in enumerate(zip(firsts, config.stages, strict=False)):
            last = first + stage.steps
            if begun.step >= last:
                continue
            with ExitStack() as during:
                share = during.enter_context(trainable(model, stage.trainable))
                logger.info("stage %s: %.1f %% of the weights are trained", stage.name, 100 * share)
                if model.vision is not None:
                    logger.info("stage %s: %s", stage.name, "; ".join(shares(model)))
                names = [name for name, parameter in model.named_parameters()]
                optimizer = optimizer_of(
                    model,
                    stage.learning_rate,
                    config.weight_decay,
                    (0.9, config.beta2),
                    no_decay=_rows(model),
                )
                scale_tower(optimizer, model, stage)
                resumed = begun.step > first
                if resumed:
                    load_optimizer_tensors(optimizer, names, begun.moments)
                begun.moments = {}  # nothing of the checkpoint is held open
                with accelerate.main_process_first():
                    places = begun.places_of(config.data.lanes) if resumed else None
                    streams = _streams(config, number, accelerate, image_tokens, places, run)
                stream = next(iter(streams.values()))
                skipped = stream.report.skipped  # they share it
                read = {f"data.train.{name}": digest for name, digest in stream.digests.items()}
                check_inputs(run, begun.inputs, read)
                inputs |= read
                during.callback(report.note, skipped)
                stage_maker = replace(maker, seed=config.seed + number, tiles=stage.tiles)
                # Else the next stage's clipping would divide its fp16 gradients once for each optimizer.
                during.callback(accelerate.free_memory)
                wrapped, optimizer = prepare(accelerate, model, optimizer)
                each = config.data.rows // config.data.lanes, config.data.length
                steps = zip(
                    *(batches(stage_maker.documents(s), *each) for s in streams.values()), strict=True
                )
                prefetcher = during.enter_context(
                    Prefetcher(steps, PREFETCH_DEPTH if config.data.read_ahead else 0)
                )
                during.enter_context(in_units(f"stretch of {config.log_every} steps"))
                window = Window()
                if not resumed:
                    guard.forget()
                for step in range(max(first, begun.step), last):
                    parts, waited = prefetcher.next()  # rows and place of each of this process's lanes
                    seed = seeded(config.seed, step).initial_seed() * config.data.lanes % 2**63
                    if rank := accelerate.process_index:  # else its dropout would be that of the first
                        torch.manual_seed((seed + rank) % 2**63)
                    rate = warmup_cosine(
                        step - first,
                        peak=stage.learning_rate,
                        warmup=stage.warmup,
                        total=stage.steps,
                        floor=stage.learning_rate * stage.final_rate,
                    )
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group.get("scale", 1.0)
                    packed = Packed.join(
                        [
                            objective.prepare(
                                pack(rows, config.data.length),
                                torch.Generator().manual_seed(seed + lane),
                                step / total,
                            )
                            for lane, (rows, _) in zip(streams, parts, strict=True)
                        ]
                    )
                    guard.begin(model)
                    losses = backward(accelerate, wrapped, objective, packed, config)
                    norm = plain(accelerate.clip_grad_norm_(model.parameters(), config.clip_norm))
                    done = step + 1
                    found = losses.total, losses.counts.sum(), {"gradient_norm": norm}
                    good, stop = guard.check(done, *found, asked(), partial(_samples, parts))
                    if good:
                        optimizer.step()
                        average.update()
                        window.add(losses, packed, waited)
                    optimizer.zero_grad(set_to_none=True)
                    stop = stop and done % config.log_every == 0  # else the log would get lines of its own
                    saving = done % config.checkpoint_every == 0 or done == last or stop
                    # a window never reaches over a checkpoint
                    if window.steps and (done % config.log_every == 0 or saving):
                        numbers = {**guard.numbers(), **window.numbers(accelerate)}
                        metrics.write(done, learning_rate=rate, **numbers)
                    if validation and (done % config.validate_every == 0 or done == total):
                        with average.applied():
                            metrics.write(done, **validate(model, measured, validation, config))
                    drawn = config.sample_every and done % config.sample_every == 0
                    if show is not None and drawn:
                        with average.applied():
                            shown = whole(model, skeleton, accelerate)
                            if shown is not None:
                                _show_or_warn(show, shown, done)
                    if saving:
                        own = Report()  # a copy, for the stream may read on meanwhile
                        own.note(skipped)
                        behind = {lane: place for lane, (_, place) in zip(streams, parts, strict=True)}
                        every = accelerate.gather_for_metrics([(behind, own)], use_gather_object=True)
                        for _, other in every:
                            report.note(other.skipped)
                        reached = {lane: place for places, _ in every for lane, place in places.items()}
                        state = {
                            "places": [reached[lane] for lane in range(config.data.lanes)],
                            "skipped": report.skipped,
                            "image_tokens": None if image_tokens is None else vars(image_tokens),
                            "cell_positions": model.vocabulary.cell_positions,
                            "watch": guard.state(),
                            "inputs": inputs,
                        }
                        tensors = {**model.state_dict(), **optimizer_tensors(optimizer, names)}
                        tensors |= average.tensors()
                        save_checkpoint(run, done, tensors, state, config.keep_checkpoints, accelerate)
                    if progress is not None:
                        progress(done, total)
                    if stop and done < total:
                        raise Stopped(
                            f"interrupted; step {done} of {total} is saved, the same command resumes there"
                        )
    with average.applied():
        finished = whole(model, skeleton, accelerate, "cpu")
        if finished is not None:
            dtype, captions = getattr(torch, config.stored_as), _captions_or_warn(config, run)
            finished.save(run / "model", dtype=dtype, overwrite=True, captions=captions)
    return run / "model"


def backward(
    accelerate: Any,
    model: Callable[[Packed, bool], Output],
    objective: Objective,
    packed: Packed,
    config: TrainConfig,
) -> Losses:
    """Add the gradient of the mean over the learned tokens of all processes; returns this process's sums."""
    learned = accelerate.reduce(torch.tensor(packed.learned, device=accelerate.device), "sum")
    sums: list[Losses] = []
    parts = packed.split(max(1, len(packed.ids) // config.data.gradient_accumulation_steps))
    for number, part in enumerate(parts):
        with ExitStack() as during:
            if number < len(parts) - 1:
                during.enter_context(accelerate.no_sync(model))
            part = part.to(accelerate.device)
            with accelerate.autocast():
                part = objective.referenced(part)
                losses = objective.losses(model(part, True), part)
            # Gradients are averaged over processes, and the sum is wanted.
            accelerate.backward(losses.total * accelerate.num_processes / learned.clamp_min(1))
        sums.append(Losses(*(tensor.detach() for tensor in losses)))
    return Losses(*(torch.stack(tensors).sum(dim=0) for tensors in zip(*sums, strict=True)))


def _samples(parts: Sequence[tuple[Sequence[Sequence[Document]], Position]]) -> list[str]:
    """Names of the samples in a step's rows."""
    return [document.sample for rows, _ in parts for row in rows for document in row]


@contextmanager
def _told(report: Report, main: bool) -> Iterator[None]:
    """Say in the end what the run could not use, also when an error or Ctrl-C is the end."""
    try:
        yield
    finally:
        if main:
            for line in report.lines():
                logger.warning("%s", line)


def _show_or_warn(show: Show, model: UnifiedModel, step: int) -> None:
    """Sample images are no reason to lose a run: out of memory, a full disk, a model gone wrong."""
    try:
        show(model.eval(), step)
    except (ValueError, RuntimeError, OSError) as error:
        logger.warning("no samples of step %d: %s", step, one_line(error))
    finally:
        model.train()


def _captions_or_warn(config: TrainConfig, run: Path) -> list[str]:
    """Captions that the model was trained to draw; none, with a warning, where they cannot be read again."""
    drawn = {name: source for name, source in config.data.train.items() if source.caption < 1}
    try:
        return known_captions(sources_of(drawn, {}), config.seed, run / "cache")
    except (ValueError, OSError) as error:
        logger.warning("the model is saved without its training captions: %s", one_line(error))
        return []


@dataclass
class _Begun:
    """What an earlier process of this run left."""

    step: int = 0
    moments: Mapping[str, Tensor] = field(default_factory=dict)  # the optimizer's, in the checkpoint
    places: tuple[Position, ...] = ()
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)  # as in Report
    guard: Mapping[str, Any] | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # fingerprints of what the config names

    @classmethod
    def read(
        cls, run: Path, model: UnifiedModel, image_tokens: ImageTokens | None, now: Mapping[str, str]
    ) -> "_Begun":
        latest = latest_checkpoint(run)
        if latest is None:
            return cls()
        tensors, state = load_checkpoint(latest)
        stored = state["image_tokens"]
        if (before := None if stored is None else ImageTokens(**stored)) != image_tokens:
            raise ValueError(
                f"{run}: tokenizer: was begun with {_in_words(before)}, came {_in_words(image_tokens)}; give "
                "that one, or another --run"
            )
        counted = bool(state.get("cell_positions", False))
        if counted != model.vocabulary.cell_positions:
            raise ValueError(
                f"{run}: was begun with model.cell_positions {str(counted).lower()}; give that one, "
                "or another --run"
            )
        inputs = dict(state.get("inputs", {}))
        check_inputs(latest, inputs, now)
        load_weights(model, tensors)
        logger.info("resuming from %s", latest.name)
        places = tuple(state["places"])
        return cls(int(state["step"]), tensors, places, state["skipped"], state.get("watch"), inputs)

    def places_of(self, lanes: int) -> Sequence[Position]:
        """Where each lane of the stream resumes."""
        if len(self.places) != lanes:
            raise ValueError(f"the run has data.lanes {len(self.places)}; resume with as many, not {lanes}")
        return self.places


def _with_own_positions(config: TrainConfig, run: Path) -> TrainConfig:
    """What the config leaves open is as the run was begun: earlier ones counted tokens alone."""
    latest = latest_checkpoint(run)
    if latest is None or config.model.cell_positions is not None:
        return config
    counted = bool(load_checkpoint(latest)[1].get("cell_positions", False))
    model = config.model.model_copy(update={"cell_positions": counted})
    return config.model_copy(update={"model": model})


def _in_words(tokens: ImageTokens | None) -> str:
    if tokens is None:
        return "no image tokenizer"
    return f"the image tokenizer {tokens.fingerprint} of {codes_in_words(tokens.codes, tokens.cells)}"


def _inputs(model: UnifiedModel, config: TrainConfig) -> dict[str, str]:
    """Fingerprints, by keys of the config, of what a run reads beside its data and its checkpoint."""
    found = {"model.base": fingerprint_of(model.text_tokenizer.get_vocab())}
    if isinstance(model, AdaptedModel):
        found["adaptor"] = model.base_fingerprint  # whose weights no checkpoint has
    if isinstance(config.objective, Preference):
        assert isinstance(config.model.base, PretrainedModel)
        found["model.base.folder"] = weights_fingerprint(locate_base(config.model.base.folder))
    return found


def _maker(config: TrainConfig, model: UnifiedModel, encode_images: EncodeImages | None) -> Maker:
    if model.context is not None and config.data.length > model.context:
        raise ValueError(
            f"data.length {config.data.length} is more than the model's context of {model.context}"
        )
    return Maker(
        vocabulary=model.vocabulary,
        encode=partial(text_ids, model.text_tokenizer),
        eos=model.eos,
        sources=config.data.train,
        dropout=config.dropout,
        longest=config.data.length,
        context=model.context,
        encode_images=encode_images,
        seed=config.seed,
        vision=model.vision,
        text_tokenizer=model.text_tokenizer,
        end_padding=config.objective.end_padding if isinstance(config.objective, Masked) else 1,
        preferences=isinstance(config.objective, Preference),
    )


def _streams(
    config: TrainConfig,
    number: int,
    accelerate: Any,
    image_tokens: ImageTokens | None,
    places: Sequence[Position] | None,
    run: Path,
) -> dict[int, Mixture]:
    """This process's lanes of stage `number`, each from where it was."""
    lanes, rank, world = config.data.lanes, accelerate.process_index, accelerate.num_processes
    if lanes % world:
        raise ValueError(f"{world} processes cannot divide data.lanes {lanes}; give a multiple of {world}")
    first = Mixture(
        sources_of(config.data.train, config.stages[number].weights),
        config.seed + number,
        lane=rank,
        lanes=lanes,
        tokenizer=None if image_tokens is None else image_tokens.fingerprint,
        strict=config.data.strict,
        cache=run / "cache",
        shared=not accelerate.is_main_process,
    )
    own = range(rank, lanes, world)
    return {lane: first.beside(lane, None if places is None else places[lane]) for lane in own}


def _rows(model: UnifiedModel) -> Sequence[str]:
    """Names of trained embeddings and heads: decay would pull the rows of rare ids to zero."""
    rows = {id(parameter) for parameter in vocabulary_rows(model)}
    return [name for name, p in model.named_parameters() if id(p) in rows and p.requires_grad]
