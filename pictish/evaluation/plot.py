"""Quality against token count, and against steps, as charts, drawn with matplotlib away from any screen."""

import io
from collections.abc import Callable, Sequence
from typing import Any

INK, GREY, RULE = "#1c1c1e", "#6b6b70", "#e6e6ea"
LEARNED, RANDOM, UNIFORM = "#e8590c", "#868e96", "#1971c2"
COMPUTED, THUMBNAIL = "#2f9e44", "#7048e8"
_PANELS = (
    ("psnr", "PSNR, dB"),
    ("ssim", "SSIM"),
    ("feature_distance", "Feature distance"),
)
_STEPS_PANELS = (
    ("fid_small", "FID-small"),
    ("kid", "KID"),
    ("psnr", "PSNR, dB"),
    ("feature_distance", "Feature distance"),
    ("seconds", "Seconds an image"),
)


def quality_chart(report: dict[str, Any]) -> bytes:
    """PNG bytes: a row for each set of images, a column for each metric, tokens across, intervals as bands.

    `report` is what `Evaluation.report` returned.
    """
    note = f"bands and bars: {report['confidence']:.0%} intervals of the mean"
    return _chart(report, _PANELS, _panel, "tokens per image", note)


def steps_chart(report: dict[str, Any]) -> bytes:
    """PNG bytes: a row for each set of images, a column for each number, steps across.

    `report` is the header of a `DecoderEvaluation` with a `curve` for each set.
    """
    note = (
        f"bands: {report['confidence']:.0%} intervals of the mean, of KID a deviation over subsets; "
        "seconds: one image alone"
    )
    return _chart(report, _STEPS_PANELS, _steps_panel, "steps", note)


def _chart(
    report: dict[str, Any],
    panels: Sequence[tuple[str, str]],
    panel: Callable[[Any, dict[str, Any], str], None],
    across: str,
    note: str,
) -> bytes:
    """PNG bytes of a grid of panels, sets by numbers, with one legend for all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = report["sets"]
    figure = Figure(figsize=(3.75 * len(panels), 1.35 + 3.25 * len(sets)), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(sets), len(panels), squeeze=False)
    for axes, measured in zip(grid, sets, strict=True):
        for axis, (metric, title) in zip(axes, panels, strict=True):
            panel(axis, measured, metric)
            _plain(axis)
            arrow = "higher is better" if report["better"].get(metric) == "higher" else "lower is better"
            axis.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
            axis.set_title(arrow, loc="right", fontsize=9, color=GREY, pad=10)
        axes[0].set_ylabel(
            f"{measured['name']} ({measured['pictures']:,})", fontsize=11, color=INK, labelpad=10
        )
    for axis in grid[-1]:
        axis.set_xlabel(across, fontsize=10, color=GREY)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left", ncols=3, frameon=False, fontsize=10, bbox_to_anchor=(0.012, 0.995)
    )
    height = figure.get_figheight()
    figure.text(0.985, 0.14 / height, note, ha="right", va="center", fontsize=9, color=GREY)
    figure.tight_layout(rect=(0.01, 0.24 / height, 0.99, 1 - 0.62 / height), h_pad=2.2, w_pad=2.0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axis: Any, measured: dict[str, Any], metric: str) -> None:
    from matplotlib.transforms import offset_copy

    budgets = measured["budgets"]
    tokens = [point["budget"] for point in budgets]
    marked = [each for each in tokens if each.bit_count() == 1]
    axis.fill_between(
        tokens,
        [point[metric]["low"] for point in budgets],
        [point[metric]["high"] for point in budgets],
        color=LEARNED,
        alpha=0.15,
        linewidth=0,
    )
    means = [point[metric]["mean"] for point in budgets]
    axis.plot(
        tokens,
        means,
        color=LEARNED,
        linewidth=2,
        marker="o",
        markersize=4.5,
        label="budget, learned selection",
    )
    baselines = measured["baselines"]
    others = (
        (measured["automatic"], LEARNED, "D", 9, 0, "automatic length, learned selection"),
        (baselines["computed"], COMPUTED, "^", 8, 10, "same lengths, computed score"),
        (baselines["uniform"], UNIFORM, "s", 7, 5, "same lengths, uniform grid"),
        (baselines["random"], RANDOM, "X", 8, -5, "same lengths, random selection"),
        (measured["thumbnail"], THUMBNAIL, "P", 8, -10, "thumbnail of as many bits"),
    )
    for point, colour, marker, size, aside, label in others:
        mean, low, high = (point[metric][key] for key in ("mean", "low", "high"))
        axis.errorbar(
            [measured["automatic"]["tokens"]["mean"]],
            [mean],
            yerr=[[max(mean - low, 0)], [max(high - mean, 0)]],
            color=colour,
            marker=marker,
            markersize=size,
            markeredgecolor="white",
            elinewidth=1.4,
            linestyle="none",
            label=label,
            zorder=3,
            # All lie at one token count: the baselines stand aside, so that the bars stay distinct.
            transform=offset_copy(axis.transData, fig=axis.figure, x=aside, units="points"),
        )
    # what stands aside does not count for the limits that matplotlib finds
    points = [*budgets, *(point for point, *_ in others)]
    low, high = (pick(point[metric][key] for point in points) for key, pick in (("low", min), ("high", max)))
    if high > low:
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.set_xscale("log", base=2)
    axis.set_xticks(marked, [str(each) for each in marked])


def _steps_panel(axis: Any, measured: dict[str, Any], metric: str) -> None:
    points = measured["points"]
    schedulers = list(dict.fromkeys(point["scheduler"] for point in points))
    for scheduler, colour, marker in zip(schedulers, (LEARNED, UNIFORM), "os", strict=False):
        own = [point for point in points if point["scheduler"] == scheduler]
        steps = [point["steps"] for point in own]
        means, low, high = zip(*(_value(point[metric]) for point in own), strict=True)
        axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.plot(steps, means, color=colour, linewidth=2, marker=marker, markersize=4.5, label=scheduler)
    if measured["preview"]:
        mean, _, _ = _value(measured["preview"][metric])
        axis.axhline(mean, color=RANDOM, linewidth=1.5, linestyle=(0, (4, 3)), label="preview, no steps")
    axis.set_xscale("log", base=2)
    axis.set_xticks(steps, [str(each) for each in steps])
    if metric == "seconds":
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")


def _value(number: Any) -> tuple[float, float, float]:
    """Mean, low and high of a report's number; a number alone has no interval, None is not drawn."""
    match number:
        case {"mean": mean, "std": deviation}:
            return mean, mean - deviation, mean + deviation
        case {"mean": mean, "low": low, "high": high}:
            return mean, low, high
    alone = float("nan") if number is None else number
    return alone, alone, alone


def _plain(axis: Any) -> None:
    """Only what is needed to read the numbers."""
    axis.minorticks_off()
    axis.grid(axis="y", color=RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(RULE)
