"""Curves over steps: from plain numbers, and from the history of a run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hrsa_lightning.plots.style import (
    COLORS,
    DASHES,
    INK,
    PANEL,
    SAME_LEVEL,
    draw_chance,
    literal,
    plain,
    style_axes,
)
from hrsa_lightning.similarity.measurement import Measurement, headline_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 3
_MOST_MARKED = 25


@dataclass(frozen=True)
class Line:
    """One curve, with its band where there is one.

    Attributes:
        label: Name in the legend.
        steps: (points,), abscissas: a tensor, array or list.
        values: (points,); NaN leaves a gap.
        low: (points,), lower end of the band.
        high: (points,), upper end of the band.
        color: Any matplotlib color; `None` takes the next of the palette.
        dash: Any matplotlib line style.
        identity: Value of the reference and itself, drawn where it is not the 0 or 1 of theory.
        null: Level that 95 % of permuted pairings stay below.
    """

    label: str
    steps: Any
    values: Any
    low: Any = None
    high: Any = None
    color: str | None = None
    dash: str = "-"
    identity: float = math.nan
    null: float = math.nan


_Panel = tuple[str, Sequence[Line], Sequence[float]]


def lines_figure(
    lines: Sequence[Line],
    *,
    title: str,
    chance: Sequence[float] = (),
    x_label: str = "optimizer step",
    log_x: bool = False,
    legend: bool = True,
) -> "Figure":
    """One panel with curves, bands, and chance levels dashed.

    Args:
        lines: The curves.
        title: What they show.
        chance: Chance levels; one that would flatten the curves becomes a note.
        x_label: What the abscissa is.
        log_x: Abscissa linear up to 1 and logarithmic above, so that step 0 stays on it.
        legend: Name the curves below the panel.

    Example:
        >>> figure = lines_figure([Line("a vs b", [0, 10], [1.0, 0.8])], title="cka", chance=[0.0])
        >>> figure.axes[0].get_title()
        'cka'
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(lines) / 2) if legend else 0
    height = PANEL[1] + 0.2 + 0.18 * rows
    figure = Figure(figsize=(PANEL[0], height), dpi=110)
    bottom = (0.5 + 0.18 * rows) / height
    ax = figure.add_axes((0.145, bottom, 0.83, 1 - bottom - 0.25 / height))
    draw_lines(ax, lines, title=title, chance=chance, log_x=log_x)
    ax.set_xlabel(literal(x_label), fontsize=8, color=INK)
    if legend:
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="lower center", ncols=2, fontsize=7, frameon=False, labelcolor=INK
        )
    return figure


def plot_values(
    values: Any, *, title: str, chance: float | None = None, ax: "Axes | None" = None
) -> "tuple[Figure, Axes]":
    """The values of one metric as it was computed again and again; what a `.plot()` returns.

    Args:
        values: One number, or a sequence of numbers, as `Metric.compute` or `Metric.forward` gave.
        title: Name of the metric.
        chance: Its chance level.
        ax: Where to draw; the default is a figure of its own.

    Returns:
        Figure and axes, as torchmetrics' own `.plot()`.

    Example:
        >>> figure, ax = plot_values([0.5, 0.75], title="cka", chance=0.0)
        >>> ax.lines[0].get_ydata().tolist()
        [0.5, 0.75]
    """
    from matplotlib.figure import Figure

    if ax is None:
        ax = Figure(figsize=PANEL, dpi=110, layout="constrained").subplots()
    numbers = [plain(v) for v in values] if isinstance(values, (list, tuple)) else plain(values)
    numbers = numbers if isinstance(numbers, list) else [numbers]
    line = Line(title, range(len(numbers)), numbers)
    draw_lines(ax, [line], title=title, chance=[] if chance is None else [chance])
    ax.set_xlabel("computation", fontsize=8, color=INK)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax


def curves_figure(
    history: Sequence[Measurement],
    *,
    title: str = "similarity",
    probes: str = "",
    layer: str | None = None,
    log_x: bool = False,
) -> "Figure":
    """One panel per metric, one line per comparison, chance levels dashed, bands shaded.

    Args:
        history: What `read_history` returns.
        title: Begins the title of the figure.
        probes: Probe set whose values are drawn.
        layer: Layer whose values are drawn; the default is `output`, or else the last one.
        log_x: See `lines_figure`.

    Returns:
        A figure that no global state knows.

    Raises:
        ValueError: When the history holds nothing to draw.
    """
    place, panels = _panels(history, probes, layer)
    named = [(metric.replace("_", " "), lines, chance) for metric, lines, chance in panels]
    title = f"{title} {place}, by optimizer step"
    return panels_figure(named, title=title, log_x=log_x, legend=_needs_legend(panels))


def metric_figures(
    history: Sequence[Measurement],
    *,
    probes: str = "",
    layer: str | None = None,
    log_x: bool = False,
) -> "Iterator[tuple[str, Figure]]":
    """The panels of `curves_figure` one by one, for places that show pictures small.

    Args:
        history: What `read_history` returns.
        probes: See `curves_figure`.
        layer: See `curves_figure`.
        log_x: See `lines_figure`.

    Yields:
        Name of a metric, and its figure with every comparison.

    Raises:
        ValueError: When the history holds nothing to draw.
    """
    place, panels = _panels(history, probes, layer)
    legend = _needs_legend(panels)
    for metric, lines, chance in panels:
        title = f"{metric.replace('_', ' ')} {place}"
        yield metric, lines_figure(lines, title=title, chance=chance, log_x=log_x, legend=legend)


def panels_figure(
    panels: Sequence[_Panel],
    *,
    title: str,
    log_x: bool = False,
    legend: bool = True,
) -> "Figure":
    """Several panels with the same lines and one legend.

    Args:
        panels: Title, lines and chance levels of each.
        title: Of the whole figure.
        log_x: See `lines_figure`.
        legend: Name the lines of the first panel below all.
    """
    from matplotlib.figure import Figure

    columns = min(_MOST_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    wide = PANEL[0] + 0.3
    in_legend = min(4, max(1, int(columns * wide / 2.2)))
    legend_rows = math.ceil(len(panels[0][1]) / in_legend) if legend else 0
    height = rows * (PANEL[1] + 0.3) + 0.5 + 0.25 * legend_rows
    figure = Figure(figsize=(columns * wide, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (name, lines, chance) in zip(axes, panels, strict=False):
        draw_lines(ax, lines, title=name, chance=chance, log_x=log_x)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.suptitle(literal(title), fontsize=11, color=INK)
    if legend:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=in_legend, fontsize=8, frameon=False
        )
    # Finding the layout is half the time of drawing; it holds for every later drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def draw_lines(
    ax: "Axes",
    lines: Sequence[Line],
    *,
    title: str,
    chance: Sequence[float] = (),
    log_x: bool = False,
) -> None:
    """Draw curves, bands and chance levels into a panel and style it."""
    from matplotlib.ticker import MaxNLocator

    for index, line in enumerate(lines):
        color = line.color or COLORS[index % len(COLORS)]
        steps, values = plain(line.steps), plain(line.values)
        marker = "o" if len(steps) < _MOST_MARKED else ""
        label = literal(line.label)
        ax.plot(steps, values, line.dash, marker=marker, ms=3, lw=1.6, color=color, label=label)
        if line.low is not None and line.high is not None:
            low, high = plain(line.low), plain(line.high)
            ax.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
    style_axes(ax, title)
    ax.margins(x=0.02, y=0.08)
    draw_chance(ax, chance)
    beyond = [x.null for x in lines if not any(abs(x.null - c) < SAME_LEVEL for c in chance)]
    draw_chance(ax, beyond, "95 % of permuted", far=False)
    draw_chance(ax, [x.identity for x in lines if x.identity not in (0, 1)], "itself", far=False)
    ax.ticklabel_format(axis="y", useOffset=False)
    if log_x:
        ax.set_xscale("symlog", linthresh=1.0)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _panels(
    history: Sequence[Measurement], probes: str, layer: str | None
) -> tuple[str, list[_Panel]]:
    """Words for the place that is drawn, and metric, lines and chance levels of each panel."""
    chosen = [m for m in history if m.probes == probes and not m.label]
    if any(m.reference for m in chosen):  # properties of single models are no comparison
        chosen = [m for m in chosen if m.reference]
    if not chosen:
        raise ValueError("history: expected values to draw, found none")
    layer = layer or headline_layer(m.layer for m in chosen)
    points: dict[str, dict[str, list[Measurement]]] = {}
    for m in (m for m in chosen if m.layer == layer):
        points.setdefault(m.metric, {}).setdefault(m.comparison, []).append(m)
    names = list(dict.fromkeys(name for lines in points.values() for name in lines))
    panels: list[_Panel] = [
        (
            metric,
            [_line(name, index, found.get(name, [])) for index, name in enumerate(names)],
            [_last_chance(found.get(name, [])) for name in names],
        )
        for metric, found in points.items()
    ]
    return f"at {layer}" if layer else "on held-out pairs", panels


def _needs_legend(panels: Sequence[_Panel]) -> bool:
    return any(len(lines) > 1 for _, lines, _ in panels)


def _line(name: str, index: int, points: Sequence[Measurement]) -> Line:
    banded = any(m.low is not None for m in points)
    identity, null = (
        next((v for m in reversed(points) if (v := getattr(m, field)) is not None), math.nan)
        for field in ("identity", "null_95")
    )
    return Line(
        name.replace("_vs_", " vs "),
        [m.step for m in points],
        [m.value for m in points],
        low=[math.nan if m.low is None else m.low for m in points] if banded else None,
        high=[math.nan if m.high is None else m.high for m in points] if banded else None,
        color=COLORS[index % len(COLORS)],
        dash=DASHES[index // len(COLORS) % len(DASHES)],
        identity=identity,
        null=null,
    )


def _last_chance(points: Sequence[Measurement]) -> float:
    known = [m.chance for m in points if m.chance is not None]
    return known[-1] if known else math.nan
