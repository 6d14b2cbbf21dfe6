"""When to evaluate: every so many steps or epochs, log-spaced, and under a share of the time."""

from math import ceil

from hrsa_lightning.errors import ConfigError

__all__ = ["Schedule"]


class Schedule:
    """Decides at which optimizer steps an evaluation is due.

    A rhythm counts optimizer steps as `ModelCheckpoint` does, but is due at the first step at or
    after a multiple, so that none is missed where one batch makes several steps (two optimizers).

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
        log_spaced: bool | int = False,
        max_overhead: float | None = None,
    ) -> None:
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("every_n_epochs", every_n_epochs),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected a positive number or null, got {value}")
        if log_spaced < 0:
            raise ConfigError(f"log_spaced: expected true, false or a number, got {log_spaced}")
        if max_overhead is not None and not 0 < max_overhead < 1:
            raise ConfigError(f"max_overhead: expected a share in (0, 1), got {max_overhead}")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.log_spaced = int(log_spaced)
        self.max_overhead = max_overhead
        self._rests = every_n_train_steps is None and not self.log_spaced
        if self._rests and every_n_epochs is None and max_overhead is not None:
            # Nothing but a budget: as often as it allows.
            self.every_n_train_steps = 1
            self._rests = False
        self.next_step = 0

    def is_due(self, step: int) -> bool:
        """Whether the rhythm of steps asks for an evaluation at `step`."""
        return not self._rests and step >= self.next_step

    def is_due_at_epoch_end(self, epoch: int) -> bool:
        """Whether an evaluation is due at the end of epoch number `epoch`, counted from 0."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

    def advance(self, step: int) -> None:
        """Find the next step of the rhythm, after an evaluation at `step`."""
        candidates = []
        if self.every_n_train_steps is not None:
            candidates.append((step // self.every_n_train_steps + 1) * self.every_n_train_steps)
        if self.log_spaced:
            candidates.append(max(step + 1, ceil(step * 2 ** (1 / self.log_spaced) - 1e-9)))
        if candidates:
            self.next_step = min(candidates)

    def steps_to_wait(
        self, spent: float, cost: float, train_seconds: float, train_steps: int
    ) -> int:
        """How many more steps the budget asks to wait before an evaluation; 0 means go.

        Room for the evaluation at the end of the fit is kept free.

        Args:
            spent: Seconds of all evaluations so far.
            cost: Seconds that one evaluation takes.
            train_seconds: Seconds of training so far, evaluations left out.
            train_steps: Steps in that time.
        """
        if self.max_overhead is None:
            return 0
        missing = (spent + 2 * cost) / self.max_overhead - train_seconds
        if missing <= 0:
            return 0
        if train_seconds <= 0 or train_steps <= 0:
            return 1
        return max(1, ceil(missing * train_steps / train_seconds))
