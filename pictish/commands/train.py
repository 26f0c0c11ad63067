"""`pictish train`: one function per model; each calls the training loop of its package."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pictish.commands.options import Device, files, runtime
from pictish.configs import shipped_names

ConfigName = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help=f"A YAML file, or a shipped config: {', '.join(shipped_names())}."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDES", help="Config overrides, such as batch_size=32 data.views=1."),
]
Run = Annotated[
    Path, files(metavar="DIR", help="Run folder: checkpoints, metrics.jsonl and the final model.")
]
Base = Annotated[
    Path | None,
    files(metavar="FOLDER", help="Pretrained language model to start from, a folder of transformers."),
]
Lora = Annotated[
    int | None,
    files(metavar="R", min=1, help="Train LoRA adapters of rank R instead of the pretrained weights."),
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
    from pictish.pipelines.run_folder import run_folder
    from pictish.tokenizer.config import TrainConfig
    from pictish.tokenizer.train import train

    settings = parse(TrainConfig, load(config, overrides or []), config)
    with run_folder(run, settings, quiet):
        parts: dict[str, Any] = {"anomaly_skip": anomaly_skip, "fsdp": fsdp}
        _with_progress(lambda progress: train(settings, run, device, progress, **parts), quiet)


def lm(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/lm"),
    device: Device = "auto",
    base: Base = None,
    lora: Lora = None,
    strict: Annotated[bool, runtime("--strict", help="Stop at the first damaged sample.")] = False,
    caption_key: Annotated[
        str | None, runtime(metavar="KEY", help="Field of the samples' JSON that holds the captions.")
    ] = None,
    anomaly_skip: AnomalySkip = 0,
    fsdp: Fsdp = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model on text and image shards. An interrupted run resumes from its last checkpoint.

    Damaged samples are skipped and listed at the end, and the exit code is then 1.
    """
    from pictish.configs import load, parse
    from pictish.data.mixture import Report
    from pictish.lm.config import TrainConfig
    from pictish.lm.train import train
    from pictish.pipelines.lm_training import code_vectors_of, image_encoder, image_tokens_of, showing
    from pictish.pipelines.run_folder import run_folder
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.runtime import resolve_device

    changes = [*(overrides or []), *(["data.strict=true"] if strict else [])]
    changes += base_overrides(base, None, "model.base")
    asked = load(config, changes)
    if lora is not None:
        _adapt(asked, lora)
    for source in ("train", "validation") if caption_key else ():
        for each in asked.get("data", {}).get(source, {}).values():
            each["caption_key"] = caption_key
    settings = parse(TrainConfig, asked, config)
    report = Report()
    parts: dict[str, Any] = {"anomaly_skip": anomaly_skip, "fsdp": fsdp, "report": report}
    tokenizer = None
    if settings.tokenizer is not None:
        tokenizer = Tokenizer.from_folder(settings.tokenizer, resolve_device(device))
    with run_folder(run, settings, quiet):
        known = None
        if tokenizer is not None:
            known = image_tokens_of(tokenizer)
            parts |= {"encode_images": image_encoder(tokenizer), "show": showing(settings, tokenizer, run)}
            parts["code_vectors"] = code_vectors_of(tokenizer)
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
    from pictish.pipelines.run_folder import run_folder

    settings = parse(TrainConfig, load(config, overrides or []), config)
    with run_folder(run, settings, quiet):
        parts: dict[str, Any] = {"anomaly_skip": anomaly_skip, "fsdp": fsdp}
        _with_progress(lambda progress: train(settings, run, device, progress, **parts), quiet)


def output_projector(
    config: ConfigName,
    overrides: Overrides = None,
    run: Run = Path("runs/output-projector"),
    device: Device = "auto",
    anomaly_skip: AnomalySkip = 0,
    quiet: Quiet = False,
) -> None:
    """Train an output projector, through which a frozen language model draws without writing codes.

    An interrupted run resumes from its last checkpoint.
    """
    from pictish.configs import load, parse
    from pictish.pipelines.continuous.config import TrainConfig
    from pictish.pipelines.continuous.train import train
    from pictish.pipelines.run_folder import run_folder

    settings = parse(TrainConfig, load(config, overrides or []), config)
    with run_folder(run, settings, quiet):
        _with_progress(
            lambda progress: train(settings, run, device, progress, anomaly_skip=anomaly_skip), quiet
        )


def base_overrides(base: Path | None, lora: int | None, key: str) -> list[str]:
    """Overrides of the base of a language model, which `key` is, for --base; ValueError for no model."""
    import json

    from pictish.io.files import printable

    if base is None:
        return []
    if not any((folder / "config.json").is_file() for folder in (base, base / "lm")):
        raise ValueError(f"--base {printable(base)}: has no config.json; a model folder of transformers fits")
    settings = {"kind": "pretrained", "folder": str(base.resolve()), "lora": lora}
    return [f"{key}={json.dumps(settings)}"]  # which is YAML


def _adapt(asked: dict[str, Any], rank: int) -> None:
    """Set the rank of the adapters of a configuration; ValueError where there is no pretrained model."""
    model = asked.get("model")
    base = model.get("base") if isinstance(model, dict) else None
    if not isinstance(base, dict) or base.get("kind") != "pretrained":
        raise ValueError(f"--lora {rank}: adapts a pretrained language model; give --base FOLDER")
    base["lora"] = rank


def _with_progress(work: Callable[[Any], Path], quiet: bool) -> None:
    from pictish.io.report import Bar

    with Bar("training", quiet=quiet) as bar:
        folder = work(bar.update)
    typer.echo(f"model folder: {folder}")
