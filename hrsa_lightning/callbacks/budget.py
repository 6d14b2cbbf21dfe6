"""What a monitor spends, against what training takes: the share that `max_overhead` allows."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

__all__ = ["DRAWING_SECONDS", "Budget"]

DRAWING_SECONDS = 3.0
"""What pictures may take, importing matplotlib included (measured: 1 to 3 s of one core)."""


class Budget:
    """The clock of a monitor.

    Everything that the monitor does for a fit counts as spent: reading the probes, running
    references, evaluations, history and pictures, also those at the end, and the question after
    every step whether it is time. The rest of the time since training started counts as training.
    So what comes before the first step is a debt that training has to outgrow before anything else
    is affordable.

    Args:
        share: Most seconds spent per second of training; `None` sets no bound.

    Attributes:
        share: As given.
        spent: Seconds spent so far.
        step: Latest optimizer step that the monitor knows of.
        drawing: Seconds to expect of pictures.
    """

    def __init__(self, share: float | None = None) -> None:
        self.share = share
        self.drawing = DRAWING_SECONDS
        self.start(0)

    def start(self, step: int, state: Mapping[str, Any] | None = None, spent: float = 0.0) -> None:
        """Start the clock of training.

        Args:
            step: The optimizer step at which it starts.
            state: What `state` returned before a restart.
            spent: Seconds that the monitor has spent for this fit already.
        """
        state = state or {}
        self.spent: float = state.get("spent", 0.0) + spent
        self.step = step
        self._latest: float = state.get("cost", 0.0)
        self._since: float | None = None
        self._seconds_before: float = state.get("train_seconds", 0.0)
        self._steps_before: int = state.get("train_steps", 0)
        self._first_step = step
        self._spent_before: float = self.spent
        self._started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `start` to go on from it."""
        return {
            "spent": self.spent,
            "cost": self._latest,
            "train_seconds": self.train_seconds,
            "train_steps": self._train_steps,
        }

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of a block as spent; blocks are not nested."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self.spent += self._open_seconds()
            self._since = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time of a block as spent, and expect later evaluations to take as much."""
        try:
            with self.spending():
                started = time.perf_counter()
                yield
        finally:
            self._latest = time.perf_counter() - started

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far."""
        elapsed = time.perf_counter() - self._started - self._open_seconds()
        return self._seconds_before + elapsed - (self.spent - self._spent_before)

    def affords(self, seconds: float = 0.0) -> bool:
        """Whether so many seconds more stay within the share; always where none is set."""
        if self.share is None:
            return True
        return self.spent + self._open_seconds() + seconds <= self.share * self.train_seconds

    def steps_to_wait(self) -> int:
        """How many more steps the share asks to wait before an evaluation; 0 means go.

        An evaluation is taken to cost as much as the latest one, and room for another at the end
        of the fit is kept free.
        """
        if self.share is None:
            return 0
        seconds = self.train_seconds
        missing = (self.spent + 2 * self._latest) / self.share - seconds
        if missing <= 0:
            return 0
        if seconds <= 0 or self._train_steps <= 0:
            return 1
        return max(1, ceil(missing * self._train_steps / seconds))

    def _open_seconds(self) -> float:
        return 0.0 if self._since is None else time.perf_counter() - self._since

    @property
    def _train_steps(self) -> int:
        return self._steps_before + self.step - self._first_step
