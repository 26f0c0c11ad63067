"""`pictish tokenize`: pictures to token files or to shards, raw shards to shards of tokens."""

import enum
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pictish.bulk.batch_tokenizer import MachineSettings

logger = logging.getLogger(__name__)


class Format(enum.StrEnum):
    """What is written."""

    folder = "folder"
    shards = "shards"


class Engine(enum.StrEnum):
    """Who works on raw shards."""

    local = "local"
    ray = "ray"


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES...", help="Pictures, folders of them, or raw shards (s3:// and gs:// too)."
    ),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Folder for the tokens.")]
Model = Annotated[str, typer.Option(help="Model folder, or `starter`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Kind = Annotated[
    Format | None, typer.Option(help="A file a picture, or WebDataset shards; raw shards give shards.")
]
Budget = Annotated[int | None, typer.Option(min=1, help="Exactly so many tokens a picture.")]
Threshold = Annotated[float | None, typer.Option(help="Keep patches with a score above this (default 0.5).")]
Quality = Annotated[
    float | None,
    typer.Option(metavar="DB", help="As few tokens as are expected to reach this PSNR, in dB."),
]
Sample = Annotated[bool, typer.Option("--sample", help="Draw the kept patches by their scores.")]
Gumbel = Annotated[
    bool,
    typer.Option("--gumbel", help="Draw as LaVIT's code does for a picture alone, seeded before each."),
]
Seed = Annotated[int | None, typer.Option(help="Of --sample and --gumbel (default 0).")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode; 0: this one does.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")]
PerShard = Annotated[int | None, typer.Option(min=1, help="Of --format shards, for pictures (default 1000).")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Larger pictures are refused before decoding.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace tokens that are there.")]
OfShards = Annotated[Engine, typer.Option("--engine", help="Of raw shards: this machine, or a Ray cluster.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Of raw shards: how many at once (default 1).")]
Retries = Annotated[
    int | None, typer.Option(min=0, help="Of raw shards: how often one is tried again (default 2).")
]
Verify = Annotated[bool, typer.Option("--verify", help="Of raw shards: check finished ones by every byte.")]
Told = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Of raw shards: JSON of rates and losses.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first broken picture.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no summary.")]


def run(
    inputs: Inputs,
    out: Out,
    *,
    model: Model = "starter",
    device: Device = "auto",
    format: Kind = None,
    budget: Budget = None,
    threshold: Threshold = None,
    quality: Quality = None,
    sample: Sample = False,
    gumbel: Gumbel = False,
    seed: Seed = None,
    workers: Workers = None,
    batch_size: BatchSize = 32,
    samples_per_shard: PerShard = None,
    max_pixels: MaxPixels = 128_000_000,
    overwrite: Overwrite = False,
    engine: OfShards = Engine.local,
    processes: Processes = None,
    retries: Retries = None,
    verify: Verify = False,
    report: Told = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Turn pictures into tokens: OUT/sub/name.tokens for IMAGES/sub/name.jpg, and OUT/manifest.json.

    Raw shards become shards of their names, each with its OUT/NAME_stats.json; many processes and machines
    may share the work. Run again, it goes on where it stopped. Broken pictures are named and left out, the
    exit code is then 1.
    """
    from pictish.bulk.batch_tokenizer import MachineSettings, Selection
    from pictish.bulk.pictures import hold_shards

    selection = Selection.of(budget, threshold, sample, seed, gumbel, quality)
    decoders = min(4, os.cpu_count() or 1) if workers is None else workers
    machine = MachineSettings(model, device, selection, decoders, batch_size, max_pixels)
    if hold_shards(inputs):
        from pictish.bulk import run as bulk

        if format is Format.folder:
            raise ValueError(f"{inputs[0]}: raw shards become shards; --format folder is for pictures")
        if samples_per_shard is not None:
            logger.warning("--samples-per-shard does nothing for raw shards")
        many, again = processes or 1, 2 if retries is None else retries
        failures = bulk.run(
            bulk.Plan(inputs, out, machine, engine.value, many, again, overwrite, verify, strict, report),
            quiet,
        )
    else:
        flags: dict[str, object] = {"--engine": engine is not Engine.local, "--processes": processes}
        flags |= {"--retries": retries, "--verify": verify, "--report": report}
        for flag in (flag for flag, given in flags.items() if given not in (None, False)):
            logger.warning("%s does nothing for pictures", flag)
        if samples_per_shard is not None and format is not Format.shards:
            logger.warning("--samples-per-shard does nothing without --format shards")
        shards = (samples_per_shard or 1000) if format is Format.shards else None
        failures = _tokenize_pictures(inputs, out, machine, shards, overwrite, strict, quiet)
    if failures:
        raise typer.Exit(1)


def _tokenize_pictures(
    inputs: Sequence[str],
    out: str,
    settings: "MachineSettings",
    samples_per_shard: int | None,
    overwrite: bool,
    strict: bool,
    quiet: bool,
) -> int:
    """To a folder of tokens, or to shards of so many samples; the number of failures."""
    from pictish.bulk.batch_tokenizer import open_machine
    from pictish.bulk.pictures import Totals, Work, plan
    from pictish.data.token_folder import Header, OutputFolder
    from pictish.io.files import check_apart
    from pictish.io.report import Report
    from pictish.io.storage import is_remote

    if is_remote(out):
        raise ValueError(f"{out}: pictures become tokens on this machine; raw shards may go to a URL")
    check_apart(Path(out), [Path(entry) for entry in inputs], inside=False)
    job = plan([Path(entry) for entry in inputs], samples_per_shard is not None, samples_per_shard or 1)
    totals = Totals()
    with open_machine(settings) as machine:
        tokenizer = machine.tokenizer
        decided = {**settings.selection.settings(), **job.settings}
        header = Header(job.kind, tokenizer.fingerprint, tokenizer.codebook_size, decided)
        with (
            Report("tokenizing", job.total, quiet=quiet, strict=strict) as report,
            OutputFolder(Path(out), header, job.outputs, overwrite) as output,
        ):
            job.run(Work(machine, output, report, totals))
            output.finish()
    if not quiet:
        print(totals.summary(report.failures, report.seconds))
    return report.failures
