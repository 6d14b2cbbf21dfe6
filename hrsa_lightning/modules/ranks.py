"""The processes of one run: connecting them, and noticing a dead one.

Every launcher is treated alike: Lightning's own, torchrun's variables and SLURM's. Whatever has to
be the same on all ranks (the run's folder, the checkpoint) is decided by rank 0 once they are
connected.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

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
