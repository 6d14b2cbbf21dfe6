"""Start the real command as a user or a cluster does, and leave no process behind."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PATIENCE = 300.0
"""Seconds after which a process that is still there has hung; several share a core here."""


class Ended(NamedTuple):
    """What a rank left: its exit code, and what it wrote to the screen."""

    code: int
    text: str


class Ranks:
    """The processes of one run, each with a file for what it writes to the screen."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._screens: list[Path] = []

    def start(self, command: list[str], environment: Mapping[str, str], screen: Path) -> None:
        """Start one more process."""
        with screen.open("wb") as file:
            process = subprocess.Popen(
                command,
                env={**_plain_environment(), **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, with what Lightning starts
            )
        self.processes.append(process)
        self._screens.append(screen)

    def wait(self, timeout: float = PATIENCE) -> list[Ended]:
        """Wait for all of them; one that takes longer has hung."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                codes = [process.poll() for process in self.processes]
                raise AssertionError(f"hung after {timeout:.0f} s: {codes}\n{self}") from None
        return [
            Ended(process.returncode, screen.read_text(errors="replace"))
            for process, screen in zip(self.processes, self._screens, strict=True)
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
            try:
                os.killpg(process.pid, signum)
            except ProcessLookupError:
                continue

    def __str__(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in self._screens)


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
    command = [
        *(sys.executable, "-m", "hrsa_lightning.train"),
        *(f"trainer.devices={devices}", f"output_dir={folder / 'runs'}", *settings),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks()
    try:
        for rank, environment in enumerate(_LAUNCHERS[launcher](devices)):
            if only is not None and rank not in only:
                continue
            time.sleep(stagger if rank else 0.0)
            ranks.start(command, environment, folder / f"rank_{rank}.txt")
        yield ranks
    finally:
        ranks.send(signal.SIGKILL)
        for process in ranks.processes:
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
