"""The contact sheet of an evaluation: which pictures to show, handed to `drawing`."""

from typing import TYPE_CHECKING

from PIL import Image

from pictish.data.images import png_bytes
from pictish.evaluation.drawing import SheetRow, contact_sheet
from pictish.evaluation.metrics import psnr
from pictish.evaluation.pictures import Picture, PictureSource

if TYPE_CHECKING:
    from pictish.evaluation.tokenizer import Evaluation, PictureSet


def contact_sheet_of(evaluation: "Evaluation", measured: "PictureSet", source: PictureSource) -> bytes:
    """PNG of the best, median and worst pictures of a set: original, automatic length, budgets.

    The few pictures are decoded once more from `source`; nothing of the others is kept for this.
    """
    from pictish.data.files import printable

    groups = measured.extremes()
    places = [place for group in groups.values() for place in group]
    wanted = {measured.pictures[place][0] for place in places}
    prepared = [evaluation.prepare(each) for each in source.decode(wanted) if isinstance(each, Picture)]
    decoded = dict(zip((each.index for each in prepared), evaluation.reconstructions(prepared), strict=True))
    by_index = {each.index: each for each in prepared}
    rows = []
    for group, members in groups.items():
        for place in members:
            index, name = measured.pictures[place]
            picture = by_index[index]
            loss = measured.points["automatic"].values[place, 0]
            tiles = [(Image.fromarray(picture.pixels), f"loss {loss:.3f}")]
            for preview in decoded[index].values():
                decibels = psnr(preview[None], picture.original[None])[0]
                tiles.append((Image.fromarray(preview), f"{decibels:.1f} dB"))
            rows.append(SheetRow(group, printable(name), picture.size, tiles))
    columns = ["original", "automatic", *(f"{budget} tokens" for budget in evaluation.budgets)]
    subtitle = (
        f"{len(measured.pictures):,} {measured.name} ranked by cosine loss at the automatic length; "
        f"below each the PSNR of the {evaluation.preview.side} px preview"
    )
    return png_bytes(contact_sheet(f"Reconstructed {measured.name}", subtitle, columns, rows))
