"""What TensorBoard shows: one run per comparison, so that each has a color and a name.

TensorBoard colors runs, not tags. So each comparison is a run in a folder below that of the logger,
as those of `SummaryWriter.add_scalars` are, and a tag is a card with a line for each of them:

| Group of cards | Runs | Values |
|---|---|---|
| `similarity` | `rlvr_vs_base`, …, `chance` | one metric of each kind, at the output |
| `similarity_initial` | `rlvr`, …, `chance` | the same of each arm against its own start |
| `similarity_layers`, … | the same | all other metrics, layers and labels |
| `task` | `rlvr`, …, `chance` | scores of a model, such as those of `RetrievalMonitor` |

Groups are sorted by name, and the first two are open; what would come before `similarity` is named
otherwise. There are seven colors, which runs get by age and then anew. So comparisons are written
first, and what concerns a single arm is in one run: no card has a color twice up to six arms. A
single model without a name has no run beside the logger's own, but for `chance`.
"""

import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from hrsa_lightning.similarity.measurement import Measurement, headline_layer
from hrsa_lightning.similarity.metric_info import HEADLINE, info_of
from hrsa_lightning.similarity.references import INITIAL

CHANCE = "chance"
"""The run of the chance levels."""

_TASK = "task"
"""Group of scores; behind `similarity`, which belongs on the first screen."""

_DIFFERS = 0.05
"""Chance levels that differ by more, and by this share of their size, have cards of their own."""

_LONGEST_NAME = 80


class Card(NamedTuple):
    """Where TensorBoard shows a value.

    Attributes:
        run: Name of the run and of its folder below that of the logger; empty for the logger's own.
        tag: Name of the card.
    """

    run: str
    tag: str


def cards_of(
    name: str,
    measurements: Sequence[Measurement],
    *,
    named: bool = True,
    seconds: float | None = None,
) -> dict[Card, float]:
    """Values, ends of bands and chance levels, by place.

    Args:
        name: Of the monitor.
        measurements: Of one evaluation.
        named: See `tag_of`.
        seconds: Duration of the evaluation.

    Returns:
        Comparisons first, then chance, then arms: the order in which runs get colors.

    Example:
        >>> m = Measurement("cka", 0.5, 0.0, arm="rlvr", reference="base", layer="output")
        >>> found = [m, m._replace(layer="layer_0"), m._replace(reference="initial", value=0.9)]
        >>> for (run, tag), value in cards_of("similarity", found).items():
        ...     print(f"{run:<12}", tag, value)
        rlvr_vs_base similarity/cka/output 0.5
        rlvr_vs_base similarity_layers/cka/layer_0 0.5
        chance       similarity/cka/output 0.0
        chance       similarity_layers/cka/layer_0 0.0
        chance       similarity_initial/cka/output 0.0
        rlvr         similarity_initial/cka/output 0.9
    """
    compared = [m for m in measurements if m.reference]
    shown = _headline_metrics(m.metric for m in compared)
    layer = headline_layer(m.layer for m in compared) if compared else ""
    arms: dict[Card, float] = {}
    pairs: dict[Card, float] = {}
    levels: dict[str, list[tuple[Card, Measurement]]] = {}
    for m in measurements:
        group = f"{name}.{m.probes}" if m.probes else name
        is_own = not m.reference or (named and m.reference == INITIAL)
        run = folder_name(m.arm if is_own or not named else m.comparison)
        is_score = not m.layer and not m.reference
        if is_score:
            group = f"{_TASK}/{group}"
        elif m.reference and is_own:
            group = f"{group}_initial"
        is_main = m.layer == layer and not m.label
        is_headline = m.metric in shown and is_main and bool(m.reference)
        rest = f"{group}_layers" if compared and not is_score else group
        where = "".join(f"/{part}" for part in (m.layer, m.label) if part)
        card = Card(run, f"{group if is_headline else rest}/{m.metric}{where}")
        found = arms if is_own else pairs
        found[card] = m.value
        for end, value in (("low", m.low), ("high", m.high)):
            if value is not None:
                found[Card(run, f"{rest}/{m.metric}_{end}{where}")] = value
        if m.chance is not None:
            own = Card(run, f"{rest}/{m.metric}_chance{where}")
            levels.setdefault(card.tag, []).append((own, m))
    chance: dict[Card, float] = {}
    for tag, known in levels.items():
        values = [m.chance for _, m in known if m.chance is not None]
        # The level that is hardest to tell from likeness, where there are several.
        lowest, highest = min(values), max(values)
        chance[Card(CHANCE, tag)] = lowest if info_of(known[0][1].metric).sign < 0 else highest
        if highest - lowest > _DIFFERS * max(1.0, abs(highest)):
            pairs |= {own: m.chance for own, m in known if m.chance is not None}
    cards = pairs | chance | arms
    if seconds is not None:
        group = name if any(m.layer or m.reference for m in measurements) else f"{_TASK}/{name}"
        cards[Card("", f"{group}/seconds")] = seconds
    return cards


def _headline_metrics(metrics: Iterable[str]) -> set[str]:
    """One metric of each kind and those that are not ours; all where that leaves none."""
    known = set(metrics)
    chosen = {metric for metric in known if not info_of(metric).level}
    chosen |= known.intersection(HEADLINE)
    if "cka" in chosen:
        chosen.discard("cka_standardized")
    return chosen or known


def has_runs(trainer: Any, logger: Any) -> bool:
    """Whether a logger writes TensorBoard's event files into a folder of this machine."""
    if getattr(trainer, "fast_dev_run", False):
        return False
    experiment = getattr(logger, "experiment", None)
    is_writer = hasattr(experiment, "add_custom_scalars") and hasattr(logger, "log_dir")
    return is_writer and "://" not in str(logger.log_dir)


def log_cards(logger: Any, cards: Mapping[Card, float], step: int, first_step: int = 0) -> None:
    """Write values into runs below that of a TensorBoard logger, and its own ones with it.

    Files are open only while they are written, and there is one per run and fit: many comparisons
    need no more threads or descriptors than one.

    Args:
        logger: For which `has_runs` holds; on rank 0.
        cards: Values by place.
        step: Optimizer step.
        first_step: Step at which the fit began. TensorBoard forgets what an interrupted fit wrote
            into the same folders after it.
    """
    if own := {card.tag: value for card, value in cards.items() if not card.run}:
        logger.log_metrics(own, step=step)
    prefix = getattr(logger, "_prefix", "")
    for run in dict.fromkeys(card.run for card in cards if card.run):
        values = {
            f"{prefix}-{card.tag}" if prefix else card.tag: value
            for card, value in cards.items()
            if card.run == run
        }
        _write(logger, run, values, step, first_step)


def close_runs(trainer: Any) -> None:
    """Let the next `log_cards` begin new files; at the start of a fit."""
    for logger in trainer.loggers:
        _FILES.pop(logger, None)


_FILES: WeakKeyDictionary[Any, dict[str, Path]] = WeakKeyDictionary()
"""Event files of the runs of a logger in the current fit."""

_COUNT = itertools.count()


def _write(logger: Any, run: str, values: Mapping[str, float], step: int, first_step: int) -> None:
    # Not with the module: who has another logger needs none of it.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    files = _FILES.setdefault(logger, {})
    events = []
    if run not in files:
        folder = Path(logger.log_dir, run)
        folder.mkdir(parents=True, exist_ok=True)
        # The name that `SummaryWriter` gives, by which TensorBoard finds and orders files.
        parts = (f"{time.time():.0f}", socket.gethostname(), str(os.getpid()), str(next(_COUNT)))
        files[run] = folder / f"events.out.tfevents.{'.'.join(parts)}"
        events.append(Event(file_version="brain.Event:2"))
        if first_step:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(step=first_step + 1, session_log=start))
    summary = Summary(
        value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    )
    events.append(Event(step=step, summary=summary))
    with files[run].open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())


def folder_name(name: str) -> str:
    """What the folder of an arm or a comparison is called: as itself, where file systems allow it.

    Example:
        >>> folder_name("rlvr_vs_base"), folder_name("org/model:7b")
        ('rlvr_vs_base', 'org_model_7b-a0975b')
    """
    plain = re.sub(r"[^\w.+-]+", "_", name).strip("._-")[:_LONGEST_NAME]
    if plain == name and name.lower() != CHANCE:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:6]}"


class ArmsLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard, with the losses of all arms in one card.

    `train/loss/<arm>` is written as `train/loss` into the run of the arm. The epoch, which would be
    the first card of all, is `train/epoch`.

    Args:
        folder: The run's folder.
        arms: Names of the arms.
        resumed_step: Step of the checkpoint that the run goes on from; what was logged after it is
            forgotten.
    """

    def __init__(self, folder: Path, arms: Iterable[str], resumed_step: int = 0) -> None:
        purge_step = resumed_step + 1 if resumed_step else None
        super().__init__(save_dir=folder, name="", version="", purge_step=purge_step)
        self._losses = {f"train/loss/{arm}": folder_name(arm) for arm in arms}
        self._resumed_step = resumed_step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        own: dict[str, Any] = {}
        for name, value in metrics.items():
            if name in self._losses and step is not None:
                loss = {"train/loss": float(value)}
                _write(self, self._losses[name], loss, step, self._resumed_step)
            else:
                own["train/epoch" if name == "epoch" else name] = value
        super().log_metrics(own, step)
