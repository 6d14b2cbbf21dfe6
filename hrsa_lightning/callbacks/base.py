"""What every monitor shares: when it looks, that looking changes nothing, and that errors pass."""

import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hrsa_lightning.callbacks.budget import Budget
from hrsa_lightning.callbacks.charts import show_charts
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.callbacks.sinks import log_values
from hrsa_lightning.errors import ConfigError, HRSAWarning, shown
from hrsa_lightning.io import NAME_RULE, is_name
from hrsa_lightning.representations.exchange import Exchange
from hrsa_lightning.representations.history import append_record, cut_history
from hrsa_lightning.representations.isolation import untouched

__all__ = ["Monitor", "OnError"]

OnError = Literal["warn", "raise"]


class Monitor(Callback, ABC):
    """A callback that evaluates at a rhythm, in isolation, and keeps a history.

    A subclass says how to prepare (errors there end the run before it starts) and how to measure
    (errors there are warnings, unless `on_error="raise"`). It evaluates before the first training
    step, at its rhythm, and at the end of the fit.

    Args:
        name: Begins every tag and file name; two monitors of a trainer need different names.
        schedule: When to evaluate.
        history: File name in the run's folder, or a path; `None` writes no file.
        on_error: Whether a failed evaluation warns and training goes on, or raises.

    Attributes:
        folder: The run's folder, where it has one.
        first_step: Optimizer step at which the current fit began; above 0 where it resumed.

    Raises:
        ConfigError: When `on_error` is neither `warn` nor `raise`.
    """

    def __init__(
        self, name: str, schedule: Schedule, history: str | Path | None, on_error: OnError
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise ConfigError(f"on_error: expected 'warn' or 'raise', got {on_error!r}")
        if not is_name(name):
            raise ConfigError(f"name: expected {NAME_RULE}, got {shown(name)}")
        self.name = name
        self.schedule = schedule
        self.budget = Budget(schedule.max_overhead)
        self.exchange = Exchange()
        self._history = history
        self._on_error = on_error
        self._restored: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._preparing = 0.0
        self._forget()

    @abstractmethod
    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve what the user named. Called in isolation, before any evaluation of a fit."""

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Evaluate, with the module in isolation; return values by tag, the same on all ranks."""

    def floors(self) -> dict[str, float]:
        """Chance or null values by tag, as far as they are known after an evaluation."""
        return {}

    def publish(self, trainer: Trainer, step: int) -> None:
        """Write pictures and the like after an evaluation; called on rank 0 only."""

    def conclude(self) -> None:
        """Write what is kept of the last evaluation only; called on rank 0 only."""

    def finish(self, trainer: Trainer) -> None:
        """Draw what the end of a fit leaves behind; called on rank 0 only."""

    def resume(self, source: Path, last_step: int) -> None:
        """Take over what stands beside a history, up to a step; called on rank 0 only.

        Args:
            source: The history of the run that was interrupted, as for `cut_history`.
            last_step: Later records are dropped.
        """

    def begin(self, restored: dict[str, Any]) -> None:
        """Start from nothing, or from what a checkpoint remembers, before the first evaluation."""

    def remember(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `begin` to go on from it."""
        return {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if any(kind.__name__ == "FSDPStrategy" for kind in type(trainer.strategy).__mro__):
            raise ConfigError(
                f"{self.name}: FSDPStrategy keeps weights where a call of the module itself does "
                "not find them; shard with ModelParallelStrategy (FSDP2) instead"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = time.perf_counter()
        sampler: dict[str, int] = (
            getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        )
        self.exchange = Exchange(
            trainer.world_size,
            trainer.global_rank,
            sampler.get("num_replicas"),
            sampler.get("rank"),
            pl_module.device,
        )
        with untouched(pl_module):
            self.prepare(trainer, pl_module)
        self._preparing = time.perf_counter() - started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = time.perf_counter()
        step = trainer.global_step
        if step == 0:
            self._forget()
            self._restored = None
        restored, self._restored = self._restored or {}, None
        self.first_step = step
        self._open_folder(trainer, restored)
        opening = time.perf_counter() - started
        self.budget.start(step, restored, spent=self._preparing + opening)
        if self._last_step < 0:
            self._evaluate(trainer, pl_module, starts=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self.budget.spending():
            step = self.budget.step = trainer.global_step
            due = step != self._last_step and self.schedule.is_due(step) and self._permitted(step)
        if due:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        due = step != self._last_step and self.schedule.is_due_at_epoch_end(trainer.current_epoch)
        if due and self._permitted(step):
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._last_step:
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
        return {
            **self.budget.state(),
            "last_step": self._last_step,
            "next_step": self.schedule.next_step,
            "history": None if self.history_path is None else str(self.history_path),
            **self.remember(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def warn_once(self, message: str, details: str = "") -> None:
        """Warn on rank 0, unless this monitor gave the same message before, with any details."""
        if message not in self._warned and self.exchange.rank == 0:
            self._warned.add(message)
            warnings.warn(f"{self.name}: {message}{details}", HRSAWarning, stacklevel=2)

    def _forget(self) -> None:
        self.folder: Path | None = None
        self.history_path: Path | None = None
        self.first_step = 0
        self._last_step = -1
        self._written_floors: dict[str, float] = {}
        self.schedule.put_off(0)
        self.begin({})

    def _open_folder(self, trainer: Trainer, restored: dict[str, Any]) -> None:
        log_dir = trainer.log_dir  # talks to all ranks, so every rank has to ask
        if not getattr(trainer, "fast_dev_run", False):
            self.folder = Path(log_dir or trainer.default_root_dir)
        if restored:
            self._last_step = restored["last_step"]
            self.schedule.put_off(restored["next_step"])
            self.begin(restored)
        if self.folder is None or self._history is None:
            return
        self.history_path = self.folder / self._history
        with self.exchange.together():
            if trainer.is_global_zero:
                source = Path(restored.get("history") or self.history_path)
                last = self.first_step or -1
                kept = cut_history(source, self.history_path, last)
                self.resume(source, last)
                self._last_step = max([self._last_step, *kept])
        self._last_step = self.exchange.first(self._last_step)

    def _evaluate(
        self, trainer: Trainer, pl_module: LightningModule, *, starts: bool = False
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # else training's queue counts as our time
        step = self.budget.step = trainer.global_step
        with self.budget.evaluating():
            started = time.perf_counter()
            try:
                with untouched(pl_module):
                    values = self.measure(trainer, pl_module)
                seconds = self.exchange.first(time.perf_counter() - started)
                values[f"{self.name}/seconds"] = seconds
                with self.exchange.together():
                    self._write(trainer, pl_module, values, seconds)
            except Exception as error:
                # Before the first step a mistake of the user can still be mended at no loss.
                if self._on_error == "raise" or (starts and isinstance(error, ConfigError)):
                    raise
                warnings.warn(
                    f"{self.name}: no values at step {step}, training goes on "
                    f"({type(error).__name__}: {error})",
                    HRSAWarning,
                    stacklevel=2,
                )
        self._last_step = step
        self.schedule.advance(step)

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, values: dict[str, float], seconds: float
    ) -> None:
        step = trainer.global_step
        log_values(trainer, values, step, pl_module.device)
        if not trainer.is_global_zero:
            return
        floors = self.floors()
        if self.history_path is not None:
            record: dict[str, Any] = {
                "step": step,
                "epoch": trainer.current_epoch,
                "time": time.time(),
                "seconds": seconds,
                "values": values,
            }
            news = {tag: floors[tag] for tag in floors if tag not in self._written_floors}
            if news:
                self._written_floors |= news
                record["floors"] = news
            append_record(self.history_path, record)
        show_charts(trainer, values, floors, step)
        self.publish(trainer, step)

    def _permitted(self, step: int) -> bool:
        if self.budget.share is None:
            return True
        wait = self.exchange.first(self.budget.steps_to_wait())
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
