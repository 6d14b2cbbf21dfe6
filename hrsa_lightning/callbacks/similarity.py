"""`SimilarityMonitor`: how similar a model in training is to its start, its siblings, any model."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hrsa_lightning.callbacks.base import Monitor, OnError
from hrsa_lightning.callbacks.pictures import Pictures, details_path
from hrsa_lightning.callbacks.plan import ComparisonPlan
from hrsa_lightning.callbacks.probing import Probing
from hrsa_lightning.callbacks.projector import log_projector
from hrsa_lightning.callbacks.referencing import INITIAL, Live, ReferenceBook
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.callbacks.store import StoreOn
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.representations.capture import Forward
from hrsa_lightning.representations.history import cut_history
from hrsa_lightning.representations.pooling import PoolingMethod
from hrsa_lightning.representations.probes import Tokenizer
from hrsa_lightning.representations.reference import parse_references

__all__ = ["SimilarityMonitor"]


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

    It evaluates before the first step, at its rhythm, and at the end, with one forward pass per
    model over the probes. Training is bit for bit as it would be without it. Values are logged as
    `similarity/<metric>/<where>`, with several arms or references as
    `similarity/<metric>/<arm>_vs_<reference>/<where>`, and are there for `EarlyStopping` and
    `ModelCheckpoint` to monitor. A named probe set adds its name to the first part
    (`similarity.math/cka/output`), values by label add the label to the last
    (`similarity/cka/output/noun`).

    Args:
        reference: What to compare with: `"initial"` (the module before its first step), an
            `nn.Module`, a folder or hub id that transformers' `AutoModel` loads, a checkpoint file,
            a folder that `RepresentationRecorder` wrote (compared step for step), and with `arms`
            also `"arm:NAME"` or `"pairs"` (every arm with every other); or a sequence of these, or
            a mapping from names to these. A model is run once and let go.
        probes: The fixed inputs: a `DataLoader` or list of batches (read once), the name of a
            loader method of the datamodule or module, a tensor, texts, records with `text` and
            `label`, the path of a JSONL file of these, or a mapping from names to any of these.
        layers: Names or globs over `named_modules()`, and `"output"` (or `"output.KEY"`) for what
            the forward call returns. `*` stays between dots, `**` crosses them.
        arms: Attribute of the LightningModule that holds an `nn.ModuleDict` of models to compare.
        forward: `forward(module, batch)`; the default calls the module with a mapping's matching
            keys, or with the first entries of a tuple, as many as `forward` requires.
        pooling: `"mean"`, `"first"` (`"cls"`), `"last"`, `"flatten"`, `"none"` (tokens as rows), a
            function of activation and mask, or a mapping from layer names to these. Three
            dimensions are read as (samples, tokens, features), four and more as images with
            channels first; signals with channels first need a function.
        mask: Key of the token mask in a batch, or a function of the batch; the default takes
            `pool_mask` or `attention_mask` where there is one.
        exclude_first_token: Leave out each sample's first token, which in LLMs often outweighs all.
        metrics: Names of HRSA metrics, or torchmetrics metrics with `update(x, y)`; the default is
            the whole HRSA set.
        by_label: Also compare within each label of the probes.
        num_jackknife_groups: 5 or more draws a 95 % band from leaving out so many groups in turn.
        every_n_train_steps: Evaluate every so many optimizer steps.
        every_n_epochs: Evaluate at the end of every so many epochs.
        log_spaced: Evaluate at steps 1, 2, 4, 8, …; a number gives the evaluations per doubling.
        max_overhead: Most time that the monitor may take, probes, references, history and pictures
            included, as a share of training time: later evaluations are put off until they fit.
            The first and the last are always made. The first comes before any training: what it
            took has to be earned before the second. What is over the share at the end is said.
        heatmap_every_n_evaluations: Rhythm of the layer-by-layer heatmaps, and of the spectrum of
            the Procrustes rotation at the output (or the last layer) where a Procrustes metric is
            among `metrics`; 0 for none, and for no pictures. Their numbers are kept at the first
            and the last evaluation, too, in a file beside the history, for the report.
        projector: Give TensorBoard's embedding projector the representations at the output (or the
            last layer), with labels and texts, at the end of the fit.
        reference_layers: Layers of the reference, one for each of `layers` as matched, where it
            names them otherwise.
        store: Where representations of references are kept: `"cpu"`, `"device"` or `"disk"`. On
            disk they do not go into checkpoints.
        history: JSON lines file in the run's folder (or a path of its own), `None` for none.
        tokenizer: `tokenizer(texts) -> batch`, for text probes; the default is the model's own
            method `probe_batch(texts, max_length)`.
        max_length: Most tokens of a text, for models that tokenize themselves.
        batch_size: Samples per batch, for texts and tensors.
        label_key: Key or position of the labels in a probe batch.
        limit_probe_batches: At most so many batches of each probe set.
        progress_bar: Show the first metric at the output in the progress bar.
        on_error: `"warn"` goes on training when an evaluation fails, `"raise"` does not.
        name: First part of all tags and file names; needed where a trainer has two monitors.

    Raises:
        ConfigError: When an argument has no meaning; at the start of a fit also when a layer, arm
            or reference does not exist.
    """

    def __init__(
        self,
        reference: Any = INITIAL,
        probes: Any = None,
        layers: Sequence[str] = ("output",),
        arms: str | None = None,
        *,
        forward: Forward | None = None,
        pooling: PoolingMethod | Mapping[str, PoolingMethod] = "mean",
        mask: str | Callable[[Any], Tensor] | None = None,
        exclude_first_token: bool = False,
        metrics: Any = None,
        by_label: bool = False,
        num_jackknife_groups: int = 0,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        log_spaced: bool | int = False,
        max_overhead: float | None = None,
        heatmap_every_n_evaluations: int = 10,
        projector: bool = False,
        reference_layers: Sequence[str] | None = None,
        store: StoreOn = "cpu",
        history: str | Path | None = "similarity.jsonl",
        tokenizer: Tokenizer | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        label_key: str | int | None = None,
        limit_probe_batches: int | None = None,
        progress_bar: bool = True,
        on_error: OnError = "warn",
        name: str = "similarity",
    ) -> None:
        if store not in ("cpu", "device", "disk"):
            raise ConfigError(f"store: expected 'cpu', 'device' or 'disk', got {store!r}")
        if history == "similarity.jsonl" and name != "similarity":
            history = f"{name}.jsonl"
        self._probing = Probing(
            probes,
            layers,
            arms,
            forward=forward,
            pooling=pooling,
            mask=mask,
            exclude_first_token=exclude_first_token,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            label_key=label_key,
            limit_batches=limit_probe_batches,
            keep_on_device=store == "device",
        )
        self._book = ReferenceBook(parse_references(reference), self._probing, reference_layers)
        self._plan = ComparisonPlan(
            name, self._probing, self._book, metrics, num_jackknife_groups, by_label
        )
        self._pictures = Pictures(name, heatmap_every_n_evaluations)
        self._on_disk = store == "disk"
        self._projector = projector
        self._progress_bar = progress_bar
        schedule = Schedule(every_n_train_steps, every_n_epochs, log_spaced, max_overhead)
        super().__init__(name, schedule, history, on_error)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._probing.prepare(trainer, pl_module, self.exchange)
        self._plan.prepare()

    def begin(self, restored: dict[str, Any]) -> None:
        self._floors: dict[str, float] = {}
        self._live: Live = {}
        self._evaluations = int(restored.get("evaluations", 0))
        self._restored_book: dict[str, Any] | None = restored
        self._pictures.forget()

    def remember(self) -> dict[str, Any]:
        return {**self._book.state(), "evaluations": self._evaluations}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        starts = self._restored_book is not None
        if self._restored_book is not None:
            folder = self.folder if self._on_disk else None
            self._book.open(folder, self.name, self._restored_book)
            self._restored_book = None
        live = self._probing.look()
        self._book.fill(live, trainer.global_step, starts=starts)
        if self._book.lost:
            self.warn_once(f"comparisons with the start are left out: {self._book.lost}")
        found = self._plan.run(live, trainer.global_step)
        for note, details in found.notes.items():
            self.warn_once(note, details)
        self._floors |= found.floors
        self._evaluations += 1
        if self.exchange.rank == 0:
            self._pictures.keep(trainer.global_step, found.maps, found.values, self._plan.device)
            self._live = live if self._projector else {}
        return found.values

    def floors(self) -> dict[str, float]:
        return self._floors

    def publish(self, trainer: Trainer, step: int) -> None:
        pictures = self._pictures
        if pictures.is_due(self._evaluations - 1):
            if self._evaluations == 1 or self.budget.affords(pictures.seconds):
                pictures.write(self.history_path)
            if pictures.has_heatmaps and self.budget.affords(self.budget.drawing):
                started = time.perf_counter()
                pictures.publish(trainer, step)
                self.budget.drawing = max(self.budget.drawing, time.perf_counter() - started)
        if self._progress_bar:
            trainer.progress_bar_metrics.update(self._pictures.headline())

    def conclude(self) -> None:
        self._pictures.write(self.history_path)

    def resume(self, source: Path, last_step: int) -> None:
        assert self.history_path is not None
        cut_history(details_path(source), details_path(self.history_path), last_step)

    def finish(self, trainer: Trainer) -> None:
        self._pictures.finish(trainer, self.history_path, self.folder)
        if self._projector:
            log_projector(trainer, self.name, self._live, self._probing.probes)
