"""Where values and pictures go: any logger, told apart by what it can do and not by its class.

Tags are made here and taken apart nowhere: everything else reads the fields of a `Measurement`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from hrsa_lightning.callbacks.tensorboard import Card, cards_of, has_runs, log_cards
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.plots.output import pixels_of
from hrsa_lightning.similarity.extraction import Representations
from hrsa_lightning.similarity.measurement import Measurement, headline_layer
from hrsa_lightning.similarity.probes import ProbeSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LONGEST_TEXT = 100
_VISUALS = "visuals"


def tag_of(name: str, m: Measurement, *, named: bool = True) -> str:
    """The tag of a value in loggers and `callback_metrics`.

    Args:
        name: Of the monitor.
        m: Whose tag.
        named: Name the comparison; left out where a monitor has only one of an unnamed model.

    Example:
        >>> m = Measurement("cka", 0.5, arm="rlvr", reference="base", layer="layer_3")
        >>> tag_of("similarity", m), tag_of("similarity", m._replace(label="noun", probes="math"))
        ('similarity/cka/rlvr_vs_base/layer_3', 'similarity.math/cka/rlvr_vs_base/layer_3/noun')
        >>> tag_of("retrieval", Measurement("mrr@10", 0.5, arm="rlvr"))
        'retrieval/rlvr/mrr@10'
    """
    group = f"{name}.{m.probes}" if m.probes else name
    comparison = m.comparison if named else m.arm
    parts: tuple[str, ...] = (group, m.metric, comparison, m.layer, m.label)
    if not m.layer and not m.reference:  # a score of the model as a whole
        parts = (group, m.arm, m.metric)
    return "/".join(part for part in parts if part)


def values_by_tag(
    name: str, measurements: Iterable[Measurement], *, named: bool = True
) -> dict[str, float]:
    """Values, and the ends of bands where there are any, by tag; arguments as of `tag_of`.

    Raises:
        ConfigError: When two values have one tag.
    """
    found: dict[str, float] = {}
    for m in measurements:
        ends = [("", m.value), ("_low", m.low), ("_high", m.high)]
        for end, value in ends:
            if value is None:
                continue
            key = tag_of(name, m._replace(metric=f"{m.metric}{end}"), named=named)
            if key in found:
                raise ConfigError(
                    f"{name}: two values have the tag {key!r}; rename an arm, a layer or a label"
                )
            found[key] = value
    return found


def log_measurements(
    trainer: Trainer,
    name: str,
    measurements: Sequence[Measurement],
    step: int,
    *,
    named: bool,
    seconds: float,
    first_step: int,
    device: torch.device,
) -> None:
    """Hand values to every logger at exactly this step, and to callbacks that monitor them.

    `LightningModule.log` would drop values at steps that are no multiple of `log_every_n_steps`.
    All ranks have to call it: `EarlyStopping` and `ModelCheckpoint` decide on each of them.

    Args:
        trainer: Whose loggers.
        name: Of the monitor.
        measurements: Of one evaluation.
        step: Optimizer step.
        named: See `tag_of`.
        seconds: Duration of the evaluation.
        first_step: Step at which the fit began.
        device: Of the values for callbacks.
    """
    values = values_by_tag(name, measurements, named=named) | {f"{name}/seconds": seconds}
    trainer.callback_metrics.update(
        {tag: torch.tensor(value, device=device) for tag, value in values.items()}
    )
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if has_runs(trainer, logger):
            cards = cards_of(name, measurements, named=named, seconds=seconds)
            log_cards(logger, cards, step, first_step)
        else:
            logger.log_metrics(dict(values), step=step)


def log_picture(trainer: Trainer, tag: str, figure: "Figure", step: int) -> None:
    """Send a figure to the loggers that take pictures: TensorBoard, W&B, MLflow.

    TensorBoard shows them in a group of their own, or they would stand before the curves.
    """
    for logger in trainer.loggers if takes_pictures(trainer) else ():
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):
            experiment.add_image(f"{_VISUALS}/{tag}", pixels_of(figure), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[pixels_of(figure)], step=step)
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


def log_embeddings(
    trainer: Trainer, tag: str, rows: torch.Tensor, columns: Mapping[str, Sequence[str]], step: int
) -> None:
    """Give TensorBoard's embedding projector a matrix.

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


def log_projector(
    trainer: Trainer, name: str, live: Representations, probes: Mapping[str, ProbeSet]
) -> None:
    """Give the projector one matrix per model and probe set: the output, or else the last layer.

    Args:
        trainer: Whose loggers.
        name: Begins the names of the matrices.
        live: Representations as of the latest evaluation.
        probes: The probe sets by name, which know labels and texts.
    """
    for group, arms in live.items():
        for arm, snapshot in arms.items():
            layer = headline_layer(snapshot)
            rows, known = snapshot[layer], probes[group]
            columns = {
                title: [text[:_LONGEST_TEXT] for text in column]
                for title, column in (("label", known.labels), ("text", known.texts))
                if column is not None and len(column) == len(rows)
            }
            name_parts = (name, group, arm, layer)
            title = "/".join(part for part in name_parts if part)
            log_embeddings(trainer, title, rows, columns, trainer.global_step)


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Give TensorBoard a card with a text as it stands, columns and all."""
    preformatted = "\n".join(f"    {line}" for line in text.strip("\n").splitlines())
    for logger in _with(trainer, "add_text"):
        logger.experiment.add_text(tag, preformatted, step)
        logger.experiment.flush()


def log_settings(trainer: Trainer, settings: Mapping[str, Any], cards: Iterable[Card]) -> None:
    """Give TensorBoard's HParams page a row: the settings of this run and its final values.

    It goes into the run's own events. `SummaryWriter.add_hparams` would make a second run of it,
    and `log_hyperparams` of the logger would add a point at step 0 to every curve that it names.

    Args:
        trainer: Whose loggers.
        settings: Flat; what is no number, truth value or string is written as text, and what is
            unset (`None`, empty) is left out.
        cards: Scalars that the run has logged; the page shows the last value of each.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in settings.items()
        if value not in (None, "", [], ())
    }
    experiment, *session = hparams(plain, {})  # type: ignore[no-untyped-call]
    about = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(about.content)
    for run, tag in cards:
        content.experiment.metric_infos.add(name={"group": run, "tag": tag})
    about.content = content.SerializeToString()
    for logger in _with(trainer, "add_hparams"):
        writer = logger.experiment._get_file_writer()
        for part in (experiment, *session):
            writer.add_summary(part)
        logger.experiment.flush()


def _with(trainer: Trainer, ability: str) -> list[Any]:
    """The loggers whose experiment has a method of this name."""
    if getattr(trainer, "fast_dev_run", False):
        return []
    loggers: list[Any] = [*trainer.loggers]
    return [logger for logger in loggers if hasattr(getattr(logger, "experiment", None), ability)]
