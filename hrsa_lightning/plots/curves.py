"""Curves over steps: from plain numbers, and from the history of a run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hrsa_lightning.plots.style import (
    CHANCE_DASH,
    COLORS,
    DASHES,
    INK,
    MUTED,
    PANEL,
    SAME_LEVEL,
    draw_chance,
    is_within_reach,
    literal,
    plain,
    style_axes,
)
from hrsa_lightning.similarity.measurement import Measurement, headline_layer
from hrsa_lightning.similarity.metric_info import info_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 3
_MOST_MARKED = 25
_CROWDED = 0.05
"""Curves that end nearer to identity than this cannot be told apart on a linear axis."""
_MOVES = 0.05
"""A chance level that changes by more, and by this share of its size, is a curve."""
_NO_DISTANCE = 1e-6
"""Two identical representations are as far apart as this by rounding alone."""


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
        chance: (points,), chance level at each step; drawn as a level, or as a curve where it
            changes.
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
    chance: Any = None


class _MetricPanel(NamedTuple):
    metric: str
    title: str
    lines: Sequence[Line]


def distance_lines(lines: Sequence[Line], identity: float = 1.0) -> list[Line]:
    """Curves of how far values are from identity, for `draw_lines` with `log_y`.

    On an axis from 0 to 1, .994 and .9995 are the same; their distances, .006 and .0005, are not.
    Bands and levels are turned as well. What is no further away than rounding is left out.

    Args:
        lines: Curves of similarities, or of residuals.
        identity: Value of a representation and itself: 1 gives `1 - value`, 0 the value.

    Returns:
        The curves in the same order; NaN where a value is identity, which a logarithm cannot show.

    Example:
        >>> (line,) = distance_lines([Line("a vs b", [0, 5], [1.0, 0.75], chance=[0.0, 0.0])])
        >>> line.values, line.chance
        ([nan, 0.25], [1.0, 1.0])
    """

    def turned(value: float) -> float:
        distance = identity - value if identity else value
        return distance if distance > _NO_DISTANCE else math.nan

    found = []
    for line in lines:
        values, low, high, chance = (
            None if some is None else [turned(v) for v in plain(some)]
            for some in (line.values, line.low, line.high, line.chance)
        )
        assert values is not None
        if identity:
            low, high = high, low
        if low is not None:  # a band that reaches identity has no lower end on this axis
            low = [_NO_DISTANCE if math.isnan(v) else v for v in low]
        is_gone = all(map(math.isnan, values))
        found.append(
            replace(
                line,
                label=f"{line.label}: no distance" if is_gone else line.label,
                values=values,
                low=low,
                high=high,
                chance=chance,
                identity=turned(line.identity),
                null=turned(line.null),
            )
        )
    return found


def is_crowded(lines: Sequence[Line], identity: float = 1.0) -> bool:
    """Whether a curve ends so near to identity that its distance says more than its value.

    Args:
        lines: See `distance_lines`.
        identity: See `distance_lines`.

    Returns:
        True if one of them does.
    """
    ends = [
        [value for value in line.values if math.isfinite(value)]
        for line in distance_lines(lines, identity)
    ]
    return any(values[-1] < _CROWDED for values in ends if values)


def lines_figure(
    lines: Sequence[Line],
    *,
    title: str,
    chance: Sequence[float] = (),
    x_label: str = "optimizer step",
    log_x: bool = False,
    log_y: bool = False,
    legend: bool = True,
    pyplot: bool = False,
) -> "Figure":
    """One panel with curves, bands, and chance levels dashed.

    Args:
        lines: The curves.
        title: What they show.
        chance: Chance levels; one that would flatten the curves becomes a note.
        x_label: What the abscissa is.
        log_x: Abscissa linear up to 1 and logarithmic above, so that step 0 stays on it.
        log_y: Logarithmic ordinate, for `distance_lines`.
        legend: Name the curves below the panel.
        pyplot: Let pyplot know the figure, which shows it.

    Returns:
        A figure, which a notebook shows as the last value of a cell.

    Example:
        >>> figure = lines_figure([Line("a vs b", [0, 10], [1.0, 0.8])], title="cka", chance=[0.0])
        >>> figure.axes[0].get_title()
        'cka'
    """
    from hrsa_lightning.plots.notebook import new_figure

    rows = math.ceil(len(lines) / 2) if legend else 0
    height = PANEL[1] + 0.2 + 0.18 * rows
    figure = new_figure(pyplot, figsize=(PANEL[0], height), dpi=110)
    bottom = (0.5 + 0.18 * rows) / height
    ax = figure.add_axes((0.145, bottom, 0.83, 1 - bottom - 0.25 / height))
    draw_lines(ax, lines, title=title, chance=chance, log_x=log_x, log_y=log_y)
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
        ax: Where to draw; the default is a figure of its own, which pyplot knows and shows.

    Returns:
        Figure and axes, as torchmetrics' own `.plot()`.

    Example:
        >>> figure, ax = plot_values([0.5, 0.75], title="cka", chance=0.0)
        >>> ax.lines[0].get_ydata().tolist()
        [0.5, 0.75]
    """
    from hrsa_lightning.plots.notebook import new_figure

    if ax is None:
        ax = new_figure(pyplot=True, figsize=PANEL, dpi=110, layout="constrained").subplots()
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
    distance: bool = False,
) -> "Figure":
    """One panel per metric, one line per comparison, chance levels dashed, bands shaded.

    Args:
        history: What `read_history` returns.
        title: Begins the title of the figure.
        probes: Probe set whose values are drawn.
        layer: Layer whose values are drawn; the default is `output`, or else the last one.
        log_x: See `lines_figure`.
        distance: Draw distances from identity on a logarithmic axis, of the metrics whose curves
            crowd there; see `distance_lines`.

    Returns:
        A figure that no global state knows.

    Raises:
        ValueError: When the history holds nothing to draw.
    """
    place, panels = _panels_to_draw(history, probes, layer, distance)
    title = f"{title}{', distance from identity,' * distance} {place}, by optimizer step"
    legend = _needs_legend(panels)
    named = [(panel.title, panel.lines, ()) for panel in panels]
    return panels_figure(named, title=title, log_x=log_x, log_y=distance, legend=legend)


def metric_figures(
    history: Sequence[Measurement],
    *,
    probes: str = "",
    layer: str | None = None,
    log_x: bool = False,
    distance: bool = False,
) -> "Iterator[tuple[str, Figure]]":
    """The panels of `curves_figure` one by one, for places that show pictures small.

    Args:
        history: What `read_history` returns.
        probes: See `curves_figure`.
        layer: See `curves_figure`.
        log_x: See `lines_figure`.
        distance: See `curves_figure`.

    Yields:
        Name of a metric, and its figure with every comparison.

    Raises:
        ValueError: When the history holds nothing to draw.
    """
    place, panels = _panels_to_draw(history, probes, layer, distance)
    legend = _needs_legend(panels)
    for metric, name, lines in panels:
        title = f"{name} {place}"
        figure = lines_figure(lines, title=title, log_x=log_x, log_y=distance, legend=legend)
        yield metric, figure


def panels_figure(
    panels: Sequence[tuple[str, Sequence[Line], Sequence[float]]],
    *,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
    legend: bool = True,
    pyplot: bool = False,
) -> "Figure":
    """Several panels with the same lines and one legend.

    Args:
        panels: Title, lines and chance levels of each.
        title: Of the whole figure.
        log_x: See `lines_figure`.
        log_y: See `lines_figure`.
        legend: Name the lines of the first panel below all.
        pyplot: See `lines_figure`.

    Returns:
        See `lines_figure`.
    """
    from hrsa_lightning.plots.notebook import new_figure

    columns = min(_MOST_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    wide = PANEL[0] + 0.3
    in_legend = min(4, max(1, int(columns * wide / 2.2)))
    legend_rows = math.ceil(len(panels[0][1]) / in_legend) if legend else 0
    height = rows * (PANEL[1] + 0.3) + 0.5 + 0.25 * legend_rows
    figure = new_figure(pyplot, figsize=(columns * wide, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (name, lines, chance) in zip(axes, panels, strict=False):
        draw_lines(ax, lines, title=name, chance=chance, log_x=log_x, log_y=log_y)
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
    log_y: bool = False,
) -> None:
    """Draw curves, bands and chance levels into a panel and style it.

    Args:
        ax: The panel.
        lines: See `lines_figure`, as for the others.
        title: Above the panel.
        chance: Chance levels.
        log_x: Abscissa.
        log_y: Ordinate.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if log_y:
        ax.set_yscale("log")
    moving: list[tuple[Line, list[float]]] = []
    levels = list(chance)
    for index, line in enumerate(lines):
        line = replace(line, color=line.color or COLORS[index % len(COLORS)])
        steps, values = plain(line.steps), plain(line.values)
        marker = "o" if len(steps) < _MOST_MARKED else ""
        label = literal(line.label)
        ax.plot(
            steps, values, line.dash, marker=marker, ms=3, lw=1.6, color=line.color, label=label
        )
        if line.low is not None and line.high is not None:
            low, high = plain(line.low), plain(line.high)
            ax.fill_between(steps, low, high, color=line.color, alpha=0.18, lw=0)
        known = [] if line.chance is None else [v for v in plain(line.chance) if math.isfinite(v)]
        if known and max(known) - min(known) > _MOVES * max(1.0, *map(abs, known)):
            moving.append((line, known))
        elif known:
            levels.append(known[-1])
    style_axes(ax, title)
    ax.margins(x=0.02, y=0.08)
    levels += _draw_moving_chance(ax, moving)
    draw_chance(ax, levels)
    beyond = [x.null for x in lines if not any(abs(x.null - c) < SAME_LEVEL for c in levels)]
    draw_chance(ax, beyond, "95 % of permuted", far=False)
    draw_chance(ax, [x.identity for x in lines if x.identity not in (0, 1)], "itself", far=False)
    if log_y:
        low, high = ax.get_ylim()
        steps_of_decade = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
        ax.yaxis.set_major_locator(LogLocator(subs=steps_of_decade))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.ticklabel_format(axis="y", useOffset=False)
    if log_x:
        ax.set_xscale("symlog", linthresh=1.0)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def _draw_moving_chance(ax: "Axes", moving: Sequence[tuple[Line, list[float]]]) -> list[float]:
    """Draw chance levels that change, each in the color of its curve; returns last ones too far."""
    near: list[float] = []
    far: list[float] = []
    for line, known in moving:
        if not (is_within_reach(ax, min(known)) and is_within_reach(ax, max(known))):
            far.append(known[-1])
            continue
        near.append(known[-1])
        steps, chance = plain(line.steps), plain(line.chance)
        ax.plot(steps, chance, ls=CHANCE_DASH, lw=1.1, color=line.color, alpha=0.7, label="_chance")
    if near:
        ax.annotate(
            "chance",
            (1.0, max(near)),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=MUTED,
        )
    return far


def has_distances(history: Sequence[Measurement], *, probes: str = "") -> bool:
    """Whether curves of a history crowd at identity, so that `distance=True` has what to draw.

    Args:
        history: See `curves_figure`.
        probes: See `curves_figure`.

    Returns:
        True if one of them does.
    """
    return bool(_panels(history, probes, None, distance=True)[1])


def _panels_to_draw(
    history: Sequence[Measurement], probes: str, layer: str | None, distance: bool
) -> tuple[str, list[_MetricPanel]]:
    place, panels = _panels(history, probes, layer, distance)
    if not panels:
        raise ValueError("history: expected values to draw, found none")
    return place, panels


def _panels(
    history: Sequence[Measurement], probes: str, layer: str | None, distance: bool
) -> tuple[str, list[_MetricPanel]]:
    """Words for the place that is drawn, and what to draw of each metric."""
    chosen = [m for m in history if m.probes == probes and not m.label]
    if any(m.reference for m in chosen):  # properties of single models are no comparison
        chosen = [m for m in chosen if m.reference]
    layer = layer or (headline_layer(m.layer for m in chosen) if chosen else "")
    points: dict[str, dict[str, list[Measurement]]] = {}
    for m in (m for m in chosen if m.layer == layer):
        points.setdefault(m.metric, {}).setdefault(m.comparison, []).append(m)
    names = list(dict.fromkeys(name for lines in points.values() for name in lines))
    panels: list[_MetricPanel] = []
    for metric, found in points.items():
        lines = [_line(name, index, found.get(name, [])) for index, name in enumerate(names)]
        title = metric.replace("_", " ")
        identity = info_of(metric).identity
        if not distance:
            panels.append(_MetricPanel(metric, title, lines))
        elif not math.isnan(identity) and is_crowded(lines, identity):
            title = f"1 − {title}" if identity else title
            panels.append(_MetricPanel(metric, title, distance_lines(lines, identity)))
    return f"at {layer}" if layer else "on held-out pairs", panels


def _needs_legend(panels: Sequence[_MetricPanel]) -> bool:
    return any(len(panel.lines) > 1 for panel in panels)


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
        chance=[math.nan if m.chance is None else m.chance for m in points],
    )
