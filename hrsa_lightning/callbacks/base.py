"""`Monitor`: base class of callbacks that evaluate the model in training and log what they find."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from hrsa_lightning.callbacks.folder import RunFolder, close_run_folder, open_run_folder
from hrsa_lightning.callbacks.logging import log_measurements
from hrsa_lightning.callbacks.progress import StepProgressBar
from hrsa_lightning.callbacks.schedule import Budget, Schedule
from hrsa_lightning.callbacks.tensorboard import close_runs
from hrsa_lightning.errors import (
    ConfigError,
    HRSAError,
    HRSAWarning,
    first_line,
    shown,
)
from hrsa_lightning.io.distributed import Ranks
from hrsa_lightning.io.files import NAME_RULE, is_name, is_path_of_file
from hrsa_lightning.similarity.history import (
    Evaluation,
    append_record,
    cut_history,
    has_other_run,
    reserve_history,
)
from hrsa_lightning.similarity.isolation import lazy_weight_of, preserve_training_state
from hrsa_lightning.similarity.measurement import Measurement

OnError = Literal["warn", "raise"]

_AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}
"""Lightning's callbacks that put averaged weights into the module, of either package."""


class Monitor(Callback, ABC):
    """A callback that schedules evaluations, restores training state, and logs measurements.

    A subclass says how to prepare and how to measure. It is evaluated before the first training
    step, on schedule, and at the end of the fit. What cannot ever work (an `HRSAError` of the first
    evaluation) ends the fit; later errors are warnings, unless `on_error="raise"`. Weights of lazy
    modules are drawn by the first training step: the first evaluation waits until then, and comes
    before the optimizer's. Values go to all loggers, to
    `trainer.callback_metrics` and to a file of JSON lines; the training run is bit for bit what it
    would be without it.

    ```python
    class NormMonitor(Monitor):
        def __init__(self, every_n_train_steps):
            super().__init__("norms", Schedule(every_n_train_steps), "norms.jsonl", "warn")

        def prepare(self, trainer, pl_module):
            self.weights = dict(pl_module.named_parameters())

        def measure(self, trainer, pl_module):
            return [
                Measurement("norm", float(weight.norm()), layer=name)
                for name, weight in self.weights.items()
            ]
    ```

    logs `norms/norm/<name>`.

    Args:
        name: Begins every tag and file name; two monitors of a trainer need different names.
        schedule: When to evaluate.
        history: File name in the run's folder, or a path; `None` writes no file. Where another run
            has such a file, it is `NAME-v1.jsonl` and so on.
        on_error: Whether a failed evaluation warns and training goes on, or raises.

    Attributes:
        ranks: Processes that take part, from the start of a fit.
        folder: The run's folder, where it has one.
        run: Id of the run; one that resumes keeps it.
        first_step: Optimizer step at which the current fit began; above 0 where it resumed.
        latest: Measurements of the latest evaluation.
        is_ending: Whether the fit has ended but for the last evaluation.

    Raises:
        ConfigError: When `on_error` is neither `warn` nor `raise`.
    """

    def __init__(
        self, name: str, schedule: Schedule, history: str | Path | None, on_error: OnError
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise ConfigError(f"on_error: expected 'warn' or 'raise', got {on_error!r}")
        if history is not None and not is_path_of_file(history):
            raise ConfigError(f"history: expected the name or path of a file, got {str(history)!r}")
        if not is_name(name):
            raise ConfigError(f"name: expected {NAME_RULE}, got {shown(name)}")
        self.name = name
        self.schedule = schedule
        self.budget = Budget(schedule.max_overhead)
        self.ranks = Ranks(1, 0)
        self._history = history
        self._on_error = on_error
        self._restored: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._preparing = 0.0
        self._is_attached = self._waits = False
        self._forget()

    @abstractmethod
    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve what the user named. Called in isolation, before any evaluation of a fit.

        Args:
            trainer: The trainer of the fit.
            pl_module: What it trains.
        """

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Evaluate, in evaluation mode and without gradients; the same on all ranks.

        Args:
            trainer: The trainer of the fit.
            pl_module: What it trains.

        Returns:
            The values; their steps need not be set.
        """

    @property
    def names_comparisons(self) -> bool:
        """Whether tags say what is compared with what."""
        return True

    def publish(self, trainer: Trainer, step: int) -> None:
        """Write pictures and the like to `trainer`'s loggers; called on rank 0 only.

        Args:
            trainer: The trainer of the fit.
            step: Optimizer step of the evaluation.
        """

    def conclude(self) -> None:
        """Write what is kept of the last evaluation only; called on rank 0 only."""

    def finish(self, trainer: Trainer) -> None:
        """Draw what the end of the fit of `trainer` leaves behind; called on rank 0 only."""

    def resume(self, source: Path, last_step: int) -> None:
        """Take over what stands beside a history, up to a step; called on rank 0 only.

        Args:
            source: The history of the run that was interrupted, as for `cut_history`.
            last_step: Later records are dropped.
        """

    def join(self) -> str:
        """What it means for a monitor that the checkpoint of a resumed run does not know it."""
        return ""

    def begin(self, restored: dict[str, Any]) -> None:
        """Start from nothing, or from what a checkpoint remembers, before the first evaluation.

        Args:
            restored: What `remember` gave when the checkpoint was written; empty without one.
        """

    def remember(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `begin` to go on from it."""
        return {}

    def check(self, arms: Sequence[str]) -> None:
        """Refuse what needs no model to be refused; a recipe's commands call it.

        Args:
            arms: Names of the models; one without name where there are no arms.

        Raises:
            HRSAError: The message begins with the argument.
        """

    @property
    def state_key(self) -> str:
        # A trainer refuses equal keys before it calls `setup`, which says what to do about them.
        own = {} if self._is_attached else {"id": id(self)}
        return self._generate_state_key(name=self.name, **own)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if any(kind.__name__ == "FSDPStrategy" for kind in type(trainer.strategy).__mro__):
            raise ConfigError(
                f"{self.name}: FSDPStrategy keeps weights where a call of the module itself does "
                "not find them; shard with ModelParallelStrategy (FSDP2) instead"
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        names = [each.name for each in callbacks if isinstance(each, Monitor)]
        if names.count(self.name) > 1:
            raise ConfigError(
                f"name: two monitors of the trainer are called {self.name!r}; give one of them "
                f"another, such as name='{self.name}_2'"
            )
        self._is_attached = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = time.perf_counter()
        close_run_folder(trainer)
        close_runs(trainer)
        sampler: dict[str, int] = (
            getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        )
        self.ranks = Ranks(
            trainer.world_size,
            trainer.global_rank,
            sampler.get("num_replicas"),
            sampler.get("rank"),
            pl_module.device,
        )
        with preserve_training_state(*_without_lazy(pl_module)):
            self.prepare(trainer, pl_module)
        if self.schedule.is_empty:
            rank_zero_info(
                f"{self.name}: evaluates before the first step and at the end only; give "
                "every_n_train_steps=, every_n_epochs=, log_spaced= or max_overhead= for more"
            )
        self._preparing = time.perf_counter() - started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = time.perf_counter()
        step = trainer.global_step
        if step == 0:
            if self._restored is not None and self._restored["last_step"] > 0:
                self.warn_once(
                    "training begins at step 0 with the weights of a checkpoint, which are"
                    " 'initial' here (does a LearningRateFinder or BatchSizeFinder run before it?)"
                )
            self._forget()
            self._restored = None
        restored, self._restored = self._restored or {}, None
        self.first_step = step
        self.is_ending = False
        self._epoch = restored.get("epoch", trainer.current_epoch)
        self._open_folder(trainer, restored)
        self._averages = _follow_averaging(trainer, self)
        opening = time.perf_counter() - started
        self.budget.start(step, restored, spent=self._preparing + opening)
        self._waits = self._last_step < 0 and lazy_weight_of(pl_module) is not None
        if self._last_step < 0 and not self._waits:
            self._evaluate(trainer, pl_module, starts=True)
        elif step and trainer.is_last_batch and not trainer.fit_loop.done:
            # An epoch that was left between its last step and its end has no end anymore.
            self._evaluate_epoch(trainer, pl_module, trainer.current_epoch - 1)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self._waits:
            self._waits = False
            self._evaluate(trainer, pl_module, starts=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch = trainer.current_epoch
        with self.budget.spending():
            step = self.budget.step = trainer.global_step
            due = step != self._last_step and self.schedule.is_due(step) and self._permitted(step)
        if due and not (self._averages and is_last_step(trainer)):
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self._averages and is_last_step(trainer)):
            self._evaluate_epoch(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_ending = True
        step = trainer.global_step
        # One before the end was without the average, one before a resume has left no pictures.
        if step != self._evaluated_at or self._averages:
            if step == self._last_step and trainer.is_global_zero and self.history_path is not None:
                cut_history(self.history_path, self.history_path, step - 1, self.run)
                self.resume(self.history_path, step - 1)
            self._evaluate(trainer, pl_module)
        self._finish(trainer)
        if not self.budget.affords():
            self.warn_once(
                f"took more than max_overhead={self.budget.share} of the training time: the run is "
                "short for the first and the last evaluation, which are always made"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._finish(trainer)

    def state_dict(self) -> dict[str, Any]:
        if (
            self._restored is not None
        ):  # not begun yet, as where Lightning's tuner saves and restores
            return self._restored
        return {
            **self.budget.state(),
            "last_step": self._last_step,
            "epoch": self._epoch,
            "next_step": self.schedule.next_step,
            **self._place,
            **self.remember(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def warn_once(self, message: str, details: str = "") -> None:
        """Warn on rank 0, unless this monitor gave the same message before, with any details."""
        if message not in self._warned and self.ranks.rank == 0:
            self._warned.add(message)
            warnings.warn(f"{self.name}: {message}{details}", HRSAWarning, stacklevel=2)

    def _forget(self) -> None:
        self.run = ""
        self.folder: Path | None = None
        self._previous: Path | None = None
        self.history_path: Path | None = None
        self.first_step = 0
        self.is_ending = False
        self._averages = False
        self.latest: list[Measurement] = []
        self._say: Callable[[str], None] | None = None
        self._last_step = self._evaluated_at = -1
        self._epoch = 0
        self.schedule.put_off(0)
        self.begin({})

    def _open_folder(self, trainer: Trainer, restored: dict[str, Any]) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            self._open_run(trainer, restored)
        if restored:
            self._last_step = restored["last_step"]
            self.schedule.put_off(restored["next_step"])
            self.begin(restored)
        elif self.first_step > 0 and self._last_step < 0:
            self.warn_once(
                f"begins at step {self.first_step}, since the checkpoint was written without it"
                f"{self.join()}"
            )
        if self.folder is None or self._history is None:
            return
        known = restored.get("history") or self.history_path
        self.history_path = self.folder / self._history
        with self.ranks.raise_on_all_ranks():
            if trainer.is_global_zero:
                self._go_on(self.history_path, known and Path(known))
        self._last_step = self.ranks.broadcast(self._last_step)

    def _open_run(self, trainer: Trainer, restored: dict[str, Any]) -> None:
        opened: RunFolder | None = None
        with self.ranks.raise_on_all_ranks():
            if trainer.is_global_zero:
                monitors = [m for m in trainer.callbacks if isinstance(m, Monitor)]  # type: ignore[attr-defined]
                states = [restored, *(m._restored or m._place for m in monitors)]
                histories = [m._history for m in monitors if m._history and not m._is_elsewhere]
                opened = open_run_folder(trainer, states if self.first_step else [], histories)
        opened = self.ranks.broadcast(opened)
        assert opened is not None
        self.folder, self.run, self._previous, displaced = opened
        if displaced is not None:
            self.warn_once(
                f"{displaced} has files of another run; those of this one: {self.folder}"
            )

    @property
    def _is_elsewhere(self) -> bool:
        """Whether the history is a file that the user has chosen, and not one of the folder."""
        return self._history is not None and Path(self._history).is_absolute()

    @property
    def _place(self) -> dict[str, Any]:
        paths = {"folder": self.folder, "history": self.history_path}
        absolute = {name: path and str(path.absolute()) for name, path in paths.items()}
        return {"run": self.run, **absolute}

    def _go_on(self, path: Path, known: Path | None) -> None:
        """Go on with the history of an interrupted run, or begin one.

        Args:
            path: Of this run's history, as far as it is not that of another one.
            known: Where the history was before.
        """
        resumes = self.first_step > 0
        source = target = path
        if not self._is_elsewhere:
            source = (self._previous or path.parent) / str(self._history)
        elif not resumes or has_other_run(path, self.run):
            is_own = resumes and known is not None and not has_other_run(known, self.run)
            source = target = known if known and is_own else reserve_history(path)
            if target != path:
                self.warn_once(f"{path} is of another run; that of this one: {target}")
        elif known is not None and known.is_file():
            source = known
        self.history_path = target
        if not resumes:
            return
        if known is not None and not source.is_file() and self._last_step >= 0:
            self.warn_once(f"the history begins at step {self.first_step}: {known} is gone")
        kept = cut_history(source, target, self.first_step, self.run)
        self.resume(source, self.first_step)
        self._last_step = max([self._last_step, *kept])

    def _evaluate(
        self, trainer: Trainer, pl_module: LightningModule, *, starts: bool = False
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # queued training steps are no overhead
        step = self.budget.step = trainer.global_step
        with self.budget.evaluating(), _described(trainer, f"measuring {self.name}") as self._say:
            started = time.perf_counter()
            try:
                with preserve_training_state(pl_module):
                    _mute(pl_module)
                    measurements = self.measure(trainer, pl_module)
                self.latest = [m._replace(step=step) for m in measurements]
                seconds = self.ranks.broadcast(time.perf_counter() - started)
                with self.ranks.raise_on_all_ranks():
                    self._write(trainer, pl_module, seconds)
            except Exception as error:
                # Before the first step a mistake of the user can still be mended at no loss.
                if self._on_error == "raise" or (starts and isinstance(error, HRSAError)):
                    raise
                self.warn_once(
                    f"no values, training goes on ({type(error).__name__}: {first_line(error)})",
                    f", first at step {step}",
                )
            finally:
                self._say = None
        self._last_step = self._evaluated_at = step
        self.schedule.advance(step)

    def say(self, detail: str) -> None:
        """Show how far an evaluation has come, where a `StepProgressBar` says that there is one.

        Args:
            detail: Added to what the bar says, such as `base 3 of 41`.
        """
        if self._say is not None:
            self._say(detail)

    def _write(self, trainer: Trainer, pl_module: LightningModule, seconds: float) -> None:
        step = trainer.global_step
        log_measurements(
            trainer,
            self.name,
            self.latest,
            step,
            named=self.names_comparisons,
            seconds=seconds,
            first_step=self.first_step,
            device=pl_module.device,
        )
        if not trainer.is_global_zero:
            return
        if self.history_path is not None:
            record = Evaluation(
                step,
                self.latest,
                self.name,
                self._epoch,
                time.time(),
                seconds,
                self.run,
            )
            append_record(self.history_path, record)
        self.publish(trainer, step)

    def _evaluate_epoch(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Evaluate at the end of an epoch, where that is due."""
        step = trainer.global_step
        due = step != self._last_step and self.schedule.is_due_at_epoch_end(epoch)
        if due and self._permitted(step):
            self._evaluate(trainer, pl_module)

    def _permitted(self, step: int) -> bool:
        if self.budget.share is None:
            return True
        wait = self.ranks.broadcast(self.budget.steps_to_wait())
        if wait:
            self.schedule.put_off(step + wait)
            self.warn_once(
                f"evaluations are put off to stay within max_overhead={self.budget.share}"
            )
        return not wait

    def _finish(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self.folder is None:
            return
        try:
            with self.budget.spending():
                if self.is_ending and self._evaluated_at == trainer.global_step:
                    self.conclude()
                if self.budget.affords(self.budget.drawing):
                    self.finish(trainer)
                else:
                    self.warn_once(
                        "no pictures, to stay within max_overhead; the history has their values"
                    )
        except Exception as error:
            if self._on_error == "raise":
                raise
            warnings.warn(f"{self.name}: no pictures ({error})", HRSAWarning, stacklevel=2)


def is_last_step(trainer: Trainer) -> bool:
    """Whether the fit ends with this step, as far as is known before its end."""
    if trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step:
        return True
    epochs = trainer.max_epochs
    is_limited = epochs is not None and epochs >= 0
    return is_limited and trainer.is_last_batch and trainer.current_epoch + 1 >= (epochs or 0)


def _follow_averaging(trainer: Trainer, monitor: Callback) -> bool:
    """Whether other callbacks average weights; the monitor then comes after them.

    At the end of training they put the average into the module, which is what is handed over.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    last = None
    for callback in callbacks:
        if _AVERAGING & {kind.__name__ for kind in type(callback).__mro__}:
            last = callback
    if last is None:
        return False
    if callbacks.index(monitor) < callbacks.index(last):
        others = [callback for callback in callbacks if callback is not monitor]
        others.insert(others.index(last) + 1, monitor)
        trainer.callbacks = others  # type: ignore[attr-defined]
    return True


def _described(trainer: Trainer, text: str) -> AbstractContextManager[Callable[[str], None] | None]:
    """Have a `StepProgressBar` say what takes the time, and how far it has come."""
    bar = trainer.progress_bar_callback
    return bar.describe(trainer, text) if isinstance(bar, StepProgressBar) else nullcontext()


def _mute(pl_module: LightningModule) -> None:
    """Have what a forward call logs go nowhere, until the module's attributes are put back."""
    for part in pl_module.modules():
        for name in ("log", "log_dict"):
            if hasattr(type(part), "log_dict"):
                vars(part)[name] = lambda *_, **__: None


def _without_lazy(pl_module: LightningModule) -> list[LightningModule]:
    return [] if lazy_weight_of(pl_module) is not None else [pl_module]
