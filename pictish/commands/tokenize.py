"""`pictish tokenize`: pictures to token files or to shards."""

import contextlib
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


Inputs = Annotated[
    list[Path], typer.Argument(metavar="IMAGES...", help="Pictures, folders of pictures, or raw shards.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the tokens.")]
Model = Annotated[str, typer.Option(help="Model folder, or `starter`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Kind = Annotated[
    Format | None, typer.Option(help="A file a picture, or WebDataset shards; raw shards give shards.")
]
Budget = Annotated[int | None, typer.Option(min=1, help="Exactly so many tokens a picture.")]
Threshold = Annotated[float | None, typer.Option(help="Keep patches with a score above this (default 0.5).")]
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
    sample: Sample = False,
    gumbel: Gumbel = False,
    seed: Seed = None,
    workers: Workers = None,
    batch_size: BatchSize = 32,
    samples_per_shard: PerShard = None,
    max_pixels: MaxPixels = 128_000_000,
    overwrite: Overwrite = False,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Turn pictures into tokens: OUT/sub/name.tokens for IMAGES/sub/name.jpg, and OUT/manifest.json.

    Run again, it goes on where it stopped. Broken pictures are named and left out, the exit code is then 1.
    """
    from pictish.commands.report import Report
    from pictish.commands.tokenize_jobs import Totals, Work, plan
    from pictish.data.loader import WorkerPool
    from pictish.data.token_folder import Header, OutputFolder

    selection = Selection.of(budget, threshold, sample, seed, gumbel)
    shards = None if format is None else format is Format.shards
    job = plan(inputs, out, shards, 1000 if samples_per_shard is None else samples_per_shard)
    if samples_per_shard is not None and "samples_per_shard" not in job.settings:
        logger.warning("--samples-per-shard does nothing without --format shards, nor for raw shards")
    totals = Totals()
    count = min(4, os.cpu_count() or 1) if workers is None else workers
    with WorkerPool(count) if count else contextlib.nullcontext() as pool:  # starts while the model is loaded
        tokenizer = _load(model, device, selection)
        settings = {**selection.settings(), **job.settings}
        header = Header(job.kind, tokenizer.fingerprint, tokenizer.codebook_size, settings)
        decoding = {
            "side": tokenizer.image_size,
            "exact": tokenizer.exact_squash,
            "workers": pool or 0,
            "max_pixels": max_pixels,
            "prefetch": 3 * batch_size + 16,
        }
        with (
            Report("tokenizing", job.total, quiet=quiet, strict=strict) as report,
            OutputFolder(out, header, job.outputs, overwrite) as output,
        ):
            job.run(Work(tokenizer, selection, decoding, batch_size, output, report, totals))
            output.finish()
    if not quiet:
        print(totals.summary(report.failures, report.seconds))
    if report.failures:
        raise typer.Exit(1)


def _load(model: str, device: str, selection: "Selection") -> "Tokenizer":
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.world import resolve_device

    tokenizer = Tokenizer.from_folder(model, device=resolve_device(device))
    selection.check(tokenizer)
    return tokenizer


@dataclass(frozen=True)
class Selection:
    """How many patches are kept: by threshold, by budget, or drawn: from a seed and the picture's name, or as
    LaVIT draws."""

    budget: int | None = None
    threshold: float | None = None
    seed: int | None = None
    gumbel: bool = False

    @classmethod
    def of(
        cls,
        budget: int | None,
        threshold: float | None,
        sample: bool,
        seed: int | None,
        gumbel: bool = False,
    ) -> "Selection":
        """From the command's flags; ValueError for two that exclude each other."""
        asked = {"--budget": budget is not None, "--threshold": threshold is not None}
        asked |= {"--sample": sample, "--gumbel": gumbel}
        chosen = [flag for flag, given in asked.items() if given]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} were given; they exclude each other")
        if seed is not None and not (sample or gumbel):
            logger.warning("--seed does nothing without --sample or --gumbel")
        return cls(budget, threshold, (seed or 0) if sample or gumbel else None, gumbel)

    def check(self, tokenizer: "Tokenizer") -> None:
        """ValueError for a setting that this model cannot follow."""
        cells = tokenizer.grid[0] * tokenizer.grid[1]
        if self.budget is not None and self.budget > cells:
            raise ValueError(f"--budget {self.budget}: a picture of this model has 1 to {cells} tokens")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold}: a score lies between 0 and 1")

    def settings(self) -> dict[str, Any]:
        """What decides the bytes, for the manifest."""
        own = {"gumbel": True} if self.gumbel else {}
        return {"budget": self.budget, "seed": self.seed, "threshold": self.threshold, **own}

    def arguments(self, names: Sequence[str]) -> dict[str, Any]:
        """Keywords of `Tokenizer.tokenize_pixels` for pictures of these names."""
        if self.seed is None:
            return {"budget": self.budget, "threshold": self.threshold}
        import torch

        if self.gumbel:
            generators = [torch.Generator().manual_seed(self.seed) for _ in names]
            return {"generators": generators, "as_lavit": True}
        seeds = [hashlib.sha256(f"{self.seed}/".encode() + os.fsencode(name)).digest()[:7] for name in names]
        return {"generators": [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]}
