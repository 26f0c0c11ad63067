"""`pictish train`: one function a part; each builds nothing itself but calls the part's own loop."""

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigName = Annotated[str, typer.Argument(help="A shipped name such as starter/tokenizer, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes such as batch_size=32 data.views=1")]
Run = Annotated[Path, typer.Option(help="Folder for checkpoints, metrics.jsonl and the finished model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")]


def tokenizer(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/tokenizer"),
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train the dynamic tokenizer; run again to go on where it stopped."""
    from pictish.configs import load, parse
    from pictish.tokenizer.config import TrainConfig
    from pictish.tokenizer.train import train

    settings = parse(TrainConfig, load(config, overrides or []), config)
    _begin(run, settings, quiet)
    _with_progress(lambda progress: train(settings, run, device, progress), quiet)


def lm(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/lm"),
    device: Device = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first damaged sample.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model on shards of text and pictures; run again to go on where it stopped.

    Damaged samples are named at the end and left out, the exit code is then 1.
    """
    from pictish.commands.train_lm import image_tokens_of, looking, showing
    from pictish.configs import load, parse
    from pictish.data.mixture import Report
    from pictish.lm.config import TrainConfig
    from pictish.lm.train import train
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.world import resolve_device

    changes = [*(overrides or []), *(["data.strict=true"] if strict else [])]
    settings = parse(TrainConfig, load(config, changes), config)
    tokenizer = Tokenizer.from_folder(settings.tokenizer, resolve_device(device))
    _begin(run, settings, quiet)
    known, look = image_tokens_of(tokenizer), looking(tokenizer)
    show = showing(settings, tokenizer, run)
    report = Report()
    parts: dict[str, Any] = {"look": look, "show": show, "report": report}
    _with_progress(lambda progress: train(settings, run, known, device, **parts, progress=progress), quiet)
    if report.skipped:
        raise typer.Exit(1)


def decoder(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/decoder"),
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a decoder of codes to pictures; run again to go on where it stopped."""
    from pictish.configs import load, parse
    from pictish.decoder.config import TrainConfig
    from pictish.decoder.train import train

    settings = parse(TrainConfig, load(config, overrides or []), config)
    _begin(run, settings, quiet)
    _with_progress(lambda progress: train(settings, run, device, progress), quiet)


def _begin(run: Path, settings, quiet: bool) -> None:
    """Write the resolved config into the run, or check that the run there was made with the same one."""
    import logging
    import os

    from pictish.configs import to_yaml
    from pictish.data.files import write_atomic

    logging.getLogger("pictish").setLevel(logging.WARNING if quiet else logging.INFO)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one writes
        return
    resolved = run / "config.yaml"
    text = to_yaml(settings)
    if resolved.exists() and resolved.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{run}: holds a run with another config; give another --run, or the overrides it was made with"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_atomic(resolved, text.encode())


def _with_progress(work, quiet: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task("training", total=None)
        folder = work(lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(f"model folder: {folder}")
