"""What the commands of `pictish evaluate` share: options, image sources, output files and tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands.options import files, runtime

if TYPE_CHECKING:
    from pictish.evaluation.pictures import FlatPictures, PictureSource
    from pictish.recipes.starter.evaluation.judge import Judge

Inputs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="IMAGES", help="Images, folders of images, or WebDataset shards."),
]
Photographs = Annotated[
    bool,
    files(
        "--photographs", help="Also evaluate the photographs shipped with scikit-image, as a separate set."
    ),
]
Limit = Annotated[int | None, files(metavar="N", min=1, help="Evaluate only the first N images.")]
Overwrite = Annotated[bool, files("--overwrite", help="Replace the files of an earlier evaluation.")]
Quiet = Annotated[bool, runtime("--quiet", help="No progress bar and no table.")]
Cache = Annotated[
    Path | None,
    files(metavar="FILE", help="Cache of the judge's embeddings (default: judge.safetensors in OUT)."),
]


def sources_of(
    inputs: list[Path] | None, photographs: bool, limit: int | None, flat: bool = False
) -> "dict[str, PictureSource | FlatPictures]":
    """The image sets to evaluate, by name; ValueError when there is none."""
    from pictish.evaluation.pictures import FlatPictures, PictureSource
    from pictish.evaluation.pictures import photographs as inside_scikit_image

    if not inputs and not photographs and not flat:
        raise ValueError("nothing to evaluate: give images, folders or shards, or --photographs")
    sources: dict[str, PictureSource | FlatPictures] = {}
    if inputs:
        sources["pictures"] = PictureSource(inputs, limit)
    if photographs:
        sources["photographs"] = inside_scikit_image()
    if flat:
        sources["flat"] = FlatPictures()
    return sources


def judge_of(data: Path, cache: Path | None, out: Path, device: Any, quiet: bool) -> "Judge":
    """The judge that starter data in `data` makes, kept in `cache` or in the folder of the evaluation."""
    from pictish.io.report import Report
    from pictish.recipes.starter.evaluation.judge import Judge

    with Report("embedding the judge's references", None, quiet=quiet, strict=False) as report:
        return Judge.from_data(data, cache or out / "judge.safetensors", device, report.done)
