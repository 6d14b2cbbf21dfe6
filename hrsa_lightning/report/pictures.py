"""Which curves and maps a report draws."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

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
from hrsa_lightning.report.document import Gallery, Panel, Swatch
from hrsa_lightning.report.facts import HEADLINE, fact_of
from hrsa_lightning.report.grouping import Curve, Experiment, Key
from hrsa_lightning.report.reading import Array

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
T = TypeVar("T")
_MOST_POINTS = 300
_MOST_COLUMNS = 160
_BLACK = COLORS[6]
_OTHERS = COLORS[:6]


def styles(experiment: Experiment, comparisons: Sequence[str]) -> dict[str, Style]:
    """Color and dash of each comparison: an arm keeps its color, controls stand back."""
    arms = list(experiment.arms()) or list(dict.fromkeys(map(_arm, comparisons)))
    compared = {key.comparison for key in experiment.keys}
    seeds = {_arm(name) for name in experiment.seed_controls if name in compared}
    named = [arm for arm in arms if arm not in seeds and arm not in experiment.displacement]
    found: dict[str, Style] = {}
    for name in comparisons:
        arm = _arm(name)
        if arm in seeds:
            found[name] = (_BLACK, "--")
        elif arm in experiment.displacement:
            found[name] = (MUTED, "-." if experiment.displacement.index(arm) % 2 == 0 else ":")
        else:
            index = named.index(arm) if arm in named else 0
            found[name] = (_OTHERS[index % len(_OTHERS)], "-" if index < len(_OTHERS) else "--")
    return found


def headline_metrics(metrics: Sequence[str]) -> list[str]:
    """One metric of each kind; all of them where none is known."""
    return [metric for metric in HEADLINE if metric in metrics] or list(metrics)


def curves_gallery(
    experiment: Experiment,
    group: str,
    comparisons: Sequence[str],
    where: str,
    metrics: Sequence[str],
    *,
    name: str,
    title: str,
    colors: dict[str, Style],
    log_x: bool,
) -> Gallery:
    """A panel per metric, a line per comparison: mean over runs, with a band of one std.

    A single run has the band of its own uncertainty over probes, where it was measured.
    """
    panels = []
    for metric in metrics:
        lines, floors = [], []
        for comparison in comparisons:
            key = Key(group, metric, comparison, where)
            curve = experiment.curve(key)
            if curve is None:
                continue
            lines.append(_line(experiment, key, curve, colors[comparison]))
            floors.append(experiment.floors.get(key, math.nan))
        if lines:
            words = fact_of(metric).title
            draw = partial(draw_lines, lines=lines, title=words, floors=floors, log_x=log_x)
            panels.append(Panel(f"{words}, {title}", draw, PANEL))
    legend = [Swatch(_words(name) or "live vs reference", *colors[name]) for name in comparisons]
    return Gallery(name, title, panels, legend)


def layers_gallery(
    experiment: Experiment,
    group: str,
    comparisons: Sequence[str],
    layers: Sequence[str],
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
            comparison: found
            for comparison in comparisons
            if (found := _layer_map(experiment, group, metric, comparison, layers)) is not None
        }
        finite = [
            v for _, values in maps.values() for v in (values[np.isfinite(values)],) if v.size
        ]
        if not finite:
            continue
        low, high = min(float(v.min()) for v in finite), max(float(v.max()) for v in finite)
        fact = fact_of(metric)
        for comparison, (steps, values) in maps.items():
            words = f"{fact.title}: {_words(comparison) or 'live vs reference'}"
            draw = partial(
                draw_layer_steps,
                values=values,
                layers=layers,
                steps=steps,
                title=words,
                limits=(low, high if high > low else low + 1e-3),
                reverse=fact.sign < 0,
            )
            size = (PANEL[0], layer_steps_height(len(layers)))
            panels.append(Panel(f"{words}, {title}", draw, size))
    return Gallery(name, title, panels)


def maps_gallery(
    experiment: Experiment, group: str, comparisons: Sequence[str], *, name: str, title: str
) -> Gallery:
    """Layer-by-layer maps of the first run that kept them, at the first, middle and last step."""
    panels = []
    for comparison in comparisons:
        records = _details(experiment, "cka", group, comparison)
        for record in _first_middle_last(records):
            words = f"{_words(comparison) or 'live vs reference'}, step {record['step']}"
            draw = partial(
                draw_heatmap,
                values=_numbers(record["values"]),
                rows=record["rows"],
                columns=record["columns"],
                title=words,
            )
            panels.append(Panel(f"linear CKA, layer by layer: {words}", draw, (3.4, 3.0)))
    return Gallery(name, title, panels)


def spectra_gallery(
    experiment: Experiment,
    group: str,
    comparisons: Sequence[str],
    where: str,
    kind: str,
    colors: dict[str, Style],
    *,
    name: str,
    title: str,
) -> Gallery:
    """Singular values or row entropies of O* at one place, at the first, middle and last step."""
    found = {
        comparison: [
            record
            for record in _details(experiment, kind, group, comparison)
            if record.get("where") == where
        ]
        for comparison in comparisons
    }
    steps = sorted({record["step"] for records in found.values() for record in records})
    panels = []
    for step in _first_middle_last(steps):
        lines = []
        for comparison, records in found.items():
            for record in records:
                if record["step"] == step:
                    values = _numbers(record["values"])
                    color, dash = colors[comparison]
                    line = Line(
                        comparison, _abscissas(kind, len(values)), values, None, None, color, dash
                    )
                    lines.append(line)
        words = f"step {step}"
        draw = partial(_draw_spectrum, lines=lines, title=words, falls=kind == "singular_values")
        panels.append(Panel(f"{title}, {words}", draw, PANEL))
    legend = [Swatch(_words(name), *colors[name]) for name in comparisons if found[name]]
    return Gallery(name, title, panels, legend)


def _draw_spectrum(ax: "Axes", lines: Sequence[Line], title: str, falls: bool) -> None:
    draw_lines(ax, lines, title=title)
    if falls:  # over orders of magnitude
        ax.set_yscale("log")
        ax.set_xlabel("rank of the singular value", fontsize=8)
    else:
        ax.set_xlabel("percentile of rows", fontsize=8)


def _abscissas(kind: str, count: int) -> Array:
    """Ranks from 1, or percentiles."""
    if kind == "singular_values":
        return np.arange(1, count + 1, dtype=np.float64)
    return np.linspace(0, 100, count)


def _line(experiment: Experiment, key: Key, curve: Curve, style: Style) -> Line:
    low, high = _band(experiment, key, curve)
    mean = _mean(curve.values)
    kept = _thinned(len(curve.steps), _MOST_POINTS)
    return Line(
        _words(key.comparison) or "live vs reference",
        curve.steps[kept],
        mean[kept],
        None if low is None else low[kept],
        None if high is None else high[kept],
        *style,
    )


def _band(experiment: Experiment, key: Key, curve: Curve) -> tuple[Array | None, Array | None]:
    if len(curve.values) > 1:
        mean = _mean(curve.values)
        counts = np.isfinite(curve.values).sum(0)
        squares = np.nansum((curve.values - mean) ** 2, axis=0)
        std = np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), np.nan)
        return mean - std, mean + std
    ends = [experiment.curve(key._replace(metric=key.metric + end)) for end in ("_low", "_high")]
    if any(end is None or len(end.steps) != len(curve.steps) for end in ends):
        return None, None
    return ends[0].values[0], ends[1].values[0]  # type: ignore[union-attr]


def _layer_map(
    experiment: Experiment, group: str, metric: str, comparison: str, layers: Sequence[str]
) -> tuple[Array, Array] | None:
    """Steps, and (layers, steps) means over runs."""
    curves = [experiment.curve(Key(group, metric, comparison, layer)) for layer in layers]
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


def _details(
    experiment: Experiment, kind: str, group: str, comparison: str
) -> list[Mapping[str, Any]]:
    """Of the first run that kept any: averages of maps over seeds would hide their shape."""
    for run in experiment.runs:
        found = [
            record
            for record in run.details
            if (record.get("kind"), record.get("group"), record.get("comparison", ""))
            == (kind, group, comparison)
        ]
        if found:
            return found
    return []


def _first_middle_last(items: Sequence[T]) -> list[T]:
    """Up to three items, in order."""
    chosen = sorted({0, (len(items) - 1) // 2, len(items) - 1}) if items else []
    return [items[index] for index in chosen]


def _numbers(values: Any) -> Any:
    """JSON has null where a value is not finite."""
    return np.array(values, dtype=np.float64)


def _arm(comparison: str) -> str:
    return comparison.partition("_vs_")[0]


def _words(comparison: str) -> str:
    return comparison.replace("_vs_", " vs ")
