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
from hrsa_lightning.report.experiments import Array, Curve, Experiment, Pair, Place, mean_over_runs
from hrsa_lightning.report.page import Gallery, Panel, Swatch
from hrsa_lightning.report.verdict import Findings
from hrsa_lightning.similarity.history import Detail
from hrsa_lightning.similarity.metric_info import info_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Style = tuple[str, str]
T = TypeVar("T")
_MOST_POINTS = 300
_MOST_COLUMNS = 160
_BLACK = COLORS[6]
_OTHERS = COLORS[:6]
_MAP = (3.4, 2.9)
_ANSWERS = 3
"""Panels of the answer's picture."""


def styles(experiment: Experiment, pairs: Sequence[Pair]) -> dict[Pair, Style]:
    """Color and dash of each comparison: an arm keeps its color, controls stand back."""
    arms = list(experiment.arms()) or list(dict.fromkeys(pair.arm for pair in pairs))
    seeds, moved = experiment.seed_arms, experiment.displacement
    named = [arm for arm in arms if arm not in seeds and arm not in moved]
    found: dict[Pair, Style] = {}
    for pair in pairs:
        if pair.arm in seeds:
            found[pair] = (_BLACK, "--")
        elif pair.arm in moved:
            found[pair] = (MUTED, "-." if moved.index(pair.arm) % 2 == 0 else ":")
        else:
            index = named.index(pair.arm) if pair.arm in named else 0
            found[pair] = (_OTHERS[index % len(_OTHERS)], "-" if index < len(_OTHERS) else "--")
    return found


def answer_picture(found: Sequence[Findings], name: str, log_x: bool) -> Gallery:
    """The answer drawn: distances of the pairs from identity, and the first score of the arms."""
    monitors = [each for each in found if not each.is_retrieval][:1]
    scores = [each for each in found if each.is_retrieval][:1]
    panels: list[Panel] = []
    legend: dict[str, Swatch] = {}
    for findings in [*monitors, *scores]:
        most = 1 if findings.is_retrieval else _ANSWERS - len(scores)
        shown = [*findings.pairs, *findings.controls] or findings.drifts or findings.arms
        pictures = Pictures(findings, name, log_x)
        drawn = [pictures.panel(m, shown, distant=True) for m in findings.main_metrics[:most]]
        panels += [panel for panel in drawn if panel]
        alone = len({pair.reference for pair in shown}) == 1
        for pair, style in styles(findings.experiment, shown).items():
            label = pair.arm if alone and pair.arm else str(pair)
            label += " (seed control)" if pair.arm in findings.experiment.seed_arms else ""
            legend[label] = Swatch(label, *style)
    return Gallery(name, "The answer", panels, list(legend.values()))


class Pictures:
    """Galleries of one monitor.

    Args:
        findings: What the monitor found.
        prefix: Of the names of files.
        log_x: Draw steps on a logarithmic axis.
    """

    def __init__(self, findings: Findings, prefix: str, log_x: bool) -> None:
        self._findings = findings
        self._experiment = findings.experiment
        self._prefix = prefix
        self._log_x = log_x

    def curves(
        self, pairs: Sequence[Pair], metrics: Sequence[str], end: str, place: Place | None = None
    ) -> Gallery:
        """A panel per metric, a line per comparison: mean over runs, with a band of one std.

        A single run has the band of its own uncertainty over probes, where it was measured.
        """
        panels = [p for metric in metrics if (p := self.panel(metric, pairs, place=place))]
        return Gallery(f"{self._prefix}_{end}", self._title_at(place), panels, self._legend(pairs))

    def _title_at(self, place: Place | None) -> str:
        return f"{self._findings.group} at {place or self._findings.place}, by optimizer step"

    def panel(
        self,
        metric: str,
        pairs: Sequence[Pair],
        *,
        distant: bool = False,
        place: Place | None = None,
    ) -> Panel | None:
        """One metric; as distances from identity on a logarithmic axis where curves crowd there.

        Args:
            metric: Its name.
            pairs: What is compared.
            distant: As distances even where they do not crowd.
            place: Where; the default is where verdicts are given.
        """
        lines = [
            _line(str(pair), curve, style)
            for pair, style in styles(self._experiment, pairs).items()
            if (curve := self._findings.curve(metric, pair, place))
        ]
        if not lines:
            return None
        info = info_of(metric)
        words = info.title
        log_y = math.isfinite(info.identity) and (distant or is_crowded(lines, info.identity))
        if log_y:
            lines = distance_lines(lines, info.identity)
            words = f"1 − {words}" if info.identity else words
        draw = partial(draw_lines, lines=lines, title=words, log_x=self._log_x, log_y=log_y)
        return Panel(f"{words}, {self._title_at(place)}", draw, PANEL)

    def layers(self, pairs: Sequence[Pair], metrics: Sequence[str], end: str) -> Gallery:
        """A map over layers and steps per metric and comparison, on one scale per metric."""
        places = self._findings.places
        title = f"{self._findings.group}, layers over optimizer steps"
        panels = []
        for metric in metrics:
            maps = {pair: grid for pair in pairs if (grid := self._layer_map(metric, pair))}
            limits = _limits([values for _, values in maps.values()])
            for pair, (steps, values) in maps.items():
                words = f"{info_of(metric).title}: {pair}"
                draw = partial(
                    draw_layer_steps,
                    values=values,
                    layers=[str(place) for place in places],
                    steps=steps,
                    title=words,
                    limits=limits,
                    reverse=info_of(metric).sign < 0,
                )
                size = (PANEL[0], layer_steps_height(len(places)))
                panels.append(Panel(f"{words}, {title}", draw, size))
        return Gallery(f"{self._prefix}_{end}", title, panels)

    def maps(self, pairs: Sequence[Pair], kind: str) -> Gallery:
        """Layer-by-layer maps at the first, middle and last step on one scale, and their change.

        They are of the first run that kept them.
        """
        kept = {pair: _first_middle_last(self._details(kind, pair)) for pair in pairs}
        grids = {pair: [np.array(d.values, float) for d in found] for pair, found in kept.items()}
        limits = _limits([grid for found in grids.values() for grid in found])
        changes = {
            pair: found[-1] - found[0]
            for pair, found in grids.items()
            if len(found) > 1 and found[0].shape == found[-1].shape
        }
        most = max((float(np.nanmax(abs(c), initial=1e-6)) for c in changes.values()), default=1.0)
        title = info_of(kind).title
        panels = []

        def add(grid: Array, detail: Detail, words: str, **options: Any) -> None:
            options |= {"rows": detail.rows, "columns": detail.columns, "title": words}
            draw = partial(draw_heatmap, values=grid, **options)
            panels.append(Panel(f"{title}, layer by layer: {words}", draw, _MAP))

        for pair, found in kept.items():
            for grid, detail in zip(grids[pair], found, strict=True):
                add(grid, detail, f"{pair}, step {detail.step}", limits=limits)
            if pair in changes:
                words = f"{pair}, change from step {found[0].step} to {found[-1].step}"
                add(changes[pair], found[-1], words, limits=(-most, most), diverging=True)
        name = f"{self._prefix}_maps" + ("" if kind == "cka" else f"_{kind}")
        columns = max((len(found) for found in kept.values()), default=0) + bool(changes)
        return Gallery(name, title, panels, columns=max(columns, 1))

    def spectra(self, pairs: Sequence[Pair], kind: str, title: str) -> Gallery:
        """Singular values or row entropies of O* at one layer, at the first, middle, last step."""
        layer = self._findings.place.layer
        found = {pair: [d for d in self._details(kind, pair) if d.layer == layer] for pair in pairs}
        steps = sorted({detail.step for details in found.values() for detail in details})
        colors = styles(self._experiment, pairs)
        panels = []
        for step in _first_middle_last(steps):
            lines = [
                _spectrum_line(pair, detail, colors[pair])
                for pair, details in found.items()
                for detail in details
                if detail.step == step
            ]
            words = f"step {step}"
            falls = kind == "singular_values"
            draw = partial(_draw_spectrum, lines=lines, title=words, falls=falls)
            panels.append(Panel(f"{title}, {words}", draw, PANEL))
        legend = self._legend([pair for pair in pairs if found[pair]])
        return Gallery(f"{self._prefix}_{kind}", title, panels, legend)

    def _legend(self, pairs: Sequence[Pair]) -> list[Swatch]:
        return [Swatch(str(p), *style) for p, style in styles(self._experiment, pairs).items()]

    def _layer_map(self, metric: str, pair: Pair) -> tuple[Array, Array] | None:
        """Steps, and (layers, steps) means over runs."""
        curves = [self._findings.curve(metric, pair, place) for place in self._findings.places]
        there = [curve for curve in curves if curve is not None]
        if not there or len({len(curve.steps) for curve in there}) > 1:
            return None
        steps = there[0].steps
        absent = np.full(len(steps), np.nan)
        rows = [absent if curve is None else mean_over_runs(curve.values) for curve in curves]
        kept = _thinned(len(steps), _MOST_COLUMNS)
        return steps[kept], np.stack(rows)[:, kept]

    def _details(self, kind: str, pair: Pair) -> list[Detail]:
        """Of the first run that kept any: averages of maps over seeds would hide their shape."""
        wanted = (kind, pair, self._findings.group)
        for run in self._experiment.runs:
            found = [
                d
                for d in run.details
                if (d.kind, Pair(d.arm, d.reference), ".".join(filter(None, (d.monitor, d.probes))))
                == wanted
            ]
            if found:
                return found
        return []


def _spectrum_line(pair: Pair, detail: Detail, style: Style) -> Line:
    """Over ranks from 1, or over percentiles."""
    values = np.array(detail.values, dtype=np.float64)
    ranks: Array = np.arange(1, len(values) + 1, dtype=np.float64)
    places = ranks if detail.kind == "singular_values" else np.linspace(0, 100, len(values))
    return Line(str(pair), places, values, None, None, *style)


def _draw_spectrum(ax: "Axes", lines: Sequence[Line], title: str, falls: bool) -> None:
    draw_lines(ax, lines, title=title, log_y=falls)  # singular values: over orders of magnitude
    words = "rank of the singular value" if falls else "percentile of rows"
    ax.set_xlabel(words, fontsize=8)


def _line(label: str, curve: Curve, style: Style) -> Line:
    mean = mean_over_runs(curve.values)
    low, high = curve.band or (None, None)
    if len(curve.values) > 1:
        counts = np.isfinite(curve.values).sum(0)
        squares = np.nansum((curve.values - mean) ** 2, axis=0)
        std = np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), np.nan)
        low, high = mean - std, mean + std
    kept = _thinned(len(curve.steps), _MOST_POINTS)
    return Line(
        label,
        curve.steps[kept],
        mean[kept],
        None if low is None else low[kept],
        None if high is None else high[kept],
        *style,
        identity=curve.last_level("identity"),
        null=curve.last_level("null_95"),
        chance=mean_over_runs(curve.of("chance"))[kept],
    )


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


def _first_middle_last(items: Sequence[T]) -> list[T]:
    """Up to three items, in order."""
    chosen = sorted({0, (len(items) - 1) // 2, len(items) - 1}) if items else []
    return [items[index] for index in chosen]
