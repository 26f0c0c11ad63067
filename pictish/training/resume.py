"""What may change when a run resumes: settings that do not decide what it learns, and where its inputs lie.

Settings are compared with those of the run's `config.yaml`; inputs, which may move, by fingerprints in the
checkpoint.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pictish.io.files import shown

# Patterns of keys that may change.
REPORTING = (
    "log_every",
    "validate_every",
    "sample_every",
    "samples",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "wandb",
    "usage_alarm",
)
READING = ("data.strict", "data.workers", "data.read_ahead", "data.cache")
MEMORY = ("data.gradient_accumulation_steps", "checkpointing", "model.attn_implementation")
# What lies there must be what it was: `check_inputs`.
PLACES = (
    "data.train",  # of a tokenizer or decoder: a list of shards
    "data.train.*.paths",
    "data.validation*",
    "tokenizer",
    "initial",
    "model.base.folder",
    "model.denoiser.folder",
    "model.autoencoder.folder",
    "*.weights.path",
)
FREE = REPORTING + READING + MEMORY + PLACES
_NAMED = 5  # differences in a message


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What decides the weights and is not the same in two configs of plain data: `steps was 100, now 200`."""
    was, is_now = dict(_leaves(before)), dict(_leaves(now))
    changed = [key for key in {**was, **is_now} if was.get(key) != is_now.get(key) and not _free(key)]
    return [f"{key} {_said(was, key, 'was ')}, {_said(is_now, key, '')} now" for key in changed]


def in_one_line(changed: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return "; ".join(changed[:_NAMED]) + more


def check_inputs(checkpoint: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """ValueError when a key of the config stands for other data or another model than `before`.

    Fingerprints that either lacks, as checkpoints of earlier versions do, are not compared.
    """
    for key in now:
        if key in before and before[key] != now[key]:
            raise ValueError(
                f"{checkpoint}: was trained with another {key}: its fingerprint was {before[key]}, it is "
                f"{now[key]} now; give what it was trained with, or another --run"
            )


def fingerprint_of(facts: Any) -> str:
    """12 hex digits for plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _free(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in FREE)


def _said(leaves: Mapping[str, Any], key: str, verb: str) -> str:
    return f"{verb}{shown(leaves[key])}" if key in leaves else f"{verb}not set"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys such as `stages[0].steps`, and their values; a list of plain values is one."""
    if isinstance(value, Mapping) and value:
        for name, own in value.items():
            yield from _leaves(own, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, own in enumerate(value):
            yield from _leaves(own, f"{key}[{number}]")
    else:
        yield key, value
