"""`pictish train`: one function per model; each calls the training loop of its package."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands.options import Device, files, runtime

if TYPE_CHECKING:
    from pydantic import BaseModel

ConfigName = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", help="Name of a shipped config, such as starter/tokenizer, or a YAML file."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDES", help="Config overrides, such as batch_size=32 data.views=1."),
]
Run = Annotated[
    Path, files(metavar="DIR", help="Run folder: checkpoints, metrics.jsonl and the final model.")
]
AnomalySkip = Annotated[
    int,
    runtime(metavar="N", min=0, help="Skip up to N steps with a non-finite or exploding loss, then abort."),
]
Fsdp = Annotated[
    bool,
    runtime(
        "--fsdp",
        envvar="ACCELERATE_USE_FSDP",
        help="Shard parameters and optimizer state with FSDP2 (default: DDP).",
    ),
]
Quiet = Annotated[bool, runtime("--quiet", help="Print warnings and errors only.")]


def tokenizer(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/tokenizer"),
    device: Device = "auto",
    anomaly_skip: AnomalySkip = 0,
    fsdp: Fsdp = False,
    quiet: Quiet = False,
) -> None:
    """Train a dynamic tokenizer. An interrupted run resumes from its last checkpoint."""
    from pictish.configs import load, parse
    from pictish.tokenizer.config import TrainConfig
    from pictish.tokenizer.train import train

    settings = parse(TrainConfig, load(config, overrides or []), config)
    with _begun(run, settings, quiet):
        parts: dict[str, Any] = {"anomaly_skip": anomaly_skip, "fsdp": fsdp}
        _with_progress(lambda progress: train(settings, run, device, progress, **parts), quiet)


def lm(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/lm"),
    device: Device = "auto",
    strict: Annotated[bool, runtime("--strict", help="Stop at the first damaged sample.")] = False,
    anomaly_skip: AnomalySkip = 0,
    fsdp: Fsdp = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model on text and image shards. An interrupted run resumes from its last checkpoint.

    Damaged samples are skipped and listed at the end, and the exit code is then 1.
    """
    from pictish.commands.train_lm import code_vectors_of, image_encoder, image_tokens_of, showing
    from pictish.configs import load, parse
    from pictish.data.mixture import Report
    from pictish.lm.config import TrainConfig
    from pictish.lm.train import train
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.world import resolve_device

    changes = [*(overrides or []), *(["data.strict=true"] if strict else [])]
    settings = parse(TrainConfig, load(config, changes), config)
    tokenizer = Tokenizer.from_folder(settings.tokenizer, resolve_device(device))
    report = Report()
    with _begun(run, settings, quiet):
        known = image_tokens_of(tokenizer)
        show = showing(settings, tokenizer, run)
        parts: dict[str, Any] = {"encode_images": image_encoder(tokenizer), "show": show, "report": report}
        parts |= {"anomaly_skip": anomaly_skip, "fsdp": fsdp, "code_vectors": code_vectors_of(tokenizer)}
        _with_progress(
            lambda progress: train(settings, run, known, device, **parts, progress=progress), quiet
        )
    if report.skipped:
        raise typer.Exit(1)


def decoder(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/decoder"),
    device: Device = "auto",
    anomaly_skip: AnomalySkip = 0,
    fsdp: Fsdp = False,
    quiet: Quiet = False,
) -> None:
    """Train a decoder that turns tokens into pixels. An interrupted run resumes from its last checkpoint."""
    from pictish.configs import load, parse
    from pictish.decoder.config import TrainConfig
    from pictish.decoder.train import train

    settings = parse(TrainConfig, load(config, overrides or []), config)
    with _begun(run, settings, quiet):
        parts: dict[str, Any] = {"anomaly_skip": anomaly_skip, "fsdp": fsdp}
        _with_progress(lambda progress: train(settings, run, device, progress, **parts), quiet)


@contextmanager
def _begun(run: Path, settings: "BaseModel", quiet: bool) -> Iterator[None]:
    """Lock the run folder for this process and write the resolved config.

    ValueError when another process holds the lock, or when the folder contains a run whose config differs in
    a setting that affects the weights.
    """
    import logging
    import os

    from pictish.io.files import only_writer, write_atomic
    from pictish.io.plain_yaml import to_yaml

    logging.getLogger("pictish").setLevel(logging.WARNING if quiet else logging.INFO)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one writes
        yield
        return
    with only_writer(run):
        resolved = run / "config.yaml"
        if resolved.exists() and _deciding(_stored(resolved, type(settings))) != _deciding(settings):
            raise ValueError(
                f"{run}: contains a run with a different config; "
                "give another --run, or the overrides that run was started with"
            )
        write_atomic(resolved, to_yaml(settings).encode())
        yield


# What may change when a run resumes: how it logs, checkpoints and reads data, not what it learns.
UNDECIDING = (
    "log_every",
    "validate_every",
    "sample_every",
    "samples",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "usage_alarm",
    "data.strict",
    "data.workers",
    "data.read_ahead",
)


def _stored(path: Path, cls: "type[BaseModel]") -> "BaseModel | None":
    """The config of a run as this version reads it; None when it cannot."""
    from pictish.configs import load, parse

    try:
        return parse(cls, load(path), str(path))
    except ValueError:
        return None


def _deciding(config: "BaseModel | None") -> dict[str, Any] | None:
    """A config, as plain data, without the settings that do not affect the weights."""
    if config is None:
        return None
    kept = {name: value for name, value in config.model_dump(mode="json").items() if name not in UNDECIDING}
    if "data" in kept:
        data = kept["data"].items()
        kept["data"] = {name: value for name, value in data if f"data.{name}" not in UNDECIDING}
    return kept


def _with_progress(work, quiet: bool) -> None:
    from pictish.io.report import Bar

    with Bar("training", quiet=quiet) as bar:
        folder = work(bar.update)
    typer.echo(f"model folder: {folder}")
