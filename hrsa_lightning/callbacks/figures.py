"""Curves, heatmaps and spectra of a similarity monitor, and the numbers behind them."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from hrsa_lightning.callbacks.logging import log_picture, tag_of, takes_pictures
from hrsa_lightning.functional import SimilarityWarning
from hrsa_lightning.functional.procrustes import alignment_spectrum
from hrsa_lightning.metrics.heatmaps import layer_heatmaps
from hrsa_lightning.metrics.procrustes import KEYS
from hrsa_lightning.plots import (
    curves_figure,
    has_distances,
    heatmap_figure,
    metric_figures,
    save_figure,
)
from hrsa_lightning.similarity.evaluator import ComparedPair, SimilarityEvaluation
from hrsa_lightning.similarity.history import Detail, append_record, details_path, read_history
from hrsa_lightning.similarity.measurement import Measurement, headline_layer
from hrsa_lightning.similarity.metric_info import info_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_NUM_PERCENTILES = 101
_DIGITS = 6


class Figures:
    """Draws what a monitor measured, and records what heatmaps and spectra show; on rank 0.

    Args:
        name: Of the monitor.
        every: Heatmaps and spectra at every so many evaluations, from the first, and at the end; 0
            for none.
        heatmaps: Which heatmaps, names of `hrsa_lightning.metrics.heatmaps.HEATMAPS`.

    Attributes:
        named: Whether tags and file names say what is compared with what.
        seconds: Duration of the latest call of `write_details` that wrote anything.
    """

    def __init__(self, name: str, every: int, heatmaps: Sequence[str]) -> None:
        self._name = name
        self._every = every
        self._kinds = heatmaps
        self.named = True
        self.seconds = 0.0
        self.forget()

    def forget(self) -> None:
        """Drop what was kept, for a new fit."""
        self._step = -1
        self._pairs: list[ComparedPair] = []
        self._measurements: list[Measurement] = []
        self._device = torch.device("cpu")
        self._grids: list[tuple[ComparedPair, str, list[list[float]]]] | None = None
        self._written_at = -1
        self._drawn_at = -1
        self._drawn: list[tuple[str, Figure]] = []

    def keep(self, step: int, found: SimilarityEvaluation, device: torch.device) -> None:
        """Take over the results of an evaluation; rotations are fitted on `device`."""
        self._step = step
        self._pairs = found.pairs if self._every else []
        self._measurements = found.measurements
        self._device = device
        self._grids = None

    def is_due(self, evaluation: int) -> bool:
        """Whether heatmaps and spectra are wanted at an evaluation, counted from 0."""
        return bool(self._every) and evaluation % self._every == 0

    @property
    def has_heatmaps(self) -> bool:
        """Whether the latest evaluation has several layers to set against each other."""
        return any(len(pair.live) > 1 or len(pair.other) > 1 for pair in self._pairs)

    def write_details(self, history: Path | None) -> None:
        """Add maps and spectra of the latest evaluation to the file of details, once."""
        if history is None or not self._every or self._step == self._written_at:
            return
        started = time.perf_counter()
        self._written_at = self._step
        for record in self._details():
            append_record(details_path(history), record)
        self.seconds = time.perf_counter() - started

    def publish(self, trainer: Trainer, step: int) -> None:
        """Send the heatmaps to the loggers."""
        self._drawn_at, self._drawn = step, self._heatmaps()
        for tag, figure in self._drawn:
            log_picture(trainer, tag, figure, step)

    def finish(self, trainer: Trainer, history: Path | None, folder: Path | None) -> None:
        """Write PNG files beside the history, and log them."""
        if not self._every or folder is None:
            return
        step = trainer.global_step
        target = folder if history is None else history.parent
        if step != self._drawn_at:
            self.publish(trainer, step)
        for tag, figure in self._drawn:
            save_figure(figure, target / f"{tag.replace('/', '_')}.png")
        self._drawn = []
        if history is None or not history.is_file():
            return
        finish_curves(trainer, read_history(history), self._name, target)

    def headline(self) -> dict[str, float]:
        """The first metric at the output, by comparison, for a progress bar; at most three."""
        at_output = [m for m in self._measurements if (m.layer, m.label) == ("output", "")]
        chosen = [m for m in at_output if m.metric == at_output[0].metric][:3]
        return {
            f"{m.metric} {m.arm or 'live'}|{m.reference}" if self.named else m.metric: m.value
            for m in chosen
        }

    def _heatmaps(self) -> list[tuple[str, "Figure"]]:
        found = []
        for pair, kind, grid in self._layer_by_layer():
            arm = pair.arm or "live"
            figure = heatmap_figure(
                grid,
                list(pair.live),
                list(pair.other),
                title=f"{arm} vs {pair.reference}",
                row_label=arm,
                column_label=pair.reference,
                label=info_of(kind).title,
            )
            name = "heatmap" if kind == "cka" else f"heatmap_{kind}"
            about = Measurement(name, 0.0, None, pair.probes, pair.arm, pair.reference)
            found.append((tag_of(self._name, about, named=self.named), figure))
        return found

    def _layer_by_layer(self) -> list[tuple[ComparedPair, str, list[list[float]]]]:
        """Maps of all pairs of layers, where there are several; found once for all uses."""
        if self._grids is None:
            with _quiet():
                self._grids = [
                    (pair, kind, heatmap.tolist())
                    for pair in self._pairs
                    if len(pair.live) > 1 or len(pair.other) > 1
                    for kind, heatmap in layer_heatmaps(
                        list(pair.live.values()), list(pair.other.values()), self._kinds
                    ).items()
                ]
        return self._grids

    def _details(self) -> Iterator[Detail]:
        for pair, kind, grid in self._layer_by_layer():
            rows = [_short(row) for row in grid]
            yield self._detail(pair, kind, rows)._replace(
                rows=list(pair.live), columns=list(pair.other)
            )
        if not any(m.metric in KEYS for m in self._measurements):
            return  # nobody asked about rotations, which take the longest
        for pair in self._pairs:
            layers = [layer for layer in pair.live if layer in pair.other]
            if layers:
                layer = headline_layer(layers)
                x, y = (side[layer].to(self._device) for side in (pair.live, pair.other))
                for kind, values in _spectrum(x, y).items():
                    yield self._detail(pair, kind, _short(values.tolist()), layer)

    def _detail(self, pair: ComparedPair, kind: str, values: list[Any], layer: str = "") -> Detail:
        return Detail(
            self._step,
            kind,
            values,
            pair.probes,
            pair.arm,
            pair.reference,
            layer,
            monitor=self._name,
        )


def finish_curves(
    trainer: Trainer, measurements: Sequence[Measurement], name: str, folder: Path
) -> None:
    """Write the curves as one sheet, and log them metric by metric, since loggers show them small.

    Where curves crowd at identity, there is a second sheet, of their distances from it.

    Args:
        trainer: Whose loggers.
        measurements: Of the whole run.
        name: Of the monitor; begins tags and the names of the sheets, one per probe set.
        folder: Where the sheets go.
    """
    for probes in dict.fromkeys(m.probes for m in measurements):
        group = f"{name}.{probes}" if probes else name
        crowded = has_distances(measurements, probes=probes)
        if not crowded:  # any more, since a run that was interrupted
            (folder / f"{group}_distance.png").unlink(missing_ok=True)
        for distance in (False, True) if crowded else (False,):
            sheet = curves_figure(measurements, title=group, probes=probes, distance=distance)
            save_figure(sheet, folder / f"{group}{'_distance' if distance else ''}.png")
            if not takes_pictures(trainer):
                continue
            kind = "distance" if distance else "curves"
            for metric, figure in metric_figures(measurements, probes=probes, distance=distance):
                log_picture(trainer, f"{group}/{kind}/{metric}", figure, trainer.global_step)


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


def _short(values: list[float]) -> list[float]:
    """As many digits as matter."""
    return [float(f"{value:.{_DIGITS}g}") for value in values]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of undefined values, which the evaluation has given already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimilarityWarning)
        yield
