"""Pictures of the values of metrics."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any


def pictures() -> ModuleType:
    """What draws; loaded when asked for, since a metric must work without matplotlib."""
    from hrsa_lightning import plots

    return plots


def draw(value: Any, title: str, chance: float | None, ax: Any) -> Any:
    """Figure and axes with one value of a metric, or a list of them, each a number or a dict."""
    plots = pictures()
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not isinstance(values[0], dict):
        return plots.plot_values(values, title=title, chance=chance, ax=ax)
    lines = lines_of(values)
    levels = [] if chance is None else [chance]
    if ax is None:
        figure = plots.lines_figure(
            lines, title=title, chance=levels, x_label="computation", pyplot=True
        )
        return figure, figure.axes[0]
    plots.draw_lines(ax, lines, title=title, chance=levels)
    ax.set_xlabel("computation")
    ax.legend(fontsize=7, frameon=False)
    return ax.get_figure(root=True), ax


def lines_of(values: Sequence[dict[str, Any]]) -> list[Any]:
    """A line per key over several values, with a band where there is a standard error."""
    keys = list(values[0])
    lines = []
    for key in (key for key in keys if not key.endswith(("_se", "_null", "_p"))):
        found = [float(value[key]) for value in values]
        low = high = None
        if f"{key}_se" in keys:
            errors = [float(value[f"{key}_se"]) for value in values]
            low = [v - e for v, e in zip(found, errors, strict=True)]
            high = [v + e for v, e in zip(found, errors, strict=True)]
        lines.append(pictures().Line(key, range(len(found)), found, low=low, high=high))
    return lines
