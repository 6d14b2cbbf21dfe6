"""Similarity over layers: against the layers of another model, and over the steps of a run."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hrsa_lightning.plots.style import INK, draw_title, literal, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_MOST_LABELED_CELLS = 144
_MOST_LABELS = 14
_MOST_STEPS = 8
_SMALL = 0.1
"""Changes below this are shown to their third digit."""
_LETTER = 0.07
"""Inches that a letter of a layer's name takes."""
_DARK = "#111111"  # on bright cells; plain black would turn into the ink of a dark page


def heatmap_figure(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_label: str = "",
    column_label: str = "",
    label: str = "linear CKA, debiased",
    pyplot: bool = False,
) -> "Figure":
    """A layer-by-layer similarity map, 0 to 1, with the first layer at the bottom left.

    Args:
        values: (rows, columns), a tensor, array or nested list; a value that is not finite is left
            blank.
        rows: Layer names of the live model.
        columns: Layer names of the reference.
        title: What is shown.
        row_label: Name of the live model.
        column_label: Name of the reference.
        label: Of the color bar.
        pyplot: Let pyplot know the figure, which shows it.

    Returns:
        A figure, which a notebook shows as the last value of a cell.
    """
    from hrsa_lightning.plots.notebook import new_figure

    side = 1.2 + 0.34 * min(max(len(rows), len(columns)), 20)
    left, below = 0.5 + _LETTER * _longest(rows), 0.55 + 0.7 * _LETTER * _longest(columns)
    width, height = left + 1.25 * side + 0.45, below + side + 0.35
    figure = new_figure(pyplot, figsize=(width, height), dpi=110)
    ax = figure.add_axes((left / width, below / height, 1.25 * side / width, side / height))
    draw_heatmap(ax, values, rows, columns, title=title, label=label)
    ax.set_xlabel(literal(column_label), fontsize=9, color=INK)
    ax.set_ylabel(literal(row_label), fontsize=9, color=INK)
    return figure


def draw_heatmap(
    ax: "Axes",
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    label: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
    diverging: bool = False,
) -> None:
    """Draw a layer-by-layer map into axes.

    Args:
        ax: The axes.
        values: See `heatmap_figure`, as for the next four.
        rows: Layer names of the live model.
        columns: Layer names of the reference.
        title: Above the map.
        label: Of the color bar.
        limits: Values of the two ends of the scale.
        diverging: The values are differences, 0 is in the middle of the scale and shown with signs.
    """
    values = plain(values)
    image = ax.imshow(
        values,
        origin="lower",
        cmap="RdBu" if diverging else "viridis",
        vmin=limits[0],
        vmax=limits[1],
        aspect="equal",
        interpolation="none",
    )
    ax.set_xticks(*_some(columns), rotation=45, ha="right", fontsize=8)
    ax.set_yticks(*_some(rows), fontsize=8)
    _finish_map(ax, title, image, label, signed=diverging)
    if len(rows) * len(columns) <= _MOST_LABELED_CELLS:
        digits = 2 if limits[1] >= _SMALL else 3
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if math.isfinite(value):
                    at = (value - limits[0]) / (limits[1] - limits[0])
                    is_dark = abs(at - 0.5) > 0.33 if diverging else at < 0.6
                    text = f"{value:+.{digits}f}" if diverging else f"{value:.2f}"
                    text = "0" if float(text) == 0 and diverging else text
                    color = "white" if is_dark else _DARK
                    ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def layer_steps_figure(
    values: Any,
    layers: Sequence[str],
    steps: Any,
    *,
    title: str,
    limits: tuple[float, float] = (0.0, 1.0),
    reverse: bool = False,
) -> "Figure":
    """One metric over layers (upward) and evaluations (rightward).

    Args:
        values: (layers, steps), a tensor, array or nested list; a value that is not finite is left
            blank.
        layers: Names, the first one at the bottom.
        steps: (steps,), optimizer step of each evaluation; columns are evaluations, whatever lies
            between.
        title: What is shown.
        limits: Values of the darkest and the brightest color.
        reverse: Brightest is the lowest value, for metrics where less is more similar.

    Returns:
        A figure, which a notebook shows as the last value of a cell.
    """
    from hrsa_lightning.plots.notebook import new_figure

    size = (3.4, layer_steps_height(len(layers)))
    figure = new_figure(pyplot=False, figsize=size, dpi=110, layout="constrained")
    draw_layer_steps(
        figure.subplots(), values, layers, steps, title=title, limits=limits, reverse=reverse
    )
    return figure


def layer_steps_height(num_layers: int) -> float:
    """How high a map of layers has to be.

    Args:
        num_layers: Layers of the map.

    Returns:
        Inches.
    """
    return 1.1 + 0.09 * min(max(num_layers, 8), 24)


def draw_layer_steps(
    ax: "Axes",
    values: Any,
    layers: Sequence[str],
    steps: Any,
    *,
    title: str,
    limits: tuple[float, float] = (0.0, 1.0),
    reverse: bool = False,
) -> None:
    """Draw a map of layers over steps into axes.

    Args:
        ax: The axes.
        values: See `layer_steps_figure`, as for the others.
        layers: Names, the first one at the bottom.
        steps: Optimizer step of each evaluation.
        title: Above the map.
        limits: Ends of the scale.
        reverse: Brightest is the lowest value.
    """
    steps = plain(steps)
    image = ax.imshow(
        plain(values),
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap="viridis_r" if reverse else "viridis",
        vmin=limits[0],
        vmax=limits[1],
    )
    last = len(steps) - 1
    parts = last if last < _MOST_STEPS else 4
    places = sorted({round(i * last / max(parts, 1)) for i in range(parts + 1)})
    ax.set_xticks(places, [f"{steps[i]:g}" for i in places], fontsize=7)
    ax.set_yticks(*_some(layers), fontsize=7)
    _finish_map(ax, title, image)


def _finish_map(
    ax: "Axes", title: str, image: "AxesImage", label: str = "", *, signed: bool = False
) -> None:
    draw_title(ax, title)
    ax.tick_params(colors=INK)
    for spine in ax.spines.values():
        spine.set_color(INK)
    room = 0.21 if signed else 0.15  # for longer labels
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.9, pad=0.03, fraction=room)
    if signed:
        low, high = image.get_clim()
        ends = [low, 0.0, high]
        bar.set_ticks(ends, labels=[f"{end:+.2g}" if end else "0" for end in ends])
    bar.set_label(literal(label), fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_edgecolor(INK)


def _longest(names: Sequence[str]) -> int:
    return max(map(len, names), default=0)


def _some(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Ticks that do not run into each other: all names, or every so many and the last."""
    every = math.ceil(len(names) / _MOST_LABELS)
    chosen = list(range(0, len(names), every))
    if len(names) - 1 - chosen[-1] >= every / 2:
        chosen.append(len(names) - 1)
    return chosen, [literal(names[index]) for index in chosen]
