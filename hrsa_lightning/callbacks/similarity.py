"""`SimilarityMonitor`: logs how similar a model in training is to its start or to other models."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from lightning.pytorch import LightningModule, Trainer

from hrsa_lightning.callbacks.base import Monitor, OnError, is_last_step
from hrsa_lightning.callbacks.figures import Figures
from hrsa_lightning.callbacks.inputs import prepare_models
from hrsa_lightning.callbacks.logging import log_projector
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.functional.permutation import NUM_PERMUTATIONS
from hrsa_lightning.metrics.heatmaps import HEATMAPS
from hrsa_lightning.similarity.evaluator import SimilarityEvaluator
from hrsa_lightning.similarity.extraction import (
    ExtractionArguments,
    Representations,
    with_extraction_arguments,
)
from hrsa_lightning.similarity.history import cut_history, details_path
from hrsa_lightning.similarity.layers import Layers
from hrsa_lightning.similarity.measurement import Measurement
from hrsa_lightning.similarity.references import INITIAL

StoreOn = Literal["cpu", "device", "disk"]


class SimilarityMonitor(Monitor):
    """Logs how similar the representations of a model in training are to a reference, live.

    Drop it into any trainer of `lightning.pytorch` or `pytorch_lightning`:

    ```python
    monitor = SimilarityMonitor(
        reference="initial", probes=probe_loader, layers=["encoder.layers.*", "output"],
        every_n_train_steps=50,
    )
    trainer = L.Trainer(callbacks=[monitor])
    ```

    It evaluates before the first step, on schedule, and at the end, with one forward pass per model
    over the probes. Training is bit for bit as it would be without it. Values are logged as
    `similarity/<metric>/<where>`, with several arms or references as
    `similarity/<metric>/<arm>_vs_<reference>/<where>`, and are there for `EarlyStopping` and
    `ModelCheckpoint` to monitor. A named probe set adds its name to the first part
    (`similarity.math/cka/output`), values by label add the label to the last
    (`similarity/cka/output/noun`).

    Args:
        reference: See `SimilarityEvaluator`; `"initial"` is the module before its first step.
        probes: See `SimilarityEvaluator`; also the name of a loader that the fit, the datamodule or
            the module has, `"val_dataloader"`, or `"val_dataloader:1"` where there are several.
            Batches of a loader pass the module's transfer hooks, as before a validation step.
        layers: See `SimilarityEvaluator`, as for all up to `num_jackknife_groups` but `arms`.
        arms: Attribute of the LightningModule that holds an `nn.ModuleDict` of models to compare.
        metrics: Names of HRSA metrics, or torchmetrics metrics.
        by_label: Also compare within each label of the probes.
        num_jackknife_groups: 5 or more draws a 95 % band.
        null: Permutations of the samples for the level that 95 % of unrelated pairings stay below
            and for a p-value, at the first and the last evaluation; 0 for none. With
            `max_overhead`, the last has them where they fit.
        every_n_train_steps: Evaluate every so many optimizer steps.
        every_n_epochs: Evaluate at the end of every so many epochs.
        log_spaced: Evaluate at steps 1, 2, 4, 8, …; a number gives the evaluations per doubling.
        max_overhead: Most time that the monitor may take, probes, references, history and pictures
            included, as a share of training time: later evaluations are put off until they fit.
            The first and the last are always made. Time spent before step 1 counts, and a run
            that ends above the share gives a warning.
        heatmap_every_n_evaluations: How often layer-by-layer heatmaps are drawn, and the spectrum
            of the Procrustes rotation at the output (or the last layer) where a Procrustes metric
            is among `metrics`; 0 for none, and for no pictures. Their numbers are kept at the first
            and the last evaluation, too, in a file beside the history, for the report.
        heatmaps: Which heatmaps: `"cka"`, `"cka_standardized"` (every feature brought to unit
            variance, where a massive dimension decides the other) and `"dimension_correlation"`,
            which is left out where layers differ in width.
        projector: Give TensorBoard's embedding projector the representations at the output (or the
            last layer), with labels and texts, at the end of the fit.
        reference_layers: See `SimilarityEvaluator`.
        store: Where representations of references are kept: `"cpu"`, `"device"` or `"disk"`. On
            disk they do not go into checkpoints.
        history: JSON lines file in the run's folder (or a path of its own), `None` for none.
        progress_bar: Show the first metric at the output in the progress bar.
        on_error: `"warn"` goes on training when a later evaluation fails, `"raise"` does not.
        name: First part of all tags and file names; needed where a trainer has two monitors.
        forward: `forward(module, batch)`, see `SimilarityEvaluator` as for those that follow.
        pooling: Of activations, to rows: `"mean"` and others, a function, or a mapping of layers.
        mask: Which tokens count: key or attribute of a batch, or a function of it.
        exclude_first_token: Leave out each sample's first token.
        tokenizer: Of probe texts.
        max_length: Most tokens of a probe text.
        batch_size: Probe texts or samples per batch.
        label_key: Where batches hold labels.
        limit_probe_batches: Use so many batches of each probe set.

    Raises:
        ConfigError: When an argument has no meaning; at the start of a fit also when a layer, arm
            or reference does not exist.
    """

    @with_extraction_arguments
    def __init__(
        self,
        reference: Any = INITIAL,
        probes: Any = None,
        layers: Layers = None,
        arms: str | None = None,
        *,
        metrics: Any = None,
        by_label: bool = False,
        num_jackknife_groups: int = 0,
        null: int = NUM_PERMUTATIONS,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        log_spaced: bool | int | None = False,
        max_overhead: float | None = None,
        heatmap_every_n_evaluations: int = 10,
        heatmaps: Sequence[str] = ("cka", "dimension_correlation"),
        projector: bool = False,
        reference_layers: Sequence[str] | None = None,
        store: StoreOn = "cpu",
        history: str | Path | None = "similarity.jsonl",
        progress_bar: bool = True,
        on_error: OnError = "warn",
        name: str = "similarity",
        **extraction: Unpack[ExtractionArguments],
    ) -> None:
        if store not in ("cpu", "device", "disk"):
            raise ConfigError(f"store: expected 'cpu', 'device' or 'disk', got {store!r}")
        unknown = [each for each in heatmaps if each not in HEATMAPS]
        if unknown or isinstance(heatmaps, str):
            raise ConfigError(
                f"heatmaps: expected a list of some of {', '.join(HEATMAPS)}, got {heatmaps!r}"
            )
        if history == "similarity.jsonl" and name != "similarity":
            history = f"{name}.jsonl"
        self.evaluator = SimilarityEvaluator(
            None,
            probes,
            layers,
            reference,
            metrics,
            by_label=by_label,
            num_jackknife_groups=num_jackknife_groups,
            null=null,
            reference_layers=reference_layers,
            keep_on_device=store == "device",
            **extraction,
        )
        self._arms = arms
        self._figures = Figures(name, heatmap_every_n_evaluations, heatmaps)
        self._on_disk = store == "disk"
        self._projector = projector
        self._progress_bar = progress_bar
        schedule = Schedule(every_n_train_steps, every_n_epochs, log_spaced, max_overhead)
        super().__init__(name, schedule, history, on_error)

    def check(self, arms: Sequence[str]) -> None:
        self.evaluator.check(arms)

    @property
    def names_comparisons(self) -> bool:
        comparisons = self.evaluator.comparisons
        return len(comparisons) > 1 or any(comparison.arm for comparison in comparisons)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        prepare_models(self.evaluator, self, trainer, pl_module, self._arms)
        self.evaluator.extractor.progress = self.say
        self._figures.named = self.names_comparisons

    def begin(self, restored: dict[str, Any]) -> None:
        self._live: Representations = {}
        self._evaluations = int(restored.get("evaluations", 0))
        self._calibration_seconds = float(restored.get("calibration_seconds", 0.0))
        self._to_restore: dict[str, Any] | None = restored
        self._figures.forget()

    def remember(self) -> dict[str, Any]:
        return {
            **self.evaluator.state_dict(),
            "evaluations": self._evaluations,
            "calibration_seconds": self._calibration_seconds,
        }

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        if self._to_restore is not None:
            folder = self.folder if self._on_disk else None
            self.evaluator.start(self._to_restore, folder, self.name, self._previous)
            self._to_restore = None
        before = self.evaluator.calibration_seconds
        found = self.evaluator.run(trainer.global_step, calibrate=self._calibrates(trainer))
        if (seconds := self.evaluator.calibration_seconds - before) > 0:
            self.budget.unusual = self._calibration_seconds = seconds
        self._evaluations += 1
        if self.ranks.rank == 0:
            self._figures.keep(trainer.global_step, found, self.evaluator.device)
            self._live = found.live if self._projector else {}
        return found.measurements

    def _calibrates(self, trainer: Trainer) -> bool:
        """At the first evaluation, and at the last where the budget has room for it."""
        if self._evaluations == 0:
            return True
        if not (self.is_ending or is_last_step(trainer)):
            return False
        return self.ranks.broadcast(self.budget.affords(self._calibration_seconds))

    def publish(self, trainer: Trainer, step: int) -> None:
        figures = self._figures
        if figures.is_due(self._evaluations - 1):
            if self._evaluations == 1 or self.budget.affords(figures.seconds):
                figures.write_details(self.history_path)
            if figures.has_heatmaps and self.budget.affords(self.budget.drawing):
                started = time.perf_counter()
                figures.publish(trainer, step)
                self.budget.drawing = max(self.budget.drawing, time.perf_counter() - started)
        if self._progress_bar:
            trainer.progress_bar_metrics.update(figures.headline())

    def conclude(self) -> None:
        self._figures.write_details(self.history_path)

    def join(self) -> str:
        if INITIAL not in {comparison.reference.name for comparison in self.evaluator.comparisons}:
            return ""
        return f": {INITIAL!r} is the model of this step, not that before training"

    def resume(self, source: Path, last_step: int) -> None:
        assert self.history_path is not None
        cut_history(details_path(source), details_path(self.history_path), last_step, self.run)

    def finish(self, trainer: Trainer) -> None:
        self._figures.finish(trainer, self.history_path, self.folder)
        if self._projector:
            log_projector(trainer, self.name, self._live, self.evaluator.extractor.probes)
