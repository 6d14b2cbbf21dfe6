"""`RepresentationRecorder`: writes a run's representations, as a reference for other runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from lightning.pytorch import LightningModule, Trainer

from hrsa_lightning.callbacks.base import Monitor, OnError
from hrsa_lightning.callbacks.inputs import prepare_models
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.io.files import numbered
from hrsa_lightning.similarity.extraction import (
    ExtractionArguments,
    Extractor,
    with_extraction_arguments,
)
from hrsa_lightning.similarity.layers import Layers
from hrsa_lightning.similarity.measurement import Measurement
from hrsa_lightning.similarity.trace import TraceWriter, can_record


class RepresentationRecorder(Monitor):
    """Records the pooled representations of chosen layers at chosen steps.

    The folder it writes is a `reference` for the `SimilarityMonitor` of another run, which compares
    itself with this one step for step. It holds safetensors and JSON, complete after every step.
    A run that resumes goes on with its trace, also where its logger makes a new folder.

    Args:
        folder: Where to write, relative to the run's folder or absolute; `NAME-v1` and so on where
            there is the trace of another run.
        probes: See `SimilarityMonitor`; the other run has to use the same.
        layers: See `SimilarityMonitor`, as for the others but `name`.
        arms: Attribute that holds the models.
        every_n_train_steps: How often to record.
        every_n_epochs: The same, in epochs.
        log_spaced: Record at steps that are further and further apart.
        on_error: What happens when a recording fails.
        name: First part of the tag of the seconds that recording took.
        forward: Runs a model on a batch.
        pooling: Of activations, to rows.
        mask: Which tokens count.
        exclude_first_token: Leave the first token out.
        tokenizer: Of probe texts.
        max_length: Most tokens of a probe text.
        batch_size: Probe texts per batch.
        label_key: Where batches hold labels.
        limit_probe_batches: Use so many batches of a loader.

    Raises:
        ConfigError: See `SimilarityMonitor`.
    """

    @with_extraction_arguments
    def __init__(
        self,
        folder: str | Path = "trace",
        probes: Any = None,
        layers: Layers = None,
        arms: str | None = None,
        *,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        log_spaced: bool | int | None = False,
        on_error: OnError = "warn",
        name: str = "recorder",
        **extraction: Unpack[ExtractionArguments],
    ) -> None:
        self._target = Path(folder)
        self._arms = arms
        self._extractor = Extractor(probes, layers, **extraction)
        schedule = Schedule(every_n_train_steps, every_n_epochs, log_spaced)
        super().__init__(name, schedule, None, on_error)

    def check(self, arms: Sequence[str]) -> None:
        self._extractor.check()

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        prepare_models(self._extractor, self, trainer, pl_module, self._arms)

    def begin(self, restored: dict[str, Any]) -> None:
        self._writer: TraceWriter | None = None
        self._restored_trace: str | None = restored.get("trace")

    def remember(self) -> dict[str, Any]:
        written = None if self._writer is None else str(self._writer.folder.absolute())
        return {"trace": written or self._restored_trace}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        recording = self._extractor.extract()
        with self.ranks.raise_on_all_ranks():
            if self.ranks.rank == 0 and self.folder is not None:
                self._writer = self._writer or self._open(self.folder / self._target)
                self._writer.add(trainer.global_step, recording)
        return []

    def _open(self, wanted: Path) -> TraceWriter:
        resumes = self.first_step > 0
        names = numbered(wanted)
        folder = next(name for name in names if can_record(name, self.run, resumes=resumes))
        if folder != wanted:
            self.warn_once(f"{wanted} has the trace of another run; that of this one: {folder}")
        writer = TraceWriter(folder, self._extractor.fingerprints, self.run)
        if resumes:
            source = Path(self._restored_trace or folder)
            if self._previous is not None and (self._previous / self._target).is_dir():
                source = self._previous / self._target
            taken = writer.take_over(source, until=self.first_step)
            if self._restored_trace and not taken:
                self.warn_once(
                    f"the trace begins at step {self.first_step}: {str(source)!r} is gone or was "
                    "recorded on other probes"
                )
        return writer
