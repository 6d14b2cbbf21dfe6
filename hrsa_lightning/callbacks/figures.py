"""Curves, heatmaps and spectra of a similarity monitor: pictures, and the numbers behind them."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from hrsa_lightning.callbacks.sinks import log_picture, takes_pictures
from hrsa_lightning.functional import SimilarityWarning, linear_cka_heatmap
from hrsa_lightning.functional.procrustes import alignment_spectrum
from hrsa_lightning.metrics.procrustes import KEYS
from hrsa_lightning.plots import curves_figure, heatmap_figure, metric_figures, save_figure
from hrsa_lightning.representations.capture import Snapshot
from hrsa_lightning.representations.history import append_record, read_history, split_tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerMap", "Pictures", "details_path", "finish_curves"]

_NUM_PERCENTILES = 101
_DIGITS = 6


class LayerMap(NamedTuple):
    """Both sides of a layer-by-layer heatmap."""

    group: str
    comparison: str
    live: Snapshot
    reference: Snapshot


class Pictures:
    """Draws what a monitor found, and writes down what heatmaps and spectra show; on rank 0.

    Args:
        name: Of the monitor.
        every: Heatmaps and spectra at every so many evaluations, from the first, and at the end; 0
            for none.

    Attributes:
        seconds: What the latest call of `write` took that wrote anything.
    """

    def __init__(self, name: str, every: int) -> None:
        self._name = name
        self._every = every
        self.seconds = 0.0
        self.forget()

    def forget(self) -> None:
        """Drop what was kept, for a new fit."""
        self._step = -1
        self._pairs: list[LayerMap] = []
        self._values: dict[str, float] = {}
        self._device = torch.device("cpu")
        self._grids: list[tuple[LayerMap, list[list[float]]]] | None = None
        self._written_at = -1
        self._drawn_at = -1

    def keep(
        self, step: int, pairs: list[LayerMap], values: Mapping[str, float], device: torch.device
    ) -> None:
        """Take over the results of an evaluation.

        Args:
            step: Of the evaluation.
            pairs: Both sides of every comparison.
            values: By tag.
            device: Where rotations are fitted.
        """
        self._step = step
        self._pairs = pairs if self._every else []
        self._values = dict(values)
        self._device = device
        self._grids = None

    def is_due(self, evaluation: int) -> bool:
        """Whether heatmaps and spectra are wanted at an evaluation, counted from 0."""
        return bool(self._every) and evaluation % self._every == 0

    @property
    def has_heatmaps(self) -> bool:
        """Whether the latest evaluation has several layers to set against each other."""
        return any(len(pair.live) > 1 or len(pair.reference) > 1 for pair in self._pairs)

    def write(self, history: Path | None) -> None:
        """Add maps and spectra of the latest evaluation to the file of details, once."""
        if history is None or not self._every or self._step == self._written_at:
            return
        started = time.perf_counter()
        self._written_at = self._step
        for record in self._details():
            append_record(details_path(history), {"step": self._step, **record})
        self.seconds = time.perf_counter() - started

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
            finish_curves(trainer, records, group, target)

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
        for pair, grid in self._layer_by_layer():
            arm, _, other = pair.comparison.partition("_vs_")
            figure = heatmap_figure(
                grid,
                list(pair.live),
                list(pair.reference),
                title=pair.comparison.replace("_vs_", " vs ") or "live vs reference",
                row_label=arm or "live",
                column_label=other or "reference",
            )
            parts = (pair.group, "heatmap", pair.comparison)
            found.append(("/".join(part for part in parts if part), figure))
        return found

    def _layer_by_layer(self) -> list[tuple[LayerMap, list[list[float]]]]:
        """CKA of every layer with every layer, where there are several; found once for all uses."""
        if self._grids is None:
            with _quiet():
                self._grids = [
                    (
                        pair,
                        linear_cka_heatmap(
                            list(pair.live.values()), list(pair.reference.values())
                        ).tolist(),
                    )
                    for pair in self._pairs
                    if len(pair.live) > 1 or len(pair.reference) > 1
                ]
        return self._grids

    def _details(self) -> Iterator[dict[str, Any]]:
        """Records without their step; `hrsa_lightning.reporting.reading` says what they hold."""
        for pair, grid in self._layer_by_layer():
            yield {
                **_about(pair, "cka"),
                "rows": list(pair.live),
                "columns": list(pair.reference),
                "values": [_short(row) for row in grid],
            }
        if not any(split_tag(tag)[1] in KEYS for tag in self._values):
            return  # nobody asked about rotations, which take the longest
        for pair in self._pairs:
            places = [where for where in pair.live if where in pair.reference]
            if places:
                where = "output" if "output" in places else places[-1]
                x, y = (side[where].to(self._device) for side in (pair.live, pair.reference))
                for kind, values in _spectrum(x, y).items():
                    yield {**_about(pair, kind), "where": where, "values": _short(values.tolist())}


def finish_curves(
    trainer: Trainer, history: Sequence[Mapping[str, Any]], group: str, folder: Path
) -> None:
    """Write the curves as one sheet, and log them metric by metric, since loggers show them small.

    Args:
        trainer: Whose loggers.
        history: What `read_history` returns.
        group: First part of the tags to draw; names the sheet.
        folder: Where the sheet goes.
    """
    save_figure(curves_figure(history, group=group), folder / f"{group}.png")
    if takes_pictures(trainer):
        for metric, figure in metric_figures(history, group=group):
            log_picture(trainer, f"{group}/curves/{metric}", figure, trainer.global_step)


def details_path(history: Path) -> Path:
    """The file of maps and spectra beside a history.

    Example:
        >>> details_path(Path("run/similarity.jsonl")).name
        'similarity.details.jsonl'
    """
    return history.with_name(f"{history.stem}.details.jsonl")


def _about(pair: LayerMap, kind: str) -> dict[str, str]:
    return {"group": pair.group, "comparison": pair.comparison, "kind": kind}


def _spectrum(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Singular values and percentiles of row entropies, each where it is defined."""
    with _quiet():
        found = alignment_spectrum(x, y)
    levels = torch.linspace(0, 1, _NUM_PERCENTILES, dtype=torch.float64, device=x.device)
    values = {
        "singular_values": found.singular_values,
        "row_entropy": torch.quantile(found.row_entropies, levels),
    }
    return {kind: v for kind, v in values.items() if len(v) and bool(v.isfinite().all())}


def _short(values: list[float]) -> list[float | None]:
    """As many digits as matter; JSON has null where a value is not finite."""
    return [float(f"{v:.{_DIGITS}g}") if math.isfinite(v) else None for v in values]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of undefined values: the evaluation has given them, with the places."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimilarityWarning)
        yield
