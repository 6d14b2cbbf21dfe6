"""When to evaluate: every so many steps or epochs, or log-spaced."""

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

    def put_off(self, step: int) -> None:
        """Make no evaluation due before `step`."""
        self.next_step = step
