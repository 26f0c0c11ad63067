"""`pictish tokenize`: images to token files or token shards."""

import enum
import logging
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pictish.commands.options import BatchSize, Device, Model, Overwrite, advanced, files, runtime, selection

logger = logging.getLogger(__name__)


class Format(enum.StrEnum):
    """Output format."""

    folder = "folder"
    shards = "shards"


class Engine(enum.StrEnum):
    """What runs the tokenization of input shards."""

    local = "local"
    ray = "ray"


shards = partial(typer.Option, rich_help_panel="Input shards")

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        help="Images, folders of images, or WebDataset shards (local, s3:// or gs://).",
    ),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Output folder.")]
Kind = Annotated[
    Format | None,
    files(help="Output format: one token file per image, or WebDataset shards (always for input shards)."),
]
PerShard = Annotated[
    int | None,
    files(metavar="N", min=1, help="Images per output shard with --format shards (default: 1000)."),
]
Budget = Annotated[int | None, selection(metavar="N", min=1, help="Exact number of tokens per image.")]
Threshold = Annotated[
    float | None,
    selection(metavar="T", help="Keep patches whose selector score is above T (default: 0.5)."),
]
Quality = Annotated[
    float | None,
    selection(metavar="DB", help="Fewest tokens expected to reach this reconstruction PSNR, in dB."),
]
Sample = Annotated[bool, selection("--sample", help="Sample the kept patches from their selector scores.")]
Seed = Annotated[
    int | None,
    selection(metavar="N", min=0, max=2**63 - 1, help="Random seed of --sample and --gumbel (default: 0)."),
]
Gumbel = Annotated[
    bool,
    advanced(
        "--gumbel", help="Sample with Gumbel noise, as the official LaVIT code does (reseeded per image)."
    ),
]
Workers = Annotated[
    int | None,
    runtime(metavar="N", min=0, help="Processes that decode images; 0 decodes in the main process."),
]
MaxPixels = Annotated[
    int, runtime(metavar="N", min=1, help="Reject images with more pixels, before decoding them.")
]
OfShards = Annotated[Engine, shards("--engine", help="Run on this machine, or on a Ray cluster.")]
Processes = Annotated[
    int | None, shards(metavar="N", min=1, help="Number of shards tokenized in parallel (default: 1).")
]
Retries = Annotated[
    int | None, shards(metavar="N", min=0, help="Number of retries of a failed shard (default: 2).")
]
Verify = Annotated[bool, shards("--verify", help="Check finished shards byte by byte before skipping them.")]
Rates = Annotated[
    Path | None,
    shards("--report", metavar="FILE", help="Write throughput and failures to FILE, as JSON."),
]
Strict = Annotated[bool, runtime("--strict", help="Stop at the first unreadable image.")]
Quiet = Annotated[bool, runtime("--quiet", help="No progress bar and no summary.")]


def run(
    inputs: Inputs,
    out: Out,
    *,
    model: Model = "starter",
    format: Kind = None,
    samples_per_shard: PerShard = None,
    overwrite: Overwrite = False,
    budget: Budget = None,
    threshold: Threshold = None,
    quality: Quality = None,
    sample: Sample = False,
    seed: Seed = None,
    engine: OfShards = Engine.local,
    processes: Processes = None,
    retries: Retries = None,
    verify: Verify = False,
    report: Rates = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    max_pixels: MaxPixels = 128_000_000,
    device: Device = "auto",
    strict: Strict = False,
    quiet: Quiet = False,
    gumbel: Gumbel = False,
) -> None:
    """Tokenize images: IMAGES/sub/name.jpg becomes OUT/sub/name.tokens; OUT/manifest.json lists them all.

    Input shards become token shards of the same names, each with an OUT/NAME_stats.json; several processes
    and machines can share the work. An interrupted run resumes where it stopped. Unreadable images are
    reported and skipped, and the exit code is then 1.
    """
    from pictish.bulk import pictures
    from pictish.bulk import run as bulk
    from pictish.bulk.batch_tokenizer import BatchTokenizerSettings, Selection

    selection = Selection.of(budget, threshold, sample, seed, gumbel, quality)
    decoders = min(4, os.cpu_count() or 1) if workers is None else workers
    batch_tokenizer = BatchTokenizerSettings(model, device, selection, decoders, batch_size, max_pixels)
    if pictures.hold_shards(inputs):
        if format is Format.folder:
            raise ValueError(f"{inputs[0]}: shards are tokenized to shards; --format folder is for images")
        if samples_per_shard is not None:
            logger.warning(
                "--samples-per-shard is ignored: output shards hold the samples of the input shards"
            )
        many, again = processes or 1, 2 if retries is None else retries
        failures = bulk.run(
            bulk.Plan(
                inputs, out, batch_tokenizer, engine.value, many, again, overwrite, verify, strict, report
            ),
            quiet,
        )
    else:
        flags: dict[str, object] = {"--engine": engine is not Engine.local, "--processes": processes}
        flags |= {"--retries": retries, "--verify": verify, "--report": report}
        for flag in (flag for flag, given in flags.items() if given not in (None, False)):
            logger.warning("%s is ignored: it applies to input shards only", flag)
        if samples_per_shard is not None and format is not Format.shards:
            logger.warning("--samples-per-shard is ignored without --format shards")
        per_shard = (samples_per_shard or 1000) if format is Format.shards else None
        failures = pictures.run(inputs, out, batch_tokenizer, per_shard, overwrite, strict, quiet)
    if failures:
        raise typer.Exit(1)
