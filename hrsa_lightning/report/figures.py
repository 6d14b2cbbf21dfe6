"""Which curves and maps a report draws."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.plots import (
    COLORS,
    MUTED,
    Line,
    distance_lines,
    draw_heatmap,
    draw_layer_steps,
    draw_lines,
    is_crowded,
    layer_steps_height,
)
from hrsa_lightning.plots.style import PANEL
from hrsa_lightning.report.experiments import (
    Array,
    Curve,
    Experiment,
    Key,
    Pair,
    Place,
    mean_over_runs,
)
from hrsa_lightning.report.page import Gallery, Panel, Swatch
from hrsa_lightning.similarity.history import Detail
from hrsa_lightning.similarity.metric_info import info_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "curves_gallery",
    "layers_gallery",
    "maps_gallery",
    "metric_panel",
    "spectra_gallery",
    "styles",
]

Style = tuple[str, str]
Styles = dict[Pair, Style]
T = TypeVar("T")
_MOST_POINTS = 300
_MOST_COLUMNS = 160
_BLACK = COLORS[6]
_OTHERS = COLORS[:6]
_MAP = (3.4, 2.9)


def styles(experiment: Experiment, pairs: Sequence[Pair]) -> Styles:
    """Color and dash of each comparison: an arm keeps its color, controls stand back."""
    arms = list(experiment.arms()) or list(dict.fromkeys(pair.arm for pair in pairs))
    compared = {key.pair for key in experiment.keys}
    seeds = {pair.arm for pair in compared if experiment.is_seed_control(pair)}
    named = [arm for arm in arms if arm not in seeds and arm not in experiment.displacement]
    found: Styles = {}
    for pair in pairs:
        if pair.arm in seeds:
            found[pair] = (_BLACK, "--")
        elif pair.arm in experiment.displacement:
            index = experiment.displacement.index(pair.arm)
            found[pair] = (MUTED, "-." if index % 2 == 0 else ":")
        else:
            index = named.index(pair.arm) if pair.arm in named else 0
            found[pair] = (_OTHERS[index % len(_OTHERS)], "-" if index < len(_OTHERS) else "--")
    return found


def curves_gallery(
    experiment: Experiment,
    group: str,
    colors: Styles,
    place: Place,
    metrics: Sequence[str],
    *,
    name: str,
    title: str,
    log_x: bool,
) -> Gallery:
    """A panel per metric, a line per comparison: mean over runs, with a band of one std.

    A single run has the band of its own uncertainty over probes, where it was measured.
    """
    panels = [
        panel
        for metric in metrics
        if (panel := metric_panel(experiment, group, colors, place, metric, title, log_x=log_x))
    ]
    legend = [Swatch(str(pair), *style) for pair, style in colors.items()]
    return Gallery(name, title, panels, legend)


def metric_panel(
    experiment: Experiment,
    group: str,
    colors: Styles,
    place: Place,
    metric: str,
    title: str,
    *,
    log_x: bool,
    distant: bool = False,
) -> Panel | None:
    """One metric; as distances from identity on a logarithmic axis where its curves crowd there.

    Args:
        distant: Whether they crowd or not.
    """
    keys = {pair: Key(group, metric, pair, place) for pair in colors}
    curves = {pair: curve for pair, key in keys.items() if (curve := experiment.curve(key))}
    if not curves:
        return None
    info = info_of(metric)
    lines = [_line(str(pair), curve, colors[pair]) for pair, curve in curves.items()]
    words = info.title
    log_y = math.isfinite(info.identity) and (distant or is_crowded(lines, info.identity))
    if log_y:
        lines = distance_lines(lines, info.identity)
        words = f"1 − {words}" if info.identity else words
    draw = partial(draw_lines, lines=lines, title=words, log_x=log_x, log_y=log_y)
    return Panel(f"{words}, {title}", draw, PANEL)


def layers_gallery(
    experiment: Experiment,
    group: str,
    pairs: Sequence[Pair],
    places: Sequence[Place],
    metrics: Sequence[str],
    *,
    name: str,
    title: str,
) -> Gallery:
    """A map over layers and steps per metric and comparison, mean over runs.

    All maps of one metric share their scale.
    """
    panels = []
    for metric in metrics:
        maps = {
            pair: found
            for pair in pairs
            if (found := _layer_map(experiment, group, metric, pair, places)) is not None
        }
        limits = _limits([values for _, values in maps.values()])
        info = info_of(metric)
        for pair, (steps, values) in maps.items():
            words = f"{info.title}: {pair}"
            draw = partial(
                draw_layer_steps,
                values=values,
                layers=[str(place) for place in places],
                steps=steps,
                title=words,
                limits=limits,
                reverse=info.sign < 0,
            )
            size = (PANEL[0], layer_steps_height(len(places)))
            panels.append(Panel(f"{words}, {title}", draw, size))
    return Gallery(name, title, panels)


def maps_gallery(
    experiment: Experiment, group: str, pairs: Sequence[Pair], kind: str, *, name: str
) -> Gallery:
    """Layer-by-layer maps at the first, middle and last step on one scale, and their change.

    They are of the first run that kept them.
    """
    kept = {pair: _first_middle_last(_details(experiment, kind, group, pair)) for pair in pairs}
    values = {
        pair: [np.array(each.values, dtype=np.float64) for each in found]
        for pair, found in kept.items()
    }
    limits = _limits([grid for grids in values.values() for grid in grids])
    changes = {
        pair: grids[-1] - grids[0]
        for pair, grids in values.items()
        if len(grids) > 1 and grids[0].shape == grids[-1].shape
    }
    title = info_of(kind).title
    most = max((np.nanmax(np.abs(c), initial=1e-6) for c in changes.values()), default=1.0)
    panels = []

    def add(grid: Array, detail: Detail, words: str, **options: Any) -> None:
        draw = partial(
            draw_heatmap, values=grid, rows=detail.rows, columns=detail.columns, title=words,
            **options,
        )  # fmt: skip
        panels.append(Panel(f"{title}, layer by layer: {words}", draw, _MAP))

    for pair, found in kept.items():
        for grid, detail in zip(values[pair], found, strict=True):
            add(grid, detail, f"{pair}, step {detail.step}", limits=limits)
        if pair in changes:
            words = f"{pair}, change from step {found[0].step} to {found[-1].step}"
            add(changes[pair], found[-1], words, limits=(-most, most), diverging=True)
    return Gallery(name, title, panels, columns=max((len(p) for p in kept.values()), default=3) + 1)


def spectra_gallery(
    experiment: Experiment,
    group: str,
    colors: Styles,
    layer: str,
    kind: str,
    *,
    name: str,
    title: str,
) -> Gallery:
    """Singular values or row entropies of O* at one layer, at the first, middle and last step."""
    found = {
        pair: [each for each in _details(experiment, kind, group, pair) if each.layer == layer]
        for pair in colors
    }
    steps = sorted({detail.step for details in found.values() for detail in details})
    panels = []
    for step in _first_middle_last(steps):
        lines = [
            _spectrum_line(pair, detail, colors[pair])
            for pair, details in found.items()
            for detail in details
            if detail.step == step
        ]
        words = f"step {step}"
        draw = partial(_draw_spectrum, lines=lines, title=words, falls=kind == "singular_values")
        panels.append(Panel(f"{title}, {words}", draw, PANEL))
    legend = [Swatch(str(pair), *style) for pair, style in colors.items() if found[pair]]
    return Gallery(name, title, panels, legend)


def _spectrum_line(pair: Pair, detail: Detail, style: Style) -> Line:
    """Over ranks from 1, or over percentiles."""
    values = np.array(detail.values, dtype=np.float64)
    ranks: Array = np.arange(1, len(values) + 1, dtype=np.float64)
    places = ranks if detail.kind == "singular_values" else np.linspace(0, 100, len(values))
    return Line(str(pair), places, values, None, None, *style)


def _draw_spectrum(ax: "Axes", lines: Sequence[Line], title: str, falls: bool) -> None:
    draw_lines(ax, lines, title=title)
    if falls:  # over orders of magnitude
        ax.set_yscale("log")
        ax.set_xlabel("rank of the singular value", fontsize=8)
    else:
        ax.set_xlabel("percentile of rows", fontsize=8)


def _line(label: str, curve: Curve, style: Style) -> Line:
    low, high = _band(curve)
    kept = _thinned(len(curve.steps), _MOST_POINTS)
    return Line(
        label,
        curve.steps[kept],
        mean_over_runs(curve.values)[kept],
        None if low is None else low[kept],
        None if high is None else high[kept],
        *style,
        identity=curve.last_level("identity"),
        null=curve.last_level("null_95"),
        chance=curve.level("chance")[kept],
    )


def _band(curve: Curve) -> tuple[Array | None, Array | None]:
    if len(curve.values) == 1:
        return curve.band or (None, None)
    mean = mean_over_runs(curve.values)
    counts = np.isfinite(curve.values).sum(0)
    squares = np.nansum((curve.values - mean) ** 2, axis=0)
    std = np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), np.nan)
    return mean - std, mean + std


def _layer_map(
    experiment: Experiment, group: str, metric: str, pair: Pair, places: Sequence[Place]
) -> tuple[Array, Array] | None:
    """Steps, and (layers, steps) means over runs."""
    curves = [experiment.curve(Key(group, metric, pair, place)) for place in places]
    there = [curve for curve in curves if curve is not None]
    if not there or len({len(curve.steps) for curve in there}) > 1:
        return None
    steps = there[0].steps
    absent = np.full(len(steps), np.nan)
    rows = [absent if curve is None else mean_over_runs(curve.values) for curve in curves]
    kept = _thinned(len(steps), _MOST_COLUMNS)
    return steps[kept], np.stack(rows)[:, kept]


def _limits(grids: Sequence[Array]) -> tuple[float, float]:
    """Ends of a scale for all of some maps."""
    finite = [grid[np.isfinite(grid)] for grid in grids]
    values = np.concatenate(finite) if finite else np.empty(0)
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1e-3


def _thinned(count: int, most: int) -> NDArray[np.intp]:
    """Evenly spread indices with both ends, at most so many."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


def _details(experiment: Experiment, kind: str, group: str, pair: Pair) -> list[Detail]:
    """Of the first run that kept any: averages of maps over seeds would hide their shape."""
    for run in experiment.runs:
        found = [
            detail
            for detail in run.details
            if detail.kind == kind
            and Pair(detail.arm, detail.reference) == pair
            and group == ".".join(filter(None, (detail.monitor, detail.probes)))
        ]
        if found:
            return found
    return []


def _first_middle_last(items: Sequence[T]) -> list[T]:
    """Up to three items, in order."""
    chosen = sorted({0, (len(items) - 1) // 2, len(items) - 1}) if items else []
    return [items[index] for index in chosen]
