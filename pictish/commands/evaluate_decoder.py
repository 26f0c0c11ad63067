"""`pictish evaluate decoder`: decoded images next to baselines, or quality and time per step count."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pictish.commands import options
from pictish.commands.evaluate import (
    Inputs,
    Limit,
    Overwrite,
    Photographs,
    Quiet,
    sources_of,
)
from pictish.commands.options import Device, Model, PixelGuidance, Scheduler, decoder, files

if TYPE_CHECKING:
    import torch

    from pictish.evaluation.decoder import DecoderEvaluation
    from pictish.pipelines.settings import Drawing


def run(
    out: Annotated[Path, files(metavar="DIR", help="Output folder for the report (JSON) and figures (PNG).")],
    inputs: Inputs = None,
    *,
    model: Model = "starter",
    photographs: Photographs = False,
    limit: Limit = None,
    steps: Annotated[
        int | None,
        decoder(metavar="N", min=1, max=1000, help="Number of denoising steps (default: the decoder's own)."),
    ] = None,
    pixel_guidance: PixelGuidance = None,
    scheduler: Scheduler = None,
    upscale: Annotated[
        Literal[1, 2, 4],
        decoder(help="Compare at this multiple of the decoder's resolution, with and without the upscaler."),
    ] = 1,
    curve: Annotated[
        bool, decoder("--curve", help="Measure 1 to 50 steps with two schedulers instead, and draw a chart.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, options.seed(help="Random seed of the noise and the bootstrap.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compare a decoder with its preview, with thumbnails of equal bits, and with a mean image."""
    from pictish.evaluation import decoder_report as report
    from pictish.evaluation.output import check_free, show
    from pictish.io.files import check_apart
    from pictish.pipelines.settings import Drawing
    from pictish.training.runtime import resolve_device

    if curve and steps is not None:
        raise ValueError("--curve sweeps the number of steps; do not give --steps")
    if curve and upscale != 1:
        raise ValueError(f"--curve measures the decoder alone; do not give --upscale {upscale}")
    sources = sources_of(inputs, photographs, limit)
    files = [report.NUMBERS, *(report.SHEET.format(name) for name in sources)]
    names = [report.CURVE_NUMBERS, report.CURVE_CHART] if curve else files
    check_apart(out, inputs or [], inside=False)
    check_free(out, names, overwrite)
    drawing = Drawing(steps, pixel_guidance, scheduler, upscale)
    evaluation = _load(model, resolve_device(device), drawing, seed)
    sets, failures = report.code(evaluation, sources, quiet)
    tables = (report.measure_curve if curve else report.measure)(evaluation, sets, out, quiet)
    if not quiet:
        show(tables, [out / name for name in names])
    if failures:
        raise typer.Exit(1)


def _load(model: str, device: "torch.device", drawing: "Drawing", seed: int) -> "DecoderEvaluation":
    from pictish.evaluation.decoder import DecoderEvaluation
    from pictish.evaluation.metrics import FeatureDistance
    from pictish.evaluation.renderers import preview_of
    from pictish.io.model_folder import find_decoder
    from pictish.pipelines.reconstruct import Reconstructor

    if find_decoder(model, "diffusion") is None:
        raise ValueError(f"{model}: has no diffusion decoder to evaluate")
    reconstructor = Reconstructor.from_folder(model, device)
    preview = preview_of(model, reconstructor.tokenizer, device)
    return DecoderEvaluation(reconstructor, preview, FeatureDistance(device), drawing, seed=seed)
