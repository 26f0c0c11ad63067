"""`pictish train`: one function a part; each builds nothing itself but calls the part's own loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.configs import shipped_names

if TYPE_CHECKING:
    from pydantic import BaseModel

ConfigName = Annotated[
    str,
    typer.Argument(help=f"A YAML file, or a shipped name: {', '.join(shipped_names())} (see `config show`)."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes such as batch_size=32 data.views=1")]
Run = Annotated[Path, typer.Option(help="Folder for checkpoints, metrics.jsonl and the finished model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
AnomalySkip = Annotated[
    int,
    typer.Option(min=0, help="Pass over so many steps whose loss or gradient goes wrong; one more stops."),
]
Fsdp = Annotated[
    bool,
    typer.Option(
        "--fsdp",
        envvar="ACCELERATE_USE_FSDP",
        help="Several processes share the weights out among them (FSDP2); else each has all of them.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")]


def tokenizer(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/tokenizer"),
    device: Device = "auto",
    anomaly_skip: AnomalySkip = 0,
    fsdp: Fsdp = False,
    quiet: Quiet = False,
) -> None:
    """Train the dynamic tokenizer; run again to go on where it stopped."""
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
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first damaged sample.")] = False,
    anomaly_skip: AnomalySkip = 0,
    fsdp: Fsdp = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model on shards of text and pictures; run again to go on where it stopped.

    Damaged samples are named at the end and left out, the exit code is then 1.
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
    """Train a decoder of codes to pictures; run again to go on where it stopped."""
    from pictish.configs import load, parse
    from pictish.decoder.config import TrainConfig
    from pictish.decoder.train import train

    settings = parse(TrainConfig, load(config, overrides or []), config)
    with _begun(run, settings, quiet):
        parts: dict[str, Any] = {"anomaly_skip": anomaly_skip, "fsdp": fsdp}
        _with_progress(lambda progress: train(settings, run, device, progress, **parts), quiet)


@contextmanager
def _begun(run: Path, settings: "BaseModel", quiet: bool) -> Iterator[None]:
    """Hold the run for this process, its resolved config written.

    ValueError when another process holds it, or when the run there was made with a config that decides other
    weights.
    """
    import logging
    import os

    from pictish.configs import load
    from pictish.io.files import only_writer, write_atomic
    from pictish.io.plain_yaml import to_yaml

    logging.getLogger("pictish").setLevel(logging.WARNING if quiet else logging.INFO)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one writes
        yield
        return
    with only_writer(run):
        resolved = run / "config.yaml"
        if resolved.exists() and _deciding(load(resolved)) != _deciding(settings.model_dump(mode="json")):
            raise ValueError(
                f"{run}: holds a run with another config; "
                "give another --run, or the overrides it was made with"
            )
        write_atomic(resolved, to_yaml(settings).encode())
        yield


# What may be another when a run goes on: how it reports, keeps checkpoints and reads, not what it learns.
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


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """A config, as plain data, without what decides nothing about the weights."""
    kept = {name: value for name, value in config.items() if name not in UNDECIDING}
    if "data" in kept:
        data = kept["data"].items()
        kept["data"] = {name: value for name, value in data if f"data.{name}" not in UNDECIDING}
    return kept


def _with_progress(work, quiet: bool) -> None:
    from pictish.io.report import Bar

    with Bar("training", quiet=quiet) as bar:
        folder = work(bar.update)
    typer.echo(f"model folder: {folder}")
