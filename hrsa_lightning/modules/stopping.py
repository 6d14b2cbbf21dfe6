"""Stopping after the same step on all ranks, at a signal or when time is up, with a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from hrsa_lightning.modules.checkpoints import prune

TIME_IS_UP = 1
"""Stands among the signals for the end of `trainer.max_time`; less than each that is handled."""


class Stopped(SystemExit):
    """Training was stopped before its end, on all ranks after the same step.

    The exit code is 128 more than the signal, as shells count, or 124, that of `timeout`.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(124 if signum == TIME_IS_UP else 128 + signum)
        self.signum = signum


class StopSignals(_SignalConnector):
    """Records SIGTERM, Ctrl-C and SLURM's requeue signal while the trainer runs.

    Lightning's own handlers communicate (SIGTERM broadcasts, the requeue signal saves a checkpoint)
    although signals reach ranks at different places: one waits in the broadcast and another one in
    a gradient's all-reduce. Here a handler only records the signal.

    Attributes:
        received: The signal; 0 for none.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.received = 0

    def register_signal_handlers(self) -> None:
        self._original_handlers = self._get_current_signal_handlers()
        signals = [signal.SIGTERM, signal.SIGINT]
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        if isinstance(environment, SLURMEnvironment) and environment.requeue_signal is not None:
            signals.append(environment.requeue_signal)
        for signum in signals:
            self._register_signal(signum, self._note)

    def _note(self, signum: int, frame: Any) -> None:
        if signum == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = max(self.received, signum)
        if self.trainer.is_global_zero:  # `print` may be what the signal interrupts
            again = " (Ctrl-C again: at once)" if signum == signal.SIGINT else ""
            os.write(2, f"\nstopping after this step{again}\n".encode())


class StepCheckpoint(ModelCheckpoint):
    """Writes `step_N` every so many optimizer steps, and when a signal or the clock stops training.

    After every step the ranks agree on whether one of them was told to stop; the checkpoint is
    then one from which training goes on to the same weights.

    Args:
        folder: Gets the checkpoints.
        every_n_train_steps: As in `ModelCheckpoint`.
        keep: How many stay, the newest ones.
        max_time: Of this fit; one that resumes has as much again. It ends no last evaluation.

    Raises:
        Stopped: After that step, or after the last evaluation, on all ranks.
    """

    FILE_EXTENSION = ""

    def __init__(
        self,
        folder: Any,
        every_n_train_steps: int,
        keep: int,
        max_time: timedelta | None = None,
    ) -> None:
        super().__init__(
            dirpath=folder,
            filename="step_{step:06d}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,  # a step that is trained again replaces its checkpoint
        )
        self.max_time = max_time
        self._started = time.monotonic()
        self._signum = 0
        self._agreed_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._started = time.monotonic()
        trainer._signal_connector = StopSignals(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        self._prune(trainer)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        # Between optimizer steps gradients are pending, which no checkpoint holds.
        if trainer.global_step != self._agreed_step:
            self._agreed_step = trainer.global_step
            self._signum = self._agree(trainer)
        super().on_train_batch_end(trainer, *arguments)
        if self._signum:
            self._save(trainer)
        self._prune(trainer)

    def on_train_batch_start(self, *arguments: Any) -> None:
        # Only now are the values of the last step logged.
        if self._signum:
            raise Stopped(self._signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        signum = self._agree(trainer)
        if signum > TIME_IS_UP:
            self._save(trainer)
            raise Stopped(signum)

    def _save(self, trainer: Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _prune(self, trainer: Trainer) -> None:
        """Remove what Lightning forgets of before a restart: it was killed, or the run moved."""
        if self._last_global_step_saved == trainer.global_step > 0 and trainer.is_global_zero:
            assert self.dirpath is not None
            prune(Path(self.dirpath), trainer.global_step, self.save_top_k)

    def _agree(self, trainer: Trainer) -> int:
        """The highest signal that a rank has received."""
        connector = trainer._signal_connector
        received = connector.received if isinstance(connector, StopSignals) else 0
        if self.max_time is not None:
            is_up = time.monotonic() - self._started >= self.max_time.total_seconds()
            received = max(received, TIME_IS_UP if is_up else 0)
        if trainer.world_size == 1:
            return received
        noted = torch.tensor(received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(noted, reduce_op="max"))


class EndingFitLoop(_FitLoop):
    """A fit loop that also ends where it has nothing left to train.

    Lightning skips all hooks of a fit that resumes at its last step. The last evaluation, pictures
    and adapters of a run that was killed after its last checkpoint would be missing.
    """

    @classmethod
    def replace(cls, trainer: Trainer) -> None:
        """Give a trainer such a loop in place of its own."""
        old = trainer.fit_loop
        trainer.fit_loop = cls(trainer, old.min_epochs, old.max_epochs)
        trainer.fit_loop.epoch_loop = old.epoch_loop

    @property
    def skip(self) -> bool:
        return False


def requeue() -> None:
    """Ask SLURM to queue this job again; on rank 0."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode:
        print(f"error: scontrol could not requeue job {job}", file=sys.stderr)
