"""The contact sheet of an evaluation: which images to show, handed to `drawing`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pictish.data.images import png_bytes
from pictish.evaluation.drawing import SheetRow, contact_sheet
from pictish.evaluation.metrics import psnr
from pictish.evaluation.pictures import FlatPictures, Picture, PictureSource

if TYPE_CHECKING:
    from pictish.evaluation.decoder import Coded, Measured, Way
    from pictish.evaluation.tokenizer import Evaluation, PictureSet

Tiles = Sequence[tuple[Image.Image, str]]


def extremes(losses: np.ndarray, each: int = 3) -> dict[str, list[int]]:
    """Places of the least (best), median and greatest (worst) of losses (P,), each place at most once."""
    order = np.argsort(losses, kind="stable")
    groups: Sequence[np.ndarray] = np.array_split(order, 3)
    if len(order) > 3 * each:
        middle = (len(order) - each) // 2
        groups = [order[:each], order[middle : middle + each], order[-each:]]
    return {
        name: [int(place) for place in group]
        for name, group in zip(("best", "median", "worst"), groups, strict=True)
    }


def contact_sheet_of(
    evaluation: "Evaluation", measured: "PictureSet", source: PictureSource | FlatPictures
) -> bytes:
    """PNG of the best, median and worst images of a set: original, automatic length, thumbnail, budgets.

    The few images are decoded once more from `source`; nothing of the others is kept for this.
    """
    from pictish.evaluation.tokenizer import METRICS

    automatic = measured.points["automatic"]
    groups = extremes(-automatic.values[:, list(METRICS).index("psnr")])
    wanted = {measured.pictures[place][0] for group in groups.values() for place in group}
    prepared = [evaluation.prepare(each) for each in source.decode(wanted) if isinstance(each, Picture)]
    decoded = dict(zip((each.index for each in prepared), evaluation.reconstructions(prepared), strict=True))
    by_index = {each.index: each for each in prepared}

    def row(place: int) -> tuple[str, tuple[int, int], Tiles]:
        index, name = measured.pictures[place]
        picture = by_index[index]
        tiles = [(Image.fromarray(picture.pixels), f"{automatic.bits[place]:,.0f} bits")]
        for preview in decoded[index].values():
            tiles.append((Image.fromarray(preview), _decibels(preview, picture.original)))
        return name, picture.size, tiles

    columns = ["original", "automatic", "thumbnail", *(f"{budget} tokens" for budget in evaluation.budgets)]
    subtitle = (
        f"{len(measured.pictures):,} images ranked by PSNR at the automatic length, beside it a "
        f"thumbnail of as many bits; PSNR at {evaluation.renderer.side} px"
    )
    return _sheet(f"Reconstructions: {measured.name}", subtitle, columns, groups, row)


def decoder_sheet_of(coded: "Coded", ways: "Mapping[str, Way]", measured: "Mapping[str, Measured]") -> bytes:
    """PNG of the best, median and worst images of a set: original, then the ways, drawn once more."""
    from pictish.evaluation.decoder import DECODER, MEAN

    groups = extremes(measured[DECODER].distances)
    places = [place for group in groups.values() for place in group]
    shown = coded.part(places)
    drawn = {name: way(shown) for name, way in ways.items() if name != MEAN}

    def row(place: int) -> tuple[str, tuple[int, int], Tiles]:
        number, original = places.index(place), coded.originals[place]
        tiles = [(Image.fromarray(original), f"{len(coded.tokens[place])} codes")]
        for name, pictures in drawn.items():
            note = f"{_decibels(pictures[number], original)}, {measured[name].distances[place]:.2f}"
            tiles.append((Image.fromarray(pictures[number]), note))
        return coded.names[place], coded.tokens[place].size, tiles

    subtitle = (
        f"{len(coded.names):,} {coded.name} ranked by the decoder's feature distance; "
        f"below each PSNR and feature distance at {coded.originals.shape[1]} px"
    )
    return _sheet(f"Decoded {coded.name}", subtitle, ["original", *drawn], groups, row)


def _sheet(
    title: str,
    subtitle: str,
    columns: Sequence[str],
    groups: Mapping[str, Sequence[int]],
    row: Callable[[int], tuple[str, tuple[int, int], Tiles]],
) -> bytes:
    from pictish.io.files import printable

    rows = []
    for group, members in groups.items():
        for name, size, tiles in map(row, members):
            rows.append(SheetRow(group, printable(name), size, tiles))
    return png_bytes(contact_sheet(title, subtitle, columns, rows))


def _decibels(picture: np.ndarray, original: np.ndarray) -> str:
    return f"{psnr(picture[None], original[None])[0]:.1f} dB"
