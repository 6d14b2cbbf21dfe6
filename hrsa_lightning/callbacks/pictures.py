"""Curves and heatmaps of a similarity monitor."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch import Trainer

from hrsa_lightning.callbacks.sinks import log_picture
from hrsa_lightning.functional import linear_cka_heatmap
from hrsa_lightning.plots import curves_figure, heatmap_figure, save_figure
from hrsa_lightning.representations.capture import Snapshot
from hrsa_lightning.representations.history import read_history, split_tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerMap", "Pictures"]


class LayerMap(NamedTuple):
    """Both sides of a layer-by-layer heatmap."""

    group: str
    comparison: str
    live: Snapshot
    reference: Snapshot


class Pictures:
    """Draws what a monitor found; lives on rank 0.

    Args:
        name: Of the monitor.
        every: Heatmaps at every so many evaluations, from the first, and at the end; 0 for none.
    """

    def __init__(self, name: str, every: int) -> None:
        self._name = name
        self._every = every
        self.forget()

    def forget(self) -> None:
        """Drop what was kept, for a new fit."""
        self._maps: list[LayerMap] = []
        self._values: dict[str, float] = {}
        self._drawn_at = -1

    def keep(self, maps: list[LayerMap], values: Mapping[str, float]) -> None:
        """Take over the results of an evaluation."""
        self._maps = [m for m in maps if len(m.live) > 1 or len(m.reference) > 1]
        self._values = dict(values)

    def is_due(self, evaluation: int) -> bool:
        """Whether heatmaps are wanted at an evaluation, counted from 0."""
        return bool(self._every and self._maps) and evaluation % self._every == 0

    def publish(self, trainer: Trainer, step: int) -> None:
        """Send the heatmaps to the loggers."""
        self._drawn_at = step
        for tag, figure in self._heatmaps():
            log_picture(trainer, tag, figure, step)

    def finish(self, trainer: Trainer, history: Path | None, folder: Path | None) -> None:
        """Write PNG files beside the history, and log them."""
        if not self._every or folder is None:
            return
        step = trainer.global_step
        target = folder if history is None else history.parent
        for tag, figure in self._heatmaps():
            if step != self._drawn_at:
                log_picture(trainer, tag, figure, step)
            save_figure(figure, target / f"{tag.replace('/', '_')}.png")
        if history is None or not history.is_file():
            return
        records = read_history(history)
        for group in dict.fromkeys(split_tag(tag)[0] for tag in self._values):
            figure = curves_figure(records, group=group)
            log_picture(trainer, f"{group}/curves", figure, step)
            save_figure(figure, target / f"{group}.png")

    def headline(self) -> dict[str, float]:
        """The first metric at the output, by comparison, for a progress bar; at most three."""
        shown: dict[str, float] = {}
        first = None
        for tag, value in self._values.items():
            _, metric, comparison, where = split_tag(tag)
            if where == "output" and metric == (first := first or metric) and len(shown) < 3:
                shown[f"{metric} {comparison.replace('_vs_', '|')}".strip()] = value
        return shown

    def _heatmaps(self) -> list[tuple[str, "Figure"]]:
        found = []
        for group, comparison, live, reference in self._maps:
            rows, columns = list(live), list(reference)
            values = linear_cka_heatmap(list(live.values()), list(reference.values()))
            arm, _, other = comparison.partition("_vs_")
            title = comparison.replace("_vs_", " vs ") or "live vs reference"
            figure = heatmap_figure(
                values.tolist(),
                rows,
                columns,
                title=title,
                row_label=arm or "live",
                column_label=other or "reference",
            )
            parts = (group, "heatmap", comparison)
            found.append(("/".join(part for part in parts if part), figure))
        return found
