"""What every monitor shares: when it looks, that looking changes nothing, and that errors pass."""

import math
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.callbacks.sinks import log_values
from hrsa_lightning.errors import ConfigError, HRSAWarning
from hrsa_lightning.representations.exchange import Exchange
from hrsa_lightning.representations.history import append_record, cut_history
from hrsa_lightning.representations.isolation import untouched

__all__ = ["DRAWING_SECONDS", "Monitor", "OnError"]

OnError = Literal["warn", "raise"]

DRAWING_SECONDS = 3.0
"""What pictures may take, importing matplotlib included (measured: 1 to 3 s of one core)."""


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

    Raises:
        ConfigError: When `on_error` is neither `warn` nor `raise`.
    """

    def __init__(
        self, name: str, schedule: Schedule, history: str | Path | None, on_error: OnError
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise ConfigError(f"on_error: expected 'warn' or 'raise', got {on_error!r}")
        self.name = name
        self.schedule = schedule
        self.exchange = Exchange()
        self._history = history
        self._on_error = on_error
        self._restored: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._forget()

    @abstractmethod
    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve what the user named. Called in isolation, before any evaluation of a fit."""

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Evaluate, with the module in isolation; return values by tag, the same on all ranks."""

    def extras(self) -> dict[str, Any]:
        """Further entries for the history record of the latest evaluation."""
        return {}

    def publish(self, trainer: Trainer, step: int) -> None:
        """Write pictures and the like after an evaluation; called on rank 0 only."""

    def finish(self, trainer: Trainer) -> None:
        """Write what the end of a fit leaves behind; called on rank 0 only."""

    def begin(self, restored: dict[str, Any]) -> None:
        """Start from nothing, or from what a checkpoint remembers, before the first evaluation."""

    def remember(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `begin` to go on from it."""
        return {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == 0:
            self._forget()
            self._restored = None
        self._open_folder(trainer, step)
        self._train_started = time.perf_counter()
        self._spent_before = self._spent
        self._first_step = step
        if self._last_step < 0:
            self._evaluate(trainer, pl_module, starts=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._last_step and self.schedule.is_due(step) and self._permitted(step):
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

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._finish(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_step": self._last_step,
            "spent": self._spent,
            "train_seconds": self._train_seconds(),
            "train_steps": self._train_steps,
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

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds more stay within `max_overhead`; always without one."""
        share = self.schedule.max_overhead
        return share is None or self._spent + seconds <= share * self._train_seconds()

    def _forget(self) -> None:
        self.folder: Path | None = None
        self.history_path: Path | None = None
        self._last_step = -1
        self._spent = self._spent_before = self._cost = 0.0
        self._train_before = 0.0
        self._train_started = math.nan
        self._train_steps = self._first_step = 0
        self.schedule.next_step = 0
        self.begin({})

    def _open_folder(self, trainer: Trainer, step: int) -> None:
        restored, self._restored = self._restored or {}, None
        if restored:
            self._last_step = restored["last_step"]
            self._spent = restored["spent"]
            self._train_before = restored["train_seconds"]
            self._train_steps = restored["train_steps"]
            self.schedule.next_step = restored["next_step"]
            self.begin(restored)
        log_dir = trainer.log_dir  # talks to all ranks, so every rank has to ask
        if getattr(trainer, "fast_dev_run", False):
            return
        self.folder = Path(log_dir or trainer.default_root_dir)
        if self._history is None:
            return
        self.history_path = self.folder / self._history
        with self.exchange.together():
            if trainer.is_global_zero:
                source = Path(restored.get("history") or self.history_path)
                kept = cut_history(source, self.history_path, step if step else -1)
                self._last_step = max([self._last_step, *(record["step"] for record in kept)])
        self._last_step = self.exchange.first(self._last_step)

    def _evaluate(
        self, trainer: Trainer, pl_module: LightningModule, *, starts: bool = False
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # else training's queue counts as our time
        started = time.perf_counter()
        step = trainer.global_step
        self._train_steps += step - self._first_step
        self._first_step = step
        try:
            with untouched(pl_module):
                values = self.measure(trainer, pl_module)
            seconds = self.exchange.first(time.perf_counter() - started)
            values[f"{self.name}/seconds"] = seconds
            with self.exchange.together():
                self._write(trainer, pl_module, values, step, seconds)
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
        self._cost = time.perf_counter() - started
        self._spent += self._cost

    def _write(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        values: dict[str, float],
        step: int,
        seconds: float,
    ) -> None:
        log_values(trainer, values, step, pl_module.device)
        if not trainer.is_global_zero:
            return
        if self.history_path is not None:
            record = {
                "step": step,
                "epoch": trainer.current_epoch,
                "time": time.time(),
                "seconds": seconds,
                "values": values,
                **self.extras(),
            }
            append_record(self.history_path, record)
        self.publish(trainer, step)

    def _permitted(self, step: int) -> bool:
        if self.schedule.max_overhead is None:
            return True
        steps = self._train_steps + step - self._first_step
        wait = self.exchange.first(
            self.schedule.steps_to_wait(self._spent, self._cost, self._train_seconds(), steps)
        )
        if wait:
            self.schedule.next_step = step + wait
            self.warn_once(
                f"evaluations are put off to stay within max_overhead={self.schedule.max_overhead}"
            )
        return not wait

    def _train_seconds(self) -> float:
        if math.isnan(self._train_started):
            return self._train_before
        evaluating = self._spent - self._spent_before
        return self._train_before + time.perf_counter() - self._train_started - evaluating

    def _finish(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self.folder is None:
            return
        if not self.affords(DRAWING_SECONDS):
            self.warn_once("no pictures, to stay within max_overhead; the history has their values")
            return
        try:
            self.finish(trainer)
        except Exception as error:
            if self._on_error == "raise":
                raise
            warnings.warn(f"{self.name}: no pictures ({error})", HRSAWarning, stacklevel=2)
