"""The pictures: curves with chance levels and bands, maps over layers and steps, spectra.

Every function returns a `Figure` that pyplot does not know, so nothing of a user's own matplotlib
state is touched and no backend is needed; a notebook shows it as the last value of a cell. Metrics'
own `.plot()` gives figure and axes that pyplot knows, as torchmetrics does. Inputs
are histories as `read_history` returns them, plain tensors, arrays or lists. Colors are those of
Okabe and Ito, which readers with color-vision deficiency can tell apart.
"""

from hrsa_lightning.plots.curves import (
    Line,
    curves_figure,
    distance_lines,
    draw_lines,
    has_distances,
    is_crowded,
    lines_figure,
    metric_figures,
    panels_figure,
    plot_values,
)
from hrsa_lightning.plots.maps import (
    draw_heatmap,
    draw_layer_steps,
    heatmap_figure,
    layer_steps_figure,
    layer_steps_height,
)
from hrsa_lightning.plots.output import inline_svg, save_figure
from hrsa_lightning.plots.style import COLORS, DASHES, INK, MUTED

__all__ = [
    "COLORS",
    "DASHES",
    "INK",
    "MUTED",
    "Line",
    "curves_figure",
    "distance_lines",
    "draw_heatmap",
    "draw_layer_steps",
    "draw_lines",
    "has_distances",
    "heatmap_figure",
    "inline_svg",
    "is_crowded",
    "layer_steps_figure",
    "layer_steps_height",
    "lines_figure",
    "metric_figures",
    "panels_figure",
    "plot_values",
    "save_figure",
]
