"""Where values and pictures go: any logger, told apart by what it can do and not by its class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_floors", "log_layout", "log_picture", "log_values"]


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
    if getattr(trainer, "fast_dev_run", False):
        return
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):
            experiment.add_image(tag, _pixels(figure), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[_pixels(figure)], step=step)
        elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):
            name = f"{tag.replace('/', '_')}_{step:08d}.png"
            experiment.log_figure(logger.run_id, figure, name)


def log_layout(trainer: Trainer, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Give TensorBoard a custom-scalars layout: category to chart title to chart."""
    for logger in _with_layouts(trainer):
        logger.experiment.add_custom_scalars(layout)


def log_floors(trainer: Trainer, floors: Mapping[str, float], step: int) -> None:
    """Give TensorBoard the floors as scalars, which the charts of a layout show beside the curves.

    Other loggers do not get them: a constant is no result of a run.
    """
    for logger in _with_layouts(trainer):
        logger.log_metrics(dict(floors), step=step)


def _with_layouts(trainer: Trainer) -> list[Any]:
    if getattr(trainer, "fast_dev_run", False):
        return []
    loggers: list[Any] = [*trainer.loggers]
    return [
        logger
        for logger in loggers
        if hasattr(getattr(logger, "experiment", None), "add_custom_scalars")
    ]


def _pixels(figure: "Figure") -> Any:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
