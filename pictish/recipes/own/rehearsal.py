"""A rehearsal: every part takes a few steps on a few images, which measures this machine.

What cannot work, too little memory or settings that do not fit, fails here and not hours later.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pictish.configs import Config
from pictish.data.collect import KINDS, SPLITS
from pictish.data.members import image_members
from pictish.data.shards import ShardFile, read_shard
from pictish.pipelines.assemble import copy_part
from pictish.recipes.own.config import STAGES, OwnConfig, Stage, located

PICTURES = 32  # of each kind
NEVER = 1_000_000_000  # steps
Progress = Callable[[int, int], None]
Train = Callable[[Stage, Config, Path, Progress], Path]
"""Trains a stage by its settings in a run folder; the folder of the model."""
Tokenize = Callable[[Path], None]
"""Turns the raw shards of a model folder's `data` into its `tokens`."""


@dataclass(frozen=True)
class Measured:
    """What a rehearsal took."""

    seconds_a_step: dict[Stage, float]
    seconds_a_picture: float  # of tokenizing

    def minutes(self, config: OwnConfig, pictures: int) -> dict[str, float]:
        """What each part of training is expected to take; `pictures` are tokenized."""
        found: dict[str, float] = {
            stage: steps_of(config, stage) * self.seconds_a_step[stage] / 60 for stage in STAGES
        }
        return {**found, "tokens": pictures * self.seconds_a_picture / 60}


def steps_of(config: OwnConfig, stage: Stage) -> int:
    """Steps of training."""
    match stage:
        case "tokenizer":
            return sum(phase.steps for phase in config.tokenizer.phases)
        case "decoder":
            return config.decoder.steps
        case "lm":
            return sum(each.steps for each in config.lm.stages)


def rehearse(config: OwnConfig, out: Path, train: Train, tokenize: Tokenize) -> Measured:
    """Measure the steps of each part on a few images of `out/data`; nothing of it is left."""
    folder = out / "runs" / "rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        pictures = _few_pictures(out / "data", folder / "data")
        short = located(_shortened(config), folder)
        seconds: dict[Stage, float] = {}
        tokenizing = 0.0
        for stage in STAGES:
            clock = _Clock()
            copy_part(train(stage, getattr(short, stage), folder / "runs" / stage, clock), folder / stage)
            seconds[stage] = clock.seconds
            if stage == "tokenizer":
                began = time.perf_counter()
                tokenize(folder)
                tokenizing = (time.perf_counter() - began) / pictures
        return Measured(seconds, tokenizing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _few_pictures(data: Path, target: Path) -> int:
    """The first samples that the language model learns from, of each kind and split; how many images."""
    pictures = 0
    for split in SPLITS:
        for kind in KINDS:
            shards = sorted((data / split).glob(f"{kind}-*.tar"))
            if not shards or kind == "uncaptioned":
                continue
            with ShardFile(target / split / shards[0].name) as few:
                for sample in islice(read_shard(shards[0]), PICTURES):
                    members = {name: blob for name, blob in sample.items() if name != "__key__"}
                    few.write(sample["__key__"], members)
                    pictures += len(image_members(members))
    return pictures


def _shortened(config: OwnConfig) -> OwnConfig:
    """A few steps of each part, without lines, samples and checkpoints on the way."""
    rarely: dict[str, Any] = {"log_every": 1, "validate_every": NEVER, "checkpoint_every": NEVER}
    never = {**rarely, "sample_every": 0}
    here = {"workers": 0, "views": 1}
    few = {"steps": 4, "warmup": 0}
    tokenizer, decoder, lm = config.tokenizer, config.decoder, config.lm
    phases = tuple(phase.model_copy(update=few) for phase in tokenizer.phases)
    stages = tuple(each.model_copy(update=few) for each in lm.stages)
    data = tokenizer.data.model_copy(update=here)
    parts = {
        "tokenizer": tokenizer.model_copy(
            update={**rarely, "usage_alarm": 0.0, "phases": phases, "data": data}
        ),
        "decoder": decoder.model_copy(update={**never, **few, "data": decoder.data.model_copy(update=here)}),
        "lm": lm.model_copy(update={**never, "stages": stages}),
    }
    return config.model_copy(update=parts)


class _Clock:
    """Called after each step; `seconds` is the median step, without the first and the last one."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def __call__(self, done: int, total: int) -> None:
        self._times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        gaps = [after - before for before, after in zip(self._times, self._times[1:], strict=False)]
        return statistics.median(gaps[:-1] or gaps or [0.0])
