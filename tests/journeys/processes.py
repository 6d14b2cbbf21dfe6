"""Start the real command as a user or a cluster does, and leave no process behind."""

import atexit
import os
import random
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

from tests.forks import FORKS

PATIENCE = 300.0
"""Seconds after which a process that is still there has hung; several share a core here."""


class Ended(NamedTuple):
    """What a rank left: its exit code, and what it wrote to the screen."""

    code: int
    text: str


class Rank:
    """The train command in a process of its own, as far as needed with the methods of `Popen`.

    It is forked, as importing takes most of the time of a tiny run; the ranks that Lightning starts
    are started anew.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], screen: Path) -> None:
        self._process = FORKS.Process(target=_train, args=(arguments, environment, screen))
        self._process.start()
        self.screen = screen

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; `None` while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or for so many seconds."""
        self._process.join(timeout)

    def send_signal(self, signum: int) -> None:
        """Send a signal to this process alone."""
        if self.poll() is None:
            os.kill(self._process.pid, signum)

    def kill(self) -> None:
        """End this process alone."""
        self.send_signal(signal.SIGKILL)

    def send_to_all(self, signum: int) -> None:
        """Send a signal to this process and to what it has started."""
        with suppress(ProcessLookupError):  # where it has ended, or has not yet begun
            os.killpg(self._process.pid, signum)


def _train(arguments: list[str], environment: dict[str, str], screen: Path) -> None:
    """`python -m hrsa_lightning.train ARGUMENTS` in this process."""
    os.setsid()  # a group of its own, with what Lightning starts
    with screen.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = _get_rank() or 0  # found out on import
    sys.argv = ["", *arguments]
    try:
        runpy.run_module("hrsa_lightning.train", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


class Ranks:
    """The processes of one run, each with a file for what it writes to the screen."""

    def __init__(self) -> None:
        self.processes: list[Rank] = []

    def wait(self, timeout: float = PATIENCE) -> list[Ended]:
        """Wait for all of them; one that takes longer has hung."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.wait(max(deadline - time.monotonic(), 0.01))
        codes = [process.poll() for process in self.processes]
        assert None not in codes, f"hung after {timeout:.0f} s: {codes}\n{self}"
        return [
            Ended(process.poll(), process.screen.read_text(errors="replace"))
            for process in self.processes
        ]

    def wait_until(self, reached: Callable[[], object]) -> None:
        """Wait until something has happened, while all processes run."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            codes = [process.poll() for process in self.processes]
            assert codes == [None] * len(codes), f"ended too early: {codes}\n{self}"
            assert time.monotonic() < deadline, f"not reached\n{self}"
            time.sleep(0.01)

    def send(self, signum: int) -> None:
        """Send a signal to every process, and to what it has started."""
        for process in self.processes:
            process.send_to_all(signum)

    def __str__(self) -> str:
        screens = [process.screen for process in self.processes]
        return "\n".join(f"--- {screen.name}\n{screen.read_text()}" for screen in screens)


@contextmanager
def train(
    launcher: str,
    devices: int,
    folder: Path,
    *settings: str,
    stagger: float = 0.0,
    only: Sequence[int] | None = None,
) -> Iterator[Ranks]:
    """Run the train command on several ranks; all are killed when the block ends.

    Args:
        launcher: One of `lightning`, `torchrun` and `slurm`.
        devices: Number of ranks.
        folder: Gets the run in `runs/`, and what each rank writes to the screen.
        *settings: Further arguments of the command.
        stagger: Seconds between the starts of ranks, where it is not Lightning that starts them.
        only: Ranks that start; the others never come.
    """
    arguments = [f"trainer.devices={devices}", f"output_dir={folder / 'runs'}", *settings]
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks()
    try:
        for rank, environment in enumerate(_LAUNCHERS[launcher](devices)):
            if only is not None and rank not in only:
                continue
            time.sleep(stagger if rank else 0.0)
            own = {**_plain_environment(), **environment}
            ranks.processes.append(Rank(arguments, own, folder / f"rank_{rank}.txt"))
        yield ranks
    finally:
        ranks.send(signal.SIGKILL)
        for process in ranks.processes:
            process.kill()
            process.wait()


def _plain_environment() -> dict[str, str]:
    """This process's variables without those of a launcher, each rank on one thread."""
    foreign = ("SLURM_", "TORCHELASTIC_", "MASTER_", "PL_")
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK"}
    kept = {k: v for k, v in os.environ.items() if k not in names and not k.startswith(foreign)}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _by_lightning(devices: int) -> list[dict[str, str]]:
    """One process, which starts the others."""
    return [{}]


def _by_torchrun(devices: int) -> list[dict[str, str]]:
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "journey",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(devices)]


def _by_slurm(devices: int) -> list[dict[str, str]]:
    """An allocation of one node; Lightning takes the port from the job's number."""
    shared = {
        "SLURM_JOB_ID": f"77{_free_port() - 15_000:04}",
        "SLURM_JOB_NAME": "journey",
        "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(devices),
        "SLURM_NTASKS_PER_NODE": str(devices),
    }
    return [
        {**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(devices)
    ]


_LAUNCHERS = {"lightning": _by_lightning, "torchrun": _by_torchrun, "slurm": _by_slurm}


def _free_port() -> int:
    """One that SLURM's jobs use, below those that the system gives out of itself."""
    for port in random.SystemRandom().sample(range(15_000, 25_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
