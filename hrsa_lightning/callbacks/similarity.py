"""`SimilarityMonitor`: how similar a model in training is to its start, its siblings, any model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hrsa_lightning.callbacks.base import DRAWING_SECONDS, Monitor, OnError
from hrsa_lightning.callbacks.comparing import MIN_SAMPLES, Comparer, Result, variance_shares
from hrsa_lightning.callbacks.pictures import LayerMap, Pictures
from hrsa_lightning.callbacks.probing import Probing
from hrsa_lightning.callbacks.referencing import INITIAL, ReferenceBook
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.callbacks.store import StoreOn
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.representations.capture import CaptureOptions, Forward, Snapshot
from hrsa_lightning.representations.pooling import PoolingMethod
from hrsa_lightning.representations.probes import Tokenizer
from hrsa_lightning.representations.reference import Comparison, parse_references

__all__ = ["SimilarityMonitor"]


class _Job(NamedTuple):
    """One pair of matrices to compare, and where its values go."""

    probes: str
    comparison: str
    where: str
    x: Tensor
    y: Tensor
    labels: Tensor | None
    frozen: bool  # the same y will come again


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
            function of activation and mask, or a mapping from layer names to these.
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
        max_overhead: Most time that evaluations and pictures may take, as a share of training time;
            the first and the last evaluation are always made.
        heatmap_every_n_evaluations: Rhythm of the layer-by-layer heatmaps and pictures; 0 for none.
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
        if probes is None:
            raise ConfigError("probes: expected the inputs on which to compare, got none")
        if store not in ("cpu", "device", "disk"):
            raise ConfigError(f"store: expected 'cpu', 'device' or 'disk', got {store!r}")
        if history == "similarity.jsonl" and name != "similarity":
            history = f"{name}.jsonl"
        self._probing = Probing(
            probes,
            layers,
            arms,
            CaptureOptions(forward, pooling, mask, exclude_first_token),
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            label_key=label_key,
            limit_batches=limit_probe_batches,
            keep_on_device=store == "device",
        )
        self._book = ReferenceBook(parse_references(reference), self._probing, reference_layers)
        self._on_disk = store == "disk"
        self._metrics = metrics
        self._num_groups = num_jackknife_groups
        self._by_label = by_label
        self._progress_bar = progress_bar
        self._pictures = Pictures(name, heatmap_every_n_evaluations)
        self._comparisons: list[Comparison] = []
        self._comparer = Comparer(metrics, num_groups=num_jackknife_groups)
        self._labeled: dict[str, Comparer] = {}
        self._labels: dict[str, list[str]] = {}
        schedule = Schedule(every_n_train_steps, every_n_epochs, log_spaced, max_overhead)
        super().__init__(name, schedule, history, on_error)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._probing.prepare(trainer, pl_module, self.exchange)
        self._comparisons = self._book.comparisons()
        for name, probes in self._probing.probes.items():
            self._labels[name] = sorted(set(probes.labels or ()))
            num_classes = len(self._labels[name])
            if num_classes > 1:
                self._labeled[name] = Comparer(
                    self._metrics, num_classes=num_classes, num_groups=self._num_groups
                )

    def begin(self, restored: dict[str, Any]) -> None:
        self._floors: dict[str, float] = {}
        self._written_floors: dict[str, float] = {}
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
        with self.exchange.together():
            jobs, maps = self._plan(live, trainer.global_step)
            own = [self._work(job) for job in jobs[self.exchange.rank :: self.exchange.world_size]]
        per_rank = self.exchange.all(own)
        values: dict[str, float] = {}
        places: dict[str, list[str]] = {}
        for index, job in enumerate(jobs):
            result = per_rank[index % len(per_rank)][index // len(per_rank)]
            values |= {self._tag(job, metric): value for metric, value in result.values.items()}
            self._floors |= {self._tag(job, key): floor for key, floor in result.floors.items()}
            for note in result.notes:
                place = " of ".join(part for part in (job.where, job.comparison) if part)
                places.setdefault(note, []).append(place)
        for note, where in places.items():
            self.warn_once(note, f" (at {', '.join(where)}, step {trainer.global_step})")
        values |= self._shares(live)
        self._evaluations += 1
        if self.exchange.rank == 0:
            self._pictures.keep(maps, values, self._floors)
        return values

    def extras(self) -> dict[str, Any]:
        news = {tag: f for tag, f in self._floors.items() if tag not in self._written_floors}
        self._written_floors |= news
        return {"floors": news} if news else {}

    def publish(self, trainer: Trainer, step: int) -> None:
        draws = self.affords(DRAWING_SECONDS)
        self._pictures.publish(trainer, step, self._evaluations - 1, draws=draws)
        if self._progress_bar:
            trainer.progress_bar_metrics.update(self._pictures.headline())

    def finish(self, trainer: Trainer) -> None:
        self._pictures.finish(trainer, self.history_path, self.folder)

    def _plan(
        self, live: dict[str, dict[str, Snapshot]], step: int
    ) -> tuple[list[_Job], list[LayerMap]]:
        """All pairs of matrices to compare, the same on every rank."""
        jobs: list[_Job] = []
        maps: list[LayerMap] = []
        for comparison in self._comparisons:
            for name, arms in live.items():
                left = arms[comparison.arm]
                right = self._book.rows(comparison, name, live)
                if right is None:
                    if comparison.source == "trace":
                        self.warn_once(
                            f"{comparison.of!r} has nothing for some steps", f" ({step})"
                        )
                    continue
                missing = [where for where in left if where not in right]
                if missing:
                    self.warn_once(f"{comparison.of!r} has no {', '.join(missing)}; left out")
                shared = [where for where in left if where in right]
                maps.append(LayerMap(self._group(name), comparison.name, left, right))
                for where in shared:
                    jobs += self._jobs(name, comparison, where, left[where], right[where])
        return jobs, maps

    def _jobs(
        self, probes: str, comparison: Comparison, where: str, x: Tensor, y: Tensor
    ) -> list[_Job]:
        """The comparison over all samples, and one within each label where asked for."""
        frozen = comparison.source in ("initial", "frozen")
        labels = self._probing.probes[probes].labels
        if labels is None or len(labels) != len(x):
            return [_Job(probes, comparison.name, where, x, y, None, frozen)]
        classes = self._labels[probes]
        numbers = torch.tensor([classes.index(label) for label in labels])
        known = numbers if len(classes) > 1 else None
        jobs = [_Job(probes, comparison.name, where, x, y, known, frozen)]
        for number, label in enumerate(classes if self._by_label else ()):
            rows = (numbers == number).to(x.device)
            if int(rows.sum()) >= MIN_SAMPLES:
                place = f"{where}/{label}"
                jobs.append(_Job(probes, comparison.name, place, x[rows], y[rows], None, frozen))
        return jobs

    def _work(self, job: _Job) -> Result:
        # float64, which the metrics need, does not exist on MPS.
        device = job.x.device if self._probing.device.type == "mps" else self._probing.device
        x, y = job.x.to(device), job.y.to(device)
        key = (job.probes, job.comparison, job.where) if job.frozen else None
        if job.labels is None:
            return self._comparer.compare(x, y, key=key)
        return self._labeled[job.probes].compare(x, y, job.labels.to(device), key)

    def _shares(self, live: dict[str, dict[str, Snapshot]]) -> dict[str, float]:
        """How much of the variance hangs on one sample or one dimension, per arm and layer."""
        return {
            "/".join(part for part in (self._group(name), metric, arm, where) if part): value
            for name, arms in live.items()
            for arm, snapshot in arms.items()
            for where, rows in snapshot.items()
            for metric, value in variance_shares(rows).items()
        }

    def _group(self, probes: str) -> str:
        return f"{self.name}.{probes}" if probes else self.name

    def _tag(self, job: _Job, metric: str) -> str:
        parts = (self._group(job.probes), metric, job.comparison, job.where)
        return "/".join(part for part in parts if part)
