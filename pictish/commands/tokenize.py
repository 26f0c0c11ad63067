"""`pictish tokenize`: pictures to token files or to shards."""

import enum
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pictish.tokenizer.dynamic import Tokenizer

logger = logging.getLogger(__name__)


class Format(enum.StrEnum):
    """What is written."""

    folder = "folder"
    shards = "shards"


def run(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Pictures, folders of pictures, or raw shards.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the tokens.")],
    *,
    model: Annotated[str, typer.Option(help="Model folder, or `starter`.")] = "starter",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    format: Annotated[
        Format | None, typer.Option(help="A file a picture, or WebDataset shards; shards give shards.")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Exactly so many tokens a picture.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep patches with a score above this (default 0.5).")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw the kept patches by their scores.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of --sample (default 0).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode; 0 decodes in this one.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")] = 32,
    samples_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Of --format shards, for pictures (default 1000).")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Larger pictures are refused before decoding.")
    ] = 128_000_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tokens that are there.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first broken picture.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Turn pictures into tokens: OUT/sub/name.tokens for IMAGES/sub/name.jpg, and OUT/manifest.json.

    Run again, it goes on where it stopped. Broken pictures are named and left out, the exit code is then 1.
    """
    from pictish.commands.report import Report
    from pictish.commands.tokenize_jobs import Totals, Work, plan
    from pictish.data.token_folder import Header, OutputFolder
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.world import resolve_device

    selection = Selection.of(budget, threshold, sample, seed)
    shards = None if format is None else format is Format.shards
    job = plan(inputs, out, shards, 1000 if samples_per_shard is None else samples_per_shard)
    if samples_per_shard is not None and "samples_per_shard" not in job.settings:
        logger.warning("--samples-per-shard does nothing without --format shards, nor for raw shards")
    tokenizer = Tokenizer.from_folder(model, device=resolve_device(device))
    selection.check(tokenizer)
    settings = {**selection.settings(), **job.settings}
    header = Header(job.kind, tokenizer.fingerprint, tokenizer.codebook_size, settings)
    decoding = {
        "side": tokenizer.image_size,
        # The model wants the other cores: on two, one worker made 89 pictures/s where two made 72.
        "workers": max(1, min(4, (os.cpu_count() or 1) - 1)) if workers is None else workers,
        "max_pixels": max_pixels,
        "prefetch": 2 * batch_size + 16,
    }
    totals = Totals()
    with (
        Report("tokenizing", job.total, quiet=quiet, strict=strict) as report,
        OutputFolder(out, header, job.outputs, overwrite) as output,
    ):
        work = Work(tokenizer, selection, decoding, batch_size, output, report, totals)
        job.run(work)
        output.finish()
    if not quiet:
        print(totals.summary(report.failures, report.seconds))
    if report.failures:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Selection:
    """How many patches are kept: by threshold, by budget, or drawn from a seed and the picture's name."""

    budget: int | None = None
    threshold: float | None = None
    seed: int | None = None

    @classmethod
    def of(cls, budget: int | None, threshold: float | None, sample: bool, seed: int | None) -> "Selection":
        """From the command's flags; ValueError for two that exclude each other."""
        asked = {"--budget": budget is not None, "--threshold": threshold is not None, "--sample": sample}
        chosen = [flag for flag, given in asked.items() if given]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} were given; they exclude each other")
        if seed is not None and not sample:
            logger.warning("--seed does nothing without --sample")
        return cls(budget, threshold, (seed or 0) if sample else None)

    def check(self, tokenizer: "Tokenizer") -> None:
        """ValueError for a setting that this model cannot follow."""
        cells = tokenizer.grid[0] * tokenizer.grid[1]
        if self.budget is not None and self.budget > cells:
            raise ValueError(f"--budget {self.budget}: a picture of this model has 1 to {cells} tokens")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold}: a score lies between 0 and 1")

    def settings(self) -> dict[str, Any]:
        """What decides the bytes, for the manifest."""
        return {"budget": self.budget, "seed": self.seed, "threshold": self.threshold}

    def arguments(self, names: Sequence[str]) -> dict[str, Any]:
        """Keywords of `Tokenizer.tokenize_pixels` for pictures of these names."""
        if self.seed is None:
            return {"budget": self.budget, "threshold": self.threshold}
        import torch

        seeds = [hashlib.sha256(f"{self.seed}/".encode() + os.fsencode(name)).digest()[:7] for name in names]
        return {"generators": [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]}
