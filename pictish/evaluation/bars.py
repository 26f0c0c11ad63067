"""Shares as horizontal bars, one group a label and one bar a series, drawn away from any screen."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pictish.evaluation.plot import GREY, INK, LEARNED, RULE, UNIFORM

COLOURS = (LEARNED, UNIFORM, "#495057", "#ced4da")
_BAR, _GAP = 0.21, 0.16  # inches

Share = Mapping[str, float] | float | None
"""From 0 to 1: alone, or with an interval (`mean`, `low`, `high`); None is not drawn."""


@dataclass(frozen=True)
class Bars:
    """One panel."""

    title: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[Share]]
    """Name -> a share a label; the same names in every panel of a chart."""


def bar_chart(panels: Sequence[Bars], note: str) -> bytes:
    """PNG bytes: panels side by side with one legend, shares in per cent, intervals as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = len(panels[0].series)
    rows = max(len(panel.labels) for panel in panels)
    height = 1.5 + rows * (series * _BAR + _GAP)
    figure = Figure(figsize=(1.2 + 4.6 * len(panels), height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    (axes,) = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left", ncols=4, frameon=False, fontsize=10, bbox_to_anchor=(0.012, 0.995)
    )
    figure.text(0.985, 0.1 / height, note, ha="right", va="bottom", fontsize=9, color=GREY)
    figure.tight_layout(rect=(0.01, 0.3 / height, 0.99, 1 - 0.42 / height), w_pad=2.0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axis: Any, panel: Bars) -> None:
    group = len(panel.series) * _BAR + _GAP
    for number, (name, shares) in enumerate(panel.series.items()):
        for row, share in enumerate(shares):
            place = row * group + number * _BAR
            mean, low, high = _values(share)
            axis.barh(place, 100 * mean, 0.86 * _BAR, color=COLOURS[number], label=name if row == 0 else None)
            if high > low:
                axis.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1)
            if share is not None:
                text = f"{100 * mean:.0f}"
                axis.text(100 * max(mean, high) + 1.5, place, text, va="center", fontsize=8, color=GREY)
    middle = (len(panel.series) - 1) * _BAR / 2
    axis.set_yticks([row * group + middle for row in range(len(panel.labels))], panel.labels)
    axis.set_ylim(len(panel.labels) * group - _GAP, -_BAR)  # the first on top
    axis.set_xlim(0, 109)
    axis.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    axis.set_title(panel.title, loc="left", fontsize=12, color=INK, pad=10)
    axis.grid(axis="x", color=RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelsize=9, length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _values(share: Share) -> tuple[float, float, float]:
    """Mean, low and high; a share alone has no interval."""
    if isinstance(share, Mapping):
        return share["mean"], share["low"], share["high"]
    alone = share or 0.0
    return alone, alone, alone
