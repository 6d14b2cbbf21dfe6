"""One pool of gloo ranks for the whole session: starting processes is the slow part."""

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.forks import FORKS


def _serve(rank: int, world_size: int, store: str, tasks: Any, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=120),
    )
    while (task := tasks.get()) is not None:
        fn, args = task
        try:
            results.put((rank, True, fn(rank, world_size, *args)))
        except Exception:
            results.put((rank, False, traceback.format_exc()))
    dist.destroy_process_group()


class DDPPool:
    """`world_size` processes joined by gloo that run functions on demand.

    `run(fn, *args)` calls `fn(rank, world_size, *args)` in every process and returns the results in
    rank order. `fn` is a top-level function of an importable module. A failure in any rank raises
    with that rank's traceback; the pool cannot be used afterwards, since its ranks may be out of
    step.
    """

    def __init__(self, world_size: int, store: Path) -> None:
        self.world_size = world_size
        self._results: Any = FORKS.Queue()
        self._tasks: list[Any] = [FORKS.Queue() for _ in range(world_size)]
        self._processes = [
            FORKS.Process(
                target=_serve,
                args=(rank, world_size, str(store), self._tasks[rank], self._results),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def run(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        for tasks in self._tasks:
            tasks.put((fn, args))
        results: dict[int, Any] = {}
        for _ in range(self.world_size):
            rank, ok, value = self._results.get(timeout=300)
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
        return [results[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
