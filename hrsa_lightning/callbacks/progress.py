"""A progress bar that counts optimizer steps of the whole fit instead of batches of an epoch."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

_SHOWN = {
    "loss": ("loss", ".3f"),
    "train/tokens_per_second": ("tok/s", ".0f"),
    "train/padding_share": ("padding", ".0%"),
    "train/peak_memory_mb": ("peak_MB", ".0f"),
}
"""What is shown of the logged values: tag to name and format."""

SECONDS_BETWEEN_READINGS = 1.0
"""Reading a value waits for the device to finish what it is asked to do."""

SECONDS_BETWEEN_LINES = 10.0
"""Where standard error is a file or a pipe, a state of the bar is a line of its own."""

_TRAINING = "training"


class _Lines:
    """Standard error for a bar that nobody watches: lines, each once, without carriage returns."""

    _last = ""

    def write(self, text: str) -> None:
        shown = text.strip()
        if shown and shown != self._last:
            sys.stderr.write(f"{shown}\n")
            self._last = shown

    def flush(self) -> None:
        sys.stderr.flush()


class StepProgressBar(ProgressBar):
    """One bar from the first step to the last, with what was logged under `prog_bar=True`.

    It also shows the loss, the learning rate and, where they are logged, tokens per second, the
    share of padding, peak memory and the lowest CKA of any compared output at the last evaluation.
    A resumed fit starts where it was interrupted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._shown_at = -math.inf
        self._described_at = -math.inf

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    @contextmanager
    def describe(self, trainer: Trainer, text: str) -> Iterator[Callable[[str], None]]:
        """Show another text than `training` for as long as `trainer` does something else.

        Yields:
            A function that adds to the text how far that has come.
        """
        if self._bar is None and trainer.global_step == 0:  # before the first step, not at the end
            self._open(trainer)
        bar = self._bar

        def show(shown: str, *, refresh: bool) -> None:
            if bar is None or bar.disable:
                return
            # Kept apart from the bar's own time, by which it reckons the rate of steps.
            shown_at = max(self._described_at, bar.last_print_t)
            is_due = time.time() - shown_at >= bar.mininterval
            bar.set_description(shown, refresh=refresh or is_due)
            if refresh or is_due:
                self._described_at = time.time()

        show(text, refresh=trainer.global_step == 0)
        started = time.time()
        yield lambda detail: show(f"{text}, {detail}", refresh=False)
        if bar is not None and not bar.disable:
            bar.last_print_t += time.time() - started  # the rate is that of steps alone
            bar.set_description(_TRAINING, refresh=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is None:  # no monitor has evaluated before the first step
            self._open(trainer)

    def _open(self, trainer: Trainer) -> None:
        total = trainer.estimated_stepping_batches
        is_watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=int(total) if total != float("inf") else None,
            initial=trainer.global_step,
            desc=_TRAINING,
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr if is_watched else _Lines(),
            mininterval=0.1 if is_watched else SECONDS_BETWEEN_LINES,
            disable=not self._enabled,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or self._bar.disable:
            return
        if time.monotonic() - self._shown_at >= SECONDS_BETWEEN_READINGS:
            self._show_values(trainer, pl_module)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None and not self._bar.disable:
            self._show_values(trainer, pl_module)
            self._bar.refresh()
        self._close()

    def _show_values(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._bar is not None
        values = {
            name: f"{value:.3f}" if isinstance(value, float) else value
            for name, value in self.get_metrics(trainer, pl_module).items()
            if name != "v_num"
        }
        self._bar.set_postfix({**values, **_state(trainer)}, refresh=False)
        self._shown_at = time.monotonic()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _state(trainer: Trainer) -> dict[str, str]:
    shown = {}
    if trainer.optimizers:
        shown["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.1e}"
    logged = trainer.callback_metrics
    for tag, (name, form) in _SHOWN.items():
        if tag in logged:
            shown[name] = format(float(logged[tag]), form)
    callbacks: list[Any] = [*trainer.callbacks]  # type: ignore[attr-defined]
    outputs = [
        m.value
        for callback in callbacks
        for m in getattr(callback, "latest", ())  # of monitors
        if (m.metric, m.layer, m.label) == ("cka", "output", "")
    ]
    if outputs:
        shown["lowest_cka"] = f"{min(outputs):.3f}"
    return shown
