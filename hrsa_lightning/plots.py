"""The pictures: curves of every metric with floors and bands, and layer-by-layer heatmaps.

Drawn with `Figure` objects only, so that nothing of a user's own matplotlib state is touched.
Colors are those of Okabe and Ito, which readers with color-vision deficiency can tell apart.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrsa_lightning.representations.history import split_tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_figure", "heatmap_figure", "save_figure"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", "-.", ":")
INK = "#333333"
FAINT = "#D9D9D9"
MUTED = "#777777"
_PANEL = (3.7, 2.6)
_MOST_COLUMNS = 3
_FAR = 2.0  # a floor this many spans of the curves away would flatten them
_SAME_FLOOR = 5e-3  # floors nearer than this are one line
_SUFFIXES = ("_low", "_high")


def curves_figure(
    history: Sequence[Mapping[str, Any]], *, group: str = "similarity", where: str | None = None
) -> "Figure":
    """One panel per metric, one line per comparison, floors dashed, bands shaded.

    Args:
        history: What `read_history` returns.
        group: First part of the tags to draw.
        where: The place whose values are drawn; the default is `output`, or else the last one.

    Returns:
        A figure that no global state knows.

    Raises:
        ValueError: When the history holds nothing to draw.
    """
    from matplotlib.figure import Figure

    series = _series(history, group)
    places = list(dict.fromkeys(place for _, _, place in series))
    if not places:
        raise ValueError(f"history: expected values under {group!r}, found none")
    where = where or ("output" if "output" in places else places[-1])
    metrics = list(
        dict.fromkeys(
            metric
            for metric, _, place in series
            if place == where and not metric.endswith(_SUFFIXES)
        )
    )
    comparisons = list(dict.fromkeys(c for _, c, place in series if place == where))
    columns = min(_MOST_COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    legend_rows = math.ceil(len(comparisons) / 4)
    height = rows * _PANEL[1] + 0.5 + 0.25 * legend_rows
    figure = Figure(figsize=(columns * _PANEL[0], height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    floors = _floors(history, group)
    for ax, metric in zip(axes, metrics, strict=False):
        _draw_metric(ax, metric, where, comparisons, series, floors)
    for ax in axes[len(metrics) :]:
        ax.set_visible(False)
    place = "on held-out pairs" if where == "held_out" else f"at {where}"
    figure.suptitle(f"{group} {place}, by optimizer step", fontsize=11, color=INK)
    if comparisons != [""]:
        handles, labels = axes[0].get_legend_handles_labels()
        columns = min(4, max(1, int(columns * _PANEL[0] / 2.2)))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )
    # Finding the layout is half the time of drawing; it holds for every later drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def heatmap_figure(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_label: str = "",
    column_label: str = "",
) -> "Figure":
    """A layer-by-layer similarity map, 0 to 1, with the first layer at the bottom left.

    Args:
        values: (rows, columns); a value that is not finite is left blank.
        rows: Layer names of the live model.
        columns: Layer names of the reference.
        title: What is shown.
        row_label: Name of the live model.
        column_label: Name of the reference.
    """
    from matplotlib.figure import Figure

    size = 2.4 + 0.34 * max(len(rows), len(columns))
    figure = Figure(figsize=(size + 0.9, size), dpi=110, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(values, origin="lower", cmap="viridis", vmin=0.0, vmax=1.0, aspect="equal")
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set_xlabel(column_label, fontsize=9, color=INK)
    ax.set_ylabel(row_label, fontsize=9, color=INK)
    ax.set_title(title, fontsize=10, color=INK)
    if len(rows) * len(columns) <= 144:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if math.isfinite(value):
                    color = "white" if value < 0.6 else "black"
                    text = f"{value:.2f}"
                    ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=ax, shrink=0.8, label="linear CKA, debiased")
    return figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as PNG, in one move."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


def _draw_metric(
    ax: "Axes",
    metric: str,
    where: str,
    comparisons: Sequence[str],
    series: Mapping[tuple[str, str, str], list[tuple[int, float]]],
    floors: Mapping[tuple[str, str, str], float],
) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn_floors: list[float] = []
    for index, comparison in enumerate(comparisons):
        color = COLORS[index % len(COLORS)]
        dash = DASHES[index // len(COLORS) % len(DASHES)]
        points = series.get((metric, comparison, where), [])
        steps, values = [step for step, _ in points], [value for _, value in points]
        marker = "o" if len(points) < 25 else ""
        label = comparison.replace("_vs_", " vs ")
        ax.plot(steps, values, dash, marker=marker, ms=3, lw=1.6, color=color, label=label)
        low = series.get((f"{metric}_low", comparison, where))
        high = series.get((f"{metric}_high", comparison, where))
        if low and high:
            bounds = ([v for _, v in low], [v for _, v in high])
            ax.fill_between([s for s, _ in low], *bounds, color=color, alpha=0.18, lw=0)
        floor = floors.get((metric, comparison, where), math.nan)
        if math.isfinite(floor) and not any(
            abs(floor - other) < _SAME_FLOOR for other in drawn_floors
        ):
            drawn_floors.append(floor)
    _draw_floors(ax, drawn_floors)
    ax.set_title(metric.replace("_", " "), fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=INK)
    ax.grid(color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.margins(x=0.02, y=0.08)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _draw_floors(ax: "Axes", floors: Sequence[float]) -> None:
    """A dashed line where it leaves the curves readable, else a note of where it would be."""
    low, high = ax.dataLim.y0, ax.dataLim.y1
    if not floors or not (math.isfinite(low) and math.isfinite(high)):
        return
    reach = _FAR * max(high - low, 1e-3)
    near = [floor for floor in floors if low - reach <= floor <= high + reach]
    for floor in near:
        ax.axhline(floor, ls=(0, (4, 3)), lw=1.1, color=MUTED, zorder=0)
    if near:
        text, at, offset, units = "chance", (1.0, max(near)), (-3, 2), ("axes fraction", "data")
    else:
        side, edge = ("below", 0.0) if floors[0] < low else ("above", 1.0)
        text, at = f"chance {floors[0]:.2f}, far {side}", (1.0, edge)
        offset, units = (-3, 3 if side == "below" else -10), ("axes fraction", "axes fraction")
    ax.annotate(
        text,
        at,
        xycoords=units,
        xytext=offset,
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color=MUTED,
    )


def _series(
    history: Sequence[Mapping[str, Any]], group: str
) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    series: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for record in history:
        for tag, value in record["values"].items():
            head, metric, comparison, where = split_tag(tag)
            if head == group and where:
                series.setdefault((metric, comparison, where), []).append((record["step"], value))
    return series


def _floors(history: Sequence[Mapping[str, Any]], group: str) -> dict[tuple[str, str, str], float]:
    floors = {}
    for record in history:
        for tag, value in record.get("floors", {}).items():
            head, metric, comparison, where = split_tag(tag)
            if head == group:
                floors[(metric, comparison, where)] = value
    return floors
