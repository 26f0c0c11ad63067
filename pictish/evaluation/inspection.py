"""Figures of what is kept of an image, and of which patches share a code: `pictish inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pictish.data.images import load_image, png_bytes
from pictish.evaluation.codebook import draw_codes, gather_codes
from pictish.evaluation.drawing import Panels, four_panels
from pictish.evaluation.output import report_broken
from pictish.evaluation.pictures import PictureSource
from pictish.io.files import one_line, printable, write_atomic
from pictish.io.report import Report
from pictish.pipelines.reconstruct import Reconstructor
from pictish.pipelines.settings import Drawing
from pictish.tokenizer.dynamic import Tokenizer
from pictish.training.runtime import resolve_device


def inspect_image(
    source: Path,
    target: Path,
    model: str,
    device: str,
    steps: int | None,
    upscale: int | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Tokenize one image, write its drawing, return its facts."""
    try:
        picture = load_image(source)
    except ValueError as error:
        raise ValueError(f"{printable(source)}: {one_line(error)}") from error
    draw = Reconstructor.from_folder(model, resolve_device(device), steps=steps)
    tokenizer = draw.tokenizer
    (token,) = tokenizer.tokenize([picture], **settings)
    assert token.cells is not None, "the tokenizer always says which cells it kept"
    scores = _scores(tokenizer, picture)[token.cells]
    cells = tokenizer.grid[0] * tokenizer.grid[1]
    drawing = four_panels(
        Panels(
            picture=picture,
            reconstruction=draw([token], drawing=Drawing(steps, upscale=upscale))[0],
            grid=token.grid,
            cells=token.cells,
            scores=scores,
            ids=token.ids,
            title=f"{printable(source.name)}  ·  {picture.width} by {picture.height} px",
            caption=f"{len(token)} of {cells} patches kept, one token each  ·  {token.bits:,.0f} bits  ·  "
            f"{token.bits_per_pixel:.2g} bits per pixel",
        )
    )
    write_atomic(target, png_bytes(drawing))
    return {
        "picture": printable(source.name),
        "size": list(token.size),
        "grid": list(token.grid),
        "tokenizer": token.tokenizer,
        "codebook_size": token.codebook_size,
        "tokens": len(token),
        "ids": token.ids.tolist(),
        "cells": token.cells.tolist(),
        "scores": [round(float(score), 4) for score in scores],
        "bits": token.bits,
        "bits_per_pixel": token.bits_per_pixel,
        "drawing": printable(target),
    }


def _scores(tokenizer: Tokenizer, picture: Image.Image) -> npt.NDArray[np.float32]:
    """The selector's keep probability of every cell, (cells,) float."""
    pixels = torch.from_numpy(tokenizer.resize(picture)[None])
    return tokenizer.scores(pixels)[0].float().cpu().numpy()


def inspect_codes(
    inputs: Sequence[Path], target: Path, model: str, device: str, settings: dict[str, Any], report: Report
) -> dict[str, Any]:
    """Tokenize all images, draw the code sheet, return the codes' statistics."""
    source = PictureSource(inputs)
    tokenizer = Tokenizer.from_folder(model, device=resolve_device(device))
    examples = gather_codes(
        report_broken(source.decode(), report), tokenizer, **settings, advance=report.done
    )
    write_atomic(target, draw_codes(examples, source))
    return {**examples.statistics.summary(), "drawing": printable(target)}
