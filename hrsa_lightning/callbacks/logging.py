"""Where values and pictures go: any logger, told apart by what it can do and not by its class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Layout",
    "log_embeddings",
    "log_floors",
    "log_layout",
    "log_picture",
    "log_settings",
    "log_text",
    "log_values",
    "takes_pictures",
]

Layout = dict[str, dict[str, list[Any]]]
"""Charts of TensorBoard: section to title to kind and patterns of tags."""

# TensorBoard shows the last layout that a run logged, and a trainer may have several monitors.
_LAYOUTS: WeakKeyDictionary[Any, Layout] = WeakKeyDictionary()


def log_values(
    trainer: Trainer, values: Mapping[str, float], step: int, device: torch.device
) -> None:
    """Hand values to every logger at exactly this step, and to callbacks that monitor them.

    `LightningModule.log` would drop values at steps that are no multiple of `log_every_n_steps`.
    All ranks have to call it: `EarlyStopping` and `ModelCheckpoint` decide on each of them.
    """
    trainer.callback_metrics.update(
        {tag: torch.tensor(value, device=device) for tag, value in values.items()}
    )
    for logger in trainer.loggers if trainer.is_global_zero else ():
        logger.log_metrics(dict(values), step=step)


def log_picture(trainer: Trainer, tag: str, figure: "Figure", step: int) -> None:
    """Send a figure to the loggers that take pictures: TensorBoard, W&B, MLflow."""
    for logger in trainer.loggers if takes_pictures(trainer) else ():
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):
            experiment.add_image(tag, _pixels(figure), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[_pixels(figure)], step=step)
        elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):
            name = f"{tag.replace('/', '_')}_{step:08d}.png"
            experiment.log_figure(logger.run_id, figure, name)


def takes_pictures(trainer: Trainer) -> bool:
    """Whether a logger would show a picture, so that nobody draws in vain."""
    if getattr(trainer, "fast_dev_run", False):
        return False
    return any(
        hasattr(logger, "log_image")
        or hasattr(getattr(logger, "experiment", None), "add_figure")
        or hasattr(getattr(logger, "experiment", None), "log_figure")
        for logger in trainer.loggers
    )


def log_layout(trainer: Trainer, layout: Layout) -> None:
    """Add charts to TensorBoard's custom scalars; nothing is written where they are there."""
    for logger in _with(trainer, "add_custom_scalars"):
        known = _LAYOUTS.setdefault(logger, {})
        merged = {title: {**known.get(title, {}), **charts} for title, charts in layout.items()}
        if layout and merged != {title: known.get(title) for title in merged}:
            known |= merged
            logger.experiment.add_custom_scalars(known)


def log_floors(trainer: Trainer, floors: Mapping[str, float], step: int) -> None:
    """Give TensorBoard the floors as scalars, which the charts of a layout show beside the curves.

    Other loggers do not get them: a constant is no result of a run.
    """
    for logger in _with(trainer, "add_custom_scalars"):
        logger.log_metrics(dict(floors), step=step)


def log_embeddings(
    trainer: Trainer, tag: str, rows: torch.Tensor, columns: Mapping[str, Sequence[str]], step: int
) -> None:
    """Give TensorBoard's projector a matrix to look around in.

    Args:
        trainer: Whose loggers.
        tag: Names the matrix.
        rows: (samples, features).
        columns: What is known of each sample, by title: its label, its text.
        step: Optimizer step.
    """
    rows_of_text = zip(*columns.values(), strict=True)
    lines = [[" ".join(text.split()) for text in row] for row in rows_of_text]
    titled = len(columns) > 1  # the projector takes a single column without a title
    for logger in _with(trainer, "add_embedding"):
        logger.experiment.add_embedding(
            rows,
            metadata=(lines if titled else [line[0] for line in lines]) or None,
            metadata_header=list(columns) if titled else None,
            global_step=step,
            tag=tag,
        )


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Give TensorBoard a card with a text as it stands, columns and all."""
    preformatted = "\n".join(f"    {line}" for line in text.strip("\n").splitlines())
    for logger in _with(trainer, "add_text"):
        logger.experiment.add_text(tag, preformatted, step)
        logger.experiment.flush()


def log_settings(trainer: Trainer, settings: Mapping[str, Any], tags: Sequence[str]) -> None:
    """Give TensorBoard's HParams page a row: the settings of this run and its final values.

    It goes into the run's own events. `SummaryWriter.add_hparams` would make a second run of it,
    and `log_hyperparams` of the logger would add a point at step 0 to every curve that it names.

    Args:
        trainer: Whose loggers.
        settings: Flat; what is no number, truth value or string is written as text, and what is
            unset (`None`, empty) is left out.
        tags: Scalars that the run has logged; the page shows the last value of each.
    """
    from torch.utils.tensorboard.summary import hparams

    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in settings.items()
        if value not in (None, "", [], ())
    }
    for logger in _with(trainer, "add_hparams"):
        writer = logger.experiment._get_file_writer()
        for part in hparams(plain, dict.fromkeys(tags, 0.0)):  # type: ignore[no-untyped-call]
            writer.add_summary(part)
        logger.experiment.flush()


def _with(trainer: Trainer, ability: str) -> list[Any]:
    """The loggers whose experiment has a method of this name."""
    if getattr(trainer, "fast_dev_run", False):
        return []
    loggers: list[Any] = [*trainer.loggers]
    return [logger for logger in loggers if hasattr(getattr(logger, "experiment", None), ability)]


def _pixels(figure: "Figure") -> Any:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
