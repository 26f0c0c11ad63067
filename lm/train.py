"""Trains a language model on text and picture codes; one visible loop, exact resume.

It reads like tokenizer/train.py. The order of samples and every choice about them are functions of the seed
and a position in the stream; dropout inside the model draws from a generator seeded by the step.

Legend: B rows, L tokens a row, T tasks.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pictish.data.files import matching
from pictish.data.mixture import Mixture, Report, Source
from pictish.lm.config import SourceConfig, TrainConfig
from pictish.lm.documents import Look, Maker, some_documents
from pictish.lm.model import ImageTokens, UnifiedModel, check_packing
from pictish.lm.objective import OBJECTIVES, Losses
from pictish.lm.packing import Packed, Position, batches, pack
from pictish.lm.sequence import TASKS, Document
from pictish.lm.start import starting_model
from pictish.lm.trainable import trainable, vocabulary_rows
from pictish.lm.vocabulary import text_ids
from pictish.training.ahead import Ahead
from pictish.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from pictish.training.metrics import MetricsLog
from pictish.training.optimizer import adamw
from pictish.training.schedule import warmup_cosine
from pictish.training.world import accelerator, keep_freed_memory

logger = logging.getLogger(__name__)

AHEAD = 4  # steps read and packed before they are needed
VALIDATION_DOCUMENTS = 256  # of each source
Show = Callable[[UnifiedModel, int], None]  # draws sample pictures of the model as it is at a step


def train(
    config: TrainConfig,
    run: Path,
    image_tokens: ImageTokens,
    device: str = "auto",
    *,
    look: Look | None = None,
    show: Show | None = None,
    report: Report | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train by `config` in the folder `run`, from its last checkpoint on; returns the folder `run/model`.

    `image_tokens` says whose codes are learned, `look` tokenizes raw pictures. What could not be used of the
    data, by any process since this call, is logged at the end and added to `report`. Raises ValueError for
    settings that fit neither the data nor this machine.
    """
    keep_freed_memory()
    accelerate = accelerator(device, config.mixed_precision)
    with accelerate.main_process_first():  # it writes what the others then read
        model = starting_model(config, image_tokens, run).to(accelerate.device).train()
    check_packing(model, config.data.length)
    if config.checkpointing:
        model.language.activation_checkpointing_enable({"use_reentrant": False})
    maker = _maker(config, model, look)
    own = Report()  # of this process
    validation = _validation_documents(config, maker, image_tokens, run, own)
    begun = _Begun.read(run, model)
    total = sum(stage.steps for stage in config.stages)
    firsts = accumulate((stage.steps for stage in config.stages), initial=0)
    with MetricsLog(run, begun.step, config.tensorboard, main=accelerate.is_main_process) as metrics:
        for number, (first, stage) in enumerate(zip(firsts, config.stages, strict=False)):
            last = first + stage.steps
            if begun.step >= last:
                continue
            with ExitStack() as during:
                share = during.enter_context(trainable(model, stage.trainable))
                logger.info("stage %s: %.1f %% of the weights are trained", stage.name, 100 * share)
                names = [name for name, parameter in model.named_parameters()]
                optimizer = adamw(model, stage.learning_rate, config.weight_decay, no_decay=_rows(model))
                resumed = begun.step > first
                if resumed:
                    load_optimizer_tensors(optimizer, names, begun.tensors)
                place = begun.place(accelerate.process_index, accelerate.num_processes) if resumed else None
                with accelerate.main_process_first():
                    mixture = _mixture(config, number, accelerate, image_tokens, place, run)
                documents = replace(maker, seed=config.seed + number).documents(mixture)
                wrapped, optimizer = accelerate.prepare(model, optimizer)
                steps = batches(documents, config.data.rows, config.data.length)
                ahead = during.enter_context(Ahead(steps, AHEAD if config.data.read_ahead else 0))
                window = Window()
                for step in range(max(first, begun.step), last):
                    (rows, place), waited = ahead.next()
                    torch.manual_seed((config.seed * 1_000_003 + step) % 2**63)
                    rate = warmup_cosine(
                        step - first,
                        peak=stage.learning_rate,
                        warmup=stage.warmup,
                        total=stage.steps,
                        floor=stage.learning_rate * stage.final_rate,
                    )
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    packed = pack(rows, config.data.length)
                    losses = backward(accelerate, wrapped, packed, config)
                    norm = accelerate.clip_grad_norm_(model.parameters(), config.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    window.add(losses, packed, waited)
                    done = step + 1
                    saving = done % config.checkpoint_every == 0 or done == last
                    if done % config.log_every == 0 or saving:  # a window never reaches over a checkpoint
                        numbers = window.numbers(accelerate)
                        metrics.write(done, learning_rate=rate, gradient_norm=float(norm), **numbers)
                    if validation and (done % config.validate_every == 0 or done == total):
                        metrics.write(done, **validate(model, validation, config))
                    drawn = config.sample_every and done % config.sample_every == 0
                    if show is not None and drawn and accelerate.is_main_process:
                        show(model.eval(), done)
                        model.train()
                    if saving:
                        places = accelerate.gather_for_metrics([place], use_gather_object=True)
                        tensors = {**model.state_dict(), **optimizer_tensors(optimizer, names)}
                        if accelerate.is_main_process:
                            save_checkpoint(run, done, tensors, {"places": places}, config.keep_checkpoints)
                        accelerate.wait_for_everyone()
                    if progress is not None:
                        progress(done, total)
            own.add(mixture.report)
    report = Report() if report is None else report
    for one in accelerate.gather_for_metrics([own], use_gather_object=True):
        report.add(one)
    if accelerate.is_main_process:
        for line in report.lines():
            logger.warning("%s", line)
        model.save(run / "model", dtype=getattr(torch, config.stored_as), overwrite=True)
    return run / "model"


def backward(accelerate, model: Callable[[Packed], Tensor], packed: Packed, config: TrainConfig) -> Losses:
    """Add the gradient of the mean over the learned tokens of all processes; returns this process's sums."""
    compute = OBJECTIVES[config.objective.kind]
    learned = accelerate.reduce(torch.tensor(float(packed.learned), device=accelerate.device), "sum")
    sums: list[Losses] = []
    parts = packed.split(config.data.rows // config.data.accumulate)
    for number, part in enumerate(parts):
        with ExitStack() as during:
            if number < len(parts) - 1:
                during.enter_context(accelerate.no_sync(model))
            with accelerate.autocast():
                losses = compute(model, part.to(accelerate.device))
            # Gradients are averaged over processes, and the sum is wanted.
            accelerate.backward(losses.total * accelerate.num_processes / learned.clamp_min(1))
        sums.append(Losses(*(tensor.detach() for tensor in losses)))
    return Losses(*(torch.stack(tensors).sum(dim=0) for tensors in zip(*sums, strict=True)))


@torch.no_grad()
def validate(
    model: UnifiedModel, documents: dict[str, list[Document]], config: TrainConfig
) -> dict[str, float]:
    """Mean loss a learned token, over all tasks and for each, of each source's documents."""
    model.eval()
    compute = OBJECTIVES[config.objective.kind]
    device = next(model.parameters()).device
    sums = torch.zeros(2, len(TASKS))
    for members in documents.values():
        stream: Iterator[tuple[Document, Position]] = ((document, {}) for document in members)
        for rows, _ in batches(stream, config.data.rows, config.data.length):
            losses = compute(model, pack(rows, config.data.length).to(device))
            sums += torch.stack([losses.by_task, losses.counts]).cpu()
    model.train()
    return {f"validation_{name}": value for name, value in _means(*sums).items()}


class Window:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(2, len(TASKS))
        self.steps, self.padding, self.waited, self.tokens = 0, 0.0, 0.0, 0
        self.since = time.monotonic()

    def add(self, losses: Losses, packed: Packed, waited: float) -> None:
        """Take in one step's losses, and the seconds that its data was waited for."""
        self.sums += torch.stack([losses.by_task, losses.counts]).cpu()
        self.steps += 1
        self.padding += packed.padding
        self.waited += waited
        self.tokens += int((packed.documents > 0).sum())

    def numbers(self, accelerate) -> dict[str, float]:
        """What to log, then start afresh; losses are those of all processes."""
        seconds = time.monotonic() - self.since
        sums = accelerate.reduce(self.sums.to(accelerate.device), "sum").cpu()
        result = {
            **_means(*sums),
            "padding": self.padding / self.steps,
            "waiting": self.waited / seconds,
            "tokens_per_second": self.tokens / seconds,
        }
        self._clear()
        return result


def _means(losses: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean loss a learned token, of all and of each task that occurred."""
    each = {f"loss_{task}": float(losses[i] / counts[i]) for i, task in enumerate(TASKS) if counts[i] > 0}
    return {"loss": float(losses.sum() / counts.sum().clamp_min(1)), **each}


@dataclass(frozen=True)
class _Begun:
    """What an earlier process of this run left."""

    step: int
    tensors: dict[str, Tensor]
    places: list[Position]

    @classmethod
    def read(cls, run: Path, model: UnifiedModel) -> "_Begun":
        latest = latest_checkpoint(run)
        if latest is None:
            return cls(0, {}, [])
        tensors, state = load_checkpoint(latest)
        model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("optimizer.")})
        logger.info("going on from %s", latest.name)
        return cls(int(state["step"]), tensors, state["places"])

    def place(self, rank: int, world: int) -> Position:
        """Where in the stream this process goes on."""
        if len(self.places) != world:
            raise ValueError(
                f"the run was begun with {len(self.places)} processes; go on with as many, not {world}"
            )
        return self.places[rank]


def _maker(config: TrainConfig, model: UnifiedModel, look: Look | None) -> Maker:
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
        look=look,
        seed=config.seed,
    )


def _mixture(
    config: TrainConfig,
    number: int,
    accelerate: Any,
    image_tokens: ImageTokens,
    place: Position | None,
    run: Path,
) -> Mixture:
    """The stream of stage `number` for this process."""
    weights = config.stages[number].weights
    sources = sources_of(config.data.train, weights)
    if not sources:
        raise ValueError(f"stage {config.stages[number].name}: all its sources have weight 0")
    return Mixture(
        sources,
        config.seed + number,
        rank=accelerate.process_index,
        world=accelerate.num_processes,
        position=place,
        tokenizer=image_tokens.fingerprint,
        strict=config.data.strict,
        cache=run / "cache",
    )


def sources_of(sources: dict[str, SourceConfig], weights: dict[str, float]) -> list[Source]:
    """What a mixture reads: sources with the stage's weights, those of weight 0 left out."""
    found = []
    for name, source in sources.items():
        if (weight := weights.get(name, source.weight)) > 0:
            found.append(Source(name, tuple(matching(source.paths)), weight))
    return found


def _validation_documents(
    config: TrainConfig, maker: Maker, image_tokens: ImageTokens, run: Path, report: Report
) -> dict[str, list[Document]]:
    """The first documents of each validation source, nothing dropped; `report` takes in the damage."""
    sources = config.data.validation
    keep_all = replace(maker, sources=sources, dropout=config.dropout.none())
    found = {}
    for source in sources_of(sources, {}):
        mixture = Mixture(
            [source],
            config.seed,
            tokenizer=image_tokens.fingerprint,
            strict=config.data.strict,
            cache=run / "cache",
        )
        found[source.name] = some_documents(keep_all, mixture, VALIDATION_DOCUMENTS)
        report.add(mixture.report)
    return found


def _rows(model: UnifiedModel) -> Sequence[str]:
    """Names of trained embeddings and heads: decay would pull the rows of rare ids to zero."""
    rows = {id(parameter) for parameter in vocabulary_rows(model)}
    return [name for name, p in model.named_parameters() if id(p) in rows and p.requires_grad]
