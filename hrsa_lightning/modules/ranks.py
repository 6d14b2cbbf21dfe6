"""The processes of one run: connecting them, stopping after the same step, noticing a dead one.

Every launcher is treated alike: Lightning's own, torchrun's variables and SLURM's. Whatever has to
be the same on all ranks (the run's folder, the checkpoint) is decided by rank 0 once they are
connected.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from hrsa_lightning.modules.checkpoints import prune

T = TypeVar("T")

CONNECT_SECONDS = "HRSA_CONNECT_SECONDS"
"""Environment variable: how long ranks that were started from outside wait for each other."""

LOST = "error: another process of this run has ended before its time, and so does this one"

_GRACE = 2.0
"""Seconds in which a process may end by itself, with its own message, after another one has."""


def connect_ranks(trainer: Trainer) -> "RankGroup":
    """Start the other processes, where that is Lightning's task, and connect all of them.

    Check the settings before. `trainer.fit` of a later trainer finds the processes started and the
    process group initialized.

    Args:
        trainer: Of the settings of the run; only its strategy is used.

    Returns:
        The connection to the other processes, which ends this one when another one dies.
    """
    strategy = trainer.strategy
    launcher = strategy.launcher
    spawns = launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher)
    if not isinstance(strategy, ParallelStrategy) or spawns:
        return RankGroup()
    assert strategy.cluster_environment is not None
    strategy.connect(LightningModule())  # some strategies ask for one; `fit` brings the true one
    starts_others = not strategy.cluster_environment.creates_processes_externally
    # Lightning's launcher watches over the processes it starts.
    with _time_limit(None if starts_others else float(os.environ.get(CONNECT_SECONDS, 60))):
        if launcher is None:
            strategy.setup_environment()
        else:
            launcher.launch(strategy.setup_environment, trainer=trainer)
    return RankGroup(strategy)


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """End the process when the block takes longer: nothing else ends a wait for a dead rank."""
    if seconds is None:
        yield
        return
    message = (
        f"error: the other processes have not started within {seconds:g} s"
        f" ({CONNECT_SECONDS}=… waits longer)"
    )
    timer = threading.Timer(seconds, _end, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(message: str) -> None:
    """End this process, whatever its main thread waits for."""
    os.write(2, f"{message}\n".encode())
    os._exit(1)


class RankGroup:
    """Connections of rank 0 with every other rank, on which the death of one shows.

    A rank that dies in a collective makes the others wait for it: under NCCL until a timeout that
    has to be long enough for the slowest checkpoint. The kernel, on the other hand, closes the
    connections of a dead process at once, and of a dead machine after missed keepalives. When rank
    0 loses one, it ends, and with it all others.

    Args:
        strategy: With its process group initialized; `None` stands for a single process.
    """

    def __init__(self, strategy: ParallelStrategy | None = None) -> None:
        self._strategy = strategy
        self._ended = False
        self._gone = threading.Event()
        self._lost = threading.Event()
        self._connections: list[socket.socket] = []
        if strategy is not None and strategy.world_size > 1:
            self._connections = _connect(strategy)
        for connection in self._connections:
            threading.Thread(target=self._watch, args=[connection], daemon=True).start()

    @property
    def is_rank_0(self) -> bool:
        """Whether this is rank 0."""
        return self._strategy is None or self._strategy.global_rank == 0

    def decide(self, decision: Callable[[], T]) -> T:
        """What rank 0 decides; called on all ranks."""
        decided = decision() if self.is_rank_0 else None
        return cast(T, decided if self._strategy is None else self._strategy.broadcast(decided))

    def end(self) -> None:
        """Announce that this process ends as it should."""
        self._ended = True
        for connection in self._connections:
            try:
                connection.sendall(b".")
            except OSError:  # the other one has ended already
                continue

    def wait_for_rank_0(self, seconds: float) -> bool:
        """Wait until rank 0 has ended, on the other ranks; whether it has.

        Lightning's launcher kills rank 0 in the midst of its last words when another process ends
        with an error before it does.
        """
        self._ended = True
        return not self.is_rank_0 and self._gone.wait(seconds)

    def has_lost_one(self, seconds: float) -> bool:
        """Whether another process has died, or does so within some seconds."""
        return bool(self._connections) and self._lost.wait(seconds)

    def _watch(self, connection: socket.socket) -> None:
        left = False
        try:
            while connection.recv(1):
                left = True
        except OSError:  # reset by a process that was killed, or keepalives went unanswered
            pass
        self._gone.set()
        if left:
            return
        self._lost.set()
        time.sleep(_GRACE)
        if not self._ended:
            _end(LOST)


def _connect(strategy: ParallelStrategy) -> list[socket.socket]:
    """Rank 0's connections to all others; on these, the one to rank 0."""
    assert strategy.cluster_environment is not None
    patience = 60.0  # seconds; the process group is up, so all of them are about to connect
    if strategy.global_rank > 0:
        address = (strategy.cluster_environment.main_address, strategy.broadcast(0))
        connections = [socket.create_connection(address, timeout=patience)]
    else:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
            server.settimeout(patience)
            strategy.broadcast(server.getsockname()[1])
            connections = [server.accept()[0] for _ in range(strategy.world_size - 1)]
    for connection in connections:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # names differ between systems
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connections


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
