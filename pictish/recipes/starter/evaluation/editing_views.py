"""The numbers of edits as a chart, and images of them and of prompts with images as contact sheets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pictish.data.images import png_bytes
from pictish.evaluation.bars import Bars, bar_chart
from pictish.evaluation.drawing import SheetRow, contact_sheet
from pictish.evaluation.sheets import extremes
from pictish.io.files import printable
from pictish.recipes.starter.evaluation.editing import EDITED, MEASURES, REAL, TRUE_CODES, WAYS

if TYPE_CHECKING:
    from PIL import Image

    from pictish.recipes.starter.edits import Change
    from pictish.recipes.starter.evaluation.drawn import Shown
    from pictish.recipes.starter.evaluation.editing import EditingEvaluation, Mixed

_PANELS = (("asked", "What was asked came true"), ("kept", "Everything else is as it was"))
_MOST = 5  # prompts with images of each sort
SQUARE = (1, 1)


def editing_chart(report: Mapping[str, Any]) -> bytes:
    """PNG bytes: a bar a way for all changes, all controls and each kind of edit.

    `report` is an `EditingEvaluation`'s header with its report.
    """
    groups = {name: report[name] for name in ("changes", "controls") if report[name]} | report["kinds"]
    labels = [f"{name} ({group['edits']})" for name, group in groups.items()]
    panels = [
        Bars(title, labels, {way: [group["ways"][way][name] for group in groups.values()] for way in WAYS})
        for name, title in _PANELS
    ]
    note = f"lines: {report['confidence']:.0%} intervals; a real image is not its own match"
    return bar_chart(panels, note)


def editing_sheet(
    evaluation: "EditingEvaluation",
    edits: "Sequence[Change]",
    shown: "Mapping[str, Shown]",
    scores: "Mapping[str, np.ndarray]",
) -> bytes:
    """PNG of the best, median and worst edits by their cosine with the true target; `scores` (P, M) a way."""
    cosines = np.sum(shown[EDITED].embeddings * shown[REAL].embeddings, axis=1)
    rows = []
    for group, places in extremes(-cosines).items():
        for place in places:
            edit = edits[place]
            tiles = [(evaluation.image(edit.before), edit.kind)]
            for way in (EDITED, TRUE_CODES, REAL):
                right = [name for name, true in zip(MEASURES[:3], scores[way][place], strict=False) if true]
                tiles.append((shown[way].pictures[place], ", ".join(right) or "nothing"))
            rows.append(SheetRow(group, printable(edit.instruction), SQUARE, tiles))
    subtitle = f"{len(edits):,} edits ranked by cosine with the target; below each what the judge finds right"
    return png_bytes(contact_sheet("Edits", subtitle, ["source", EDITED, TRUE_CODES, "true target"], rows))


def mixed_sheet(
    evaluation: "EditingEvaluation", groups: "Mapping[str, Sequence[tuple[Mixed, Image.Image, bool]]]"
) -> bytes:
    """PNG of the first prompts of each group: the image, what was drawn, and the second image if any.

    With each prompt comes what was drawn, and whether all that it asks for is there.
    """
    rows = []
    for group, members in groups.items():
        for prompt, drawn, both in members[:_MOST]:
            tiles = [
                (evaluation.image(prompt.first), prompt.first.set),
                (drawn, "both" if both else "not both"),
            ]
            name = prompt.words
            if prompt.second is not None:
                tiles.append((evaluation.image(prompt.second), prompt.second.set))
                name = f"{prompt.first.phrase.noun} + {prompt.second.phrase.noun}"
            rows.append(SheetRow(group, printable(name or ""), SQUARE, tiles))
    subtitle = f"the first {_MOST} of each sort; below what was drawn, whether both are in it"
    columns = ["picture", "drawn", "second image"]
    return png_bytes(contact_sheet("Prompts with images", subtitle, columns, rows))
