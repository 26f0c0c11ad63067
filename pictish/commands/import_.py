"""`pictish import`: third-party checkpoints to pictish model folders."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pictish.commands.options import files, runtime

if TYPE_CHECKING:
    from PIL import Image

    from pictish.io.report import Bar
    from pictish.tokenizer.lavit import Heads


class Parts(enum.StrEnum):
    """Folders of an imported model."""

    tokenizer = "tokenizer"
    understanding = "understanding"
    lm = "lm"
    decoder = "decoder"
    decoder_lowres = "decoder-lowres"


class Mode(enum.StrEnum):
    """How the merger computes its masks."""

    exact = "exact"
    gather = "gather"


def lavit(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of a downloaded LaVIT-7B-v1 or -v2 checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output model folder.")],
    part: Annotated[
        list[Parts] | None,
        files(metavar="PART", help=f"Part to import; repeat for more (default: all): {', '.join(Parts)}."),
    ] = None,
    merger: Annotated[
        Mode,
        runtime(help="exact: LaVIT's own numerics. gather: kept patches only; faster, some codes differ."),
    ] = Mode.exact,
    heads: Annotated[
        str | None,
        runtime(metavar="E,M,D", help="Number of attention heads of encoder, merger and code decoders."),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        files(
            metavar="PATH",
            help="Images on which to compare the merger modes (default: those in scikit-image).",
        ),
    ] = None,
    quiet: Annotated[bool, runtime("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Convert an official LaVIT checkpoint to a model folder. The weights keep their licence.

    Every key is accounted for before anything is written. An interrupted import resumes where it stopped.
    """

    from pictish.io.report import Bar
    from pictish.pipelines.import_lavit import PARTS, import_lavit

    chosen = [name for name in PARTS if part is None or name in part]
    with Bar("reading", quiet=quiet, unit="none") as bar, _faults_listed(bar):
        made = import_lavit(
            source,
            out,
            parts=chosen,
            mode=merger.value,
            heads=_heads(heads),
            pictures=_pictures(pictures),
            progress=bar,
        )
    if quiet:
        return
    for name, size in made.parts.items():
        print(f"{out / name}: {size / 1e6:,.1f} MB")
    if made.agreement is not None:
        print(f"merger: gather and exact agree on {100 * made.agreement.equal:.1f} % of the codes")
    print(f"The weights keep their original licence; see {out / 'README.md'}.")


def iaa(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a downloaded IAA checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output model folder.")],
    points: Annotated[
        str | None,
        runtime(
            metavar="N,N,...",
            help="Base layers that are followed by an insertion layer (default: two of every five).",
        ),
    ] = None,
    heads: Annotated[
        int | None,
        runtime(metavar="N", min=1, help="Attention heads of the CLIP tower (default: width / 64)."),
    ] = None,
    system: Annotated[
        str | None, runtime(metavar="TEXT", help="System message of every dialogue (default: none).")
    ] = None,
    quiet: Annotated[bool, runtime("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Convert an official IAA checkpoint: base, both adaptors, CLIP tower. The weights keep their licences.

    Every key is accounted for before anything is written. An interrupted import resumes where it stopped.
    """
    from pictish.io.report import Bar
    from pictish.pipelines.import_iaa import import_iaa

    numbers = None
    if points is not None:
        if not all(number.strip().isdecimal() and len(number) < 6 for number in points.split(",")):
            raise ValueError(f"--points {points}: expected layers of the base, as in 0,1,5,6")
        numbers = tuple(map(int, points.split(",")))
    with Bar("reading", quiet=quiet, unit="none") as bar, _faults_listed(bar):
        made = import_iaa(source, out, progress=bar, heads=heads, points=numbers, system=system)
    _summary(made, out, quiet)


def llada(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a downloaded LLaDA checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output model folder.")],
    quiet: Annotated[bool, runtime("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Convert an official LLaDA checkpoint to a model folder. The weights keep their licence.

    Every key is accounted for before anything is written. An interrupted import resumes where it stopped.
    """
    from pictish.io.report import Bar
    from pictish.pipelines.import_lladav import import_llada

    with Bar("reading", quiet=quiet, unit="none") as bar, _faults_listed(bar):
        made = import_llada(source, out, progress=bar)
    _summary(made.parts, out, quiet)


def lladav(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="Folder of a downloaded LLaDA-V checkpoint, or of its stage 1."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output model folder.")],
    base: Annotated[
        Path | None,
        files(metavar="DIR", help="LLaDA folder of a stage-1 SRC, which holds mm_projector.bin alone."),
    ] = None,
    vision_tower: Annotated[
        Path | None,
        files(metavar="DIR", help="SigLIP folder, where the vision tower is not among the weights."),
    ] = None,
    quiet: Annotated[bool, runtime("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Convert an official LLaDA-V checkpoint to a model folder. The weights keep their licence.

    Every key is accounted for before anything is written. An interrupted import resumes where it stopped.
    """
    from pictish.io.report import Bar
    from pictish.pipelines.import_lladav import import_lladav

    with Bar("reading", quiet=quiet, unit="none") as bar, _faults_listed(bar):
        made = import_lladav(source, out, base=base, vision_tower=vision_tower, progress=bar)
    _summary(made.parts, out, quiet)


def _summary(parts: dict[str, int], out: Path, quiet: bool) -> None:
    if not quiet:
        for name, size in parts.items():
            print(f"{out / name}: {size / 1e6:,.1f} MB")
        print(f"The weights keep their original licence; see {out / 'README.md'}.")


@contextmanager
def _faults_listed(bar: "Bar") -> Iterator[None]:
    """Print every fault of a refused checkpoint, where there are several."""
    from pictish.pipelines.importing import Refused

    try:
        yield
    except Refused as error:
        if len(error.faults) > 1:
            for fault in error.faults:
                bar.console.print(fault, markup=False, highlight=False, soft_wrap=True)
        raise


def _heads(text: str | None) -> "Heads | None":
    from pictish.tokenizer.lavit import Heads

    if text is None:
        return None
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise ValueError(f"--heads {text}: expected three positive integers, as in 16,16,16")
    return Heads(*map(int, numbers))


def _pictures(paths: list[Path] | None) -> "list[Image.Image]":
    from pictish.data.images import find_images, load_image
    from pictish.evaluation.pictures import Picture, photographs

    if paths is None:
        return [each.image for each in photographs().decode() if isinstance(each, Picture)]
    return [load_image(file.path) for file in find_images(paths)]
