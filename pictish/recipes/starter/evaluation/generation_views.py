"""The numbers of text to image as a chart, and its best, median and worst images as a contact sheet."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pictish.data.images import png_bytes
from pictish.evaluation.bars import Bars
from pictish.evaluation.bars import _panel as draw_bars
from pictish.evaluation.drawing import SheetRow, contact_sheet
from pictish.evaluation.plot import GREY, INK, LEARNED, RANDOM, UNIFORM
from pictish.evaluation.plot import _plain as plain
from pictish.evaluation.sheets import extremes
from pictish.recipes.starter.evaluation.generation import COMPOSED, GENERATED, WAYS

if TYPE_CHECKING:
    import numpy as np

    from pictish.recipes.starter.evaluation.drawn import Shown
    from pictish.recipes.starter.evaluation.generation import Asked

_LINES = (("hit@1", LEARNED, "o"), ("hit@5", UNIFORM, "s"), ("similarity", RANDOM, "D"))
_BARS = {
    "seen": ("Seen captions", ("hit@1", "hit@5", "strict@1", "strict@5", "style")),
    "held_out": ("Held-out compositions", COMPOSED),
}


def generation_chart(report: Mapping[str, Any]) -> bytes:
    """PNG bytes: bars of what is generated beside its ceilings, and the guidance curve where there is one.

    `report` is the header of a `GenerationEvaluation` with `seen`, `held_out` and `curve`, which may be None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curve = report["curve"]
    columns = 3 if curve else 2
    figure = Figure(figsize=(1.2 + 4.6 * columns, 6.2), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for axis, (name, (title, measures)) in zip(axes, _BARS.items(), strict=False):
        measured = report[name]
        series = {way: [measured["ways"][way][each] for each in measures] for way in WAYS}
        labels = [each.replace("_", " ") for each in measures]
        draw_bars(axis, Bars(f"{title} ({measured['prompts']:,})", labels, series))
    if curve:
        _curve(axes[2], curve, report["text_scale"])
    handles, labels = axes[0].get_legend_handles_labels()
    place = (0.012, 0.995)
    figure.legend(
        handles, labels, ncols=3, frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=place
    )
    note = f"lines and bands: {report['confidence']:.0%} intervals; a real image is not its own match"
    figure.text(0.985, 0.016, note, ha="right", va="bottom", fontsize=9, color=GREY)
    figure.tight_layout(rect=(0.01, 0.05, 0.99, 0.93), w_pad=2.0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _curve(axis: Any, measured: Mapping[str, Any], default: float) -> None:
    """Hits in per cent, and the similarity too, where 100 % is the same image."""
    scales = [point["scale"] for point in measured["points"]]
    for name, colour, marker in _LINES:
        numbers = [point[name] for point in measured["points"]]
        low, mean, high = ([100 * each[key] for each in numbers] for key in ("low", "mean", "high"))
        axis.fill_between(scales, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.plot(scales, mean, color=colour, linewidth=2, marker=marker, markersize=4.5, label=name)
    axis.axvline(default, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="default", zorder=0)
    plain(axis)
    axis.set_title(
        f"Guidance, seen captions ({measured['prompts']:,})", loc="left", fontsize=12, color=INK, pad=10
    )
    axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axis.set_xlabel("guidance scale", fontsize=10, color=GREY)
    axis.set_ylim(0, 103)
    axis.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    above = {"loc": "lower right", "bbox_to_anchor": (1.02, 1.06)}
    axis.legend(frameon=False, fontsize=9, ncols=4, handlelength=1.6, columnspacing=1.4, **above)


def generation_sheet(
    asked: "Sequence[Asked]", shown: "Mapping[str, Shown]", similarities: "Mapping[str, np.ndarray]"
) -> bytes:
    """PNG of the best, median and worst generated images, beside what they should be.

    `similarities` are those of every way, (P,); images are ranked by that of the generated ones.
    """
    from pictish.io.files import printable

    rows = []
    for group, places in extremes(-similarities[GENERATED]).items():
        for place in places:
            tiles = [(shown[way].pictures[place], f"{similarities[way][place]:.2f}") for way in WAYS]
            rows.append(SheetRow(group, printable(asked[place].prompt), (1, 1), tiles))
    subtitle = f"{len(asked):,} prompts; below each its cosine with the nearest of its concept"
    return png_bytes(contact_sheet("Generated images", subtitle, list(WAYS), rows))
