"""Which curves and maps a report draws."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.plots import (
    COLORS,
    MUTED,
    Line,
    draw_heatmap,
    draw_layer_steps,
    draw_lines,
    layer_steps_height,
)
from hrsa_lightning.plots.style import PANEL
from hrsa_lightning.report.experiments import Array, Curve, Experiment, Key, Pair, Place
from hrsa_lightning.report.page import Gallery, Panel, Swatch
from hrsa_lightning.similarity.history import Detail
from hrsa_lightning.similarity.metric_info import HEADLINE, info_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "curves_gallery",
    "headline_metrics",
    "layers_gallery",
    "maps_gallery",
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


def headline_metrics(metrics: Sequence[str]) -> list[str]:
    """One metric of each kind; all of them where none is known."""
    return [metric for metric in HEADLINE if metric in metrics] or list(metrics)


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
    panels = []
    for metric in metrics:
        lines, chance = [], []
        for pair, style in colors.items():
            key = Key(group, metric, pair, place)
            curve = experiment.curve(key)
            if curve is not None and curve.is_defined:
                levels = (experiment.level(name, key) for name in ("identity", "null_95"))
                lines.append(_line(str(pair), curve, style, *levels))
                chance.append(experiment.chance.get(key, math.nan))
        if lines:
            words = info_of(metric).title
            draw = partial(draw_lines, lines=lines, title=words, chance=chance, log_x=log_x)
            panels.append(Panel(f"{words}, {title}", draw, PANEL))
    legend = [Swatch(str(pair), *style) for pair, style in colors.items()]
    return Gallery(name, title, panels, legend)


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
        every = [values[np.isfinite(values)] for _, values in maps.values()]
        finite = np.concatenate(every) if every else np.empty(0)
        if not len(finite):
            continue
        low, high = float(finite.min()), float(finite.max())
        info = info_of(metric)
        for pair, (steps, values) in maps.items():
            words = f"{info.title}: {pair}"
            draw = partial(
                draw_layer_steps,
                values=values,
                layers=[str(place) for place in places],
                steps=steps,
                title=words,
                limits=(low, high if high > low else low + 1e-3),
                reverse=info.sign < 0,
            )
            size = (PANEL[0], layer_steps_height(len(places)))
            panels.append(Panel(f"{words}, {title}", draw, size))
    return Gallery(name, title, panels)


def maps_gallery(
    experiment: Experiment, group: str, pairs: Sequence[Pair], *, name: str, title: str
) -> Gallery:
    """Layer-by-layer maps of the first run that kept them, at the first, middle and last step."""
    panels = []
    for pair in pairs:
        for detail in _first_middle_last(_details(experiment, "cka", group, pair)):
            words = f"{pair}, step {detail.step}"
            draw = partial(
                draw_heatmap,
                values=np.array(detail.values, dtype=np.float64),
                rows=detail.rows,
                columns=detail.columns,
                title=words,
            )
            panels.append(Panel(f"linear CKA, layer by layer: {words}", draw, (3.4, 3.0)))
    return Gallery(name, title, panels)


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


def _line(label: str, curve: Curve, style: Style, identity: float, null: float) -> Line:
    low, high = _band(curve)
    kept = _thinned(len(curve.steps), _MOST_POINTS)
    return Line(
        label,
        curve.steps[kept],
        _mean(curve.values)[kept],
        None if low is None else low[kept],
        None if high is None else high[kept],
        *style,
        identity=identity,
        null=null,
    )


def _band(curve: Curve) -> tuple[Array | None, Array | None]:
    if len(curve.values) == 1:
        if curve.band is None or np.isnan(curve.band).all():
            return None, None
        return curve.band[0], curve.band[1]
    mean = _mean(curve.values)
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
    rows = [np.full(len(steps), np.nan) if c is None else _mean(c.values) for c in curves]
    kept = _thinned(len(steps), _MOST_COLUMNS)
    return steps[kept], np.stack(rows)[:, kept]


def _mean(values: Array) -> Array:
    """Mean over runs; NaN only where every run has NaN."""
    counts = np.isfinite(values).sum(0)
    totals: Array = np.nansum(values, axis=0)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


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
