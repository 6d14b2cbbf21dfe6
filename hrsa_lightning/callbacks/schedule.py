"""When to evaluate: every so many steps or epochs, log-spaced, and within a share of the time."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

from hrsa_lightning.errors import ConfigError

DRAWING_SECONDS = 3.0
"""Expected duration of drawing, importing matplotlib included (measured: 1 to 3 s of one core)."""


class Schedule:
    """Decides at which optimizer steps an evaluation is due.

    Steps are counted as `ModelCheckpoint` counts them, but an evaluation is due at the first step
    at or after a multiple, so that none is missed where one batch makes several steps (two
    optimizers).

    Args:
        every_n_train_steps: Evaluate at multiples of so many steps.
        every_n_epochs: Evaluate at the end of every so many epochs.
        log_spaced: Evaluate at steps 1, 2, 4, 8, …; a number k asks for k evaluations in each
            doubling. With `every_n_train_steps` as well, gaps grow no wider than that.
        max_overhead: Share of the training time that evaluations may take; later evaluations are
            put off until they fit. The first and the last are always made.

    Raises:
        ConfigError: On values that are not positive, or an overhead outside (0, 1).
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        log_spaced: bool | int | None = False,
        max_overhead: float | None = None,
    ) -> None:
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("every_n_epochs", every_n_epochs),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected a positive number or null, got {value}")
        log_spaced = log_spaced or 0
        if log_spaced < 0:
            raise ConfigError(f"log_spaced: expected true, false or a number, got {log_spaced}")
        if max_overhead is not None and not 0 < max_overhead < 1:
            raise ConfigError(f"max_overhead: expected a share in (0, 1), got {max_overhead}")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.log_spaced = int(log_spaced)
        self.max_overhead = max_overhead
        self._ignores_steps = every_n_train_steps is None and not self.log_spaced
        if self._ignores_steps and every_n_epochs is None and max_overhead is not None:
            # Nothing but a budget: as often as it allows.
            self.every_n_train_steps = 1
            self._ignores_steps = False
        self.next_step = 0

    @property
    def is_empty(self) -> bool:
        """Whether no evaluation is asked for but the first and the last."""
        return self._ignores_steps and self.every_n_epochs is None

    def is_due(self, step: int) -> bool:
        """Whether an evaluation is due at `step`."""
        return not self._ignores_steps and step >= self.next_step

    def is_due_at_epoch_end(self, epoch: int) -> bool:
        """Whether an evaluation is due at the end of epoch number `epoch`, counted from 0."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

    def advance(self, step: int) -> None:
        """Find the next step that is due, after an evaluation at `step`."""
        candidates = []
        if self.every_n_train_steps is not None:
            candidates.append((step // self.every_n_train_steps + 1) * self.every_n_train_steps)
        if self.log_spaced:
            candidates.append(max(step + 1, ceil(step * 2 ** (1 / self.log_spaced) - 1e-9)))
        if candidates:
            self.next_step = min(candidates)

    def put_off(self, step: int) -> None:
        """Make no evaluation due before `step`."""
        self.next_step = step


class Budget:
    """Time spent by a monitor against time spent in training, for `max_overhead`.

    All of a monitor's work for a fit counts as spent: reading the probes, running references,
    evaluations, history and pictures, also those at the end, and the check after every step whether
    an evaluation is due. The rest of the time since training started counts as training. Time spent
    before step 1 counts as overhead; no evaluation runs until the share is below the limit.

    Args:
        share: Most seconds spent per second of training; `None` sets no bound.

    Attributes:
        share: As given.
        spent: Seconds spent so far.
        step: Latest optimizer step that the monitor knows of.
        drawing: Seconds to expect of pictures.
        unusual: Seconds of the evaluation under way that later ones will not take.
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
        self.unusual = 0.0
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
            self._latest = time.perf_counter() - started - self.unusual
            self.unusual = 0.0

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
        """How many more steps to wait before an evaluation; 0 where it is within the share.

        An evaluation is taken to cost as much as the latest one, and time for another at the end
        of the fit is reserved.
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
