"""The end of a run as a file: first and last value of every metric, and its seed controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hrsa_lightning.config.schema import Config
from hrsa_lightning.io.files import write_json
from hrsa_lightning.runs.directory import SUMMARY, histories_of
from hrsa_lightning.similarity.history import SummaryRow, read_history, summarize

if TYPE_CHECKING:
    from hrsa_lightning.data import PairSource

_ROUNDING = 1e-9
"""Values of equal representations differ from their identity by less, those of others by more."""


class Control(NamedTuple):
    """An arm that differs from an earlier one by its seed alone.

    Attributes:
        arm: The control.
        twin: The arm with the same backbone.
        varied: What their seeds decided differently, of `order of batches`, `drawn negatives`,
            `adapters` and `dropout`.
        identical: At the end every value of the two equals that of a model and itself: nothing was
            controlled.
    """

    arm: str
    twin: str
    varied: tuple[str, ...]
    identical: bool = False


def find_controls(
    config: Config, sources: "Sequence[PairSource]", *, dropout: bool, folder: Path
) -> list[Control]:
    """The seed controls of a run, what they varied, and whether they turned out identical."""
    num_negatives = config.data.train_group_size - 1
    # All negatives of an example are taken, each as often, where their number divides the draw.
    draws = any(bool((num_negatives % s.negative_counts.clip(1)).any()) for s in sources)
    decided = {
        "order of batches": True,
        "drawn negatives": draws,
        "adapters": config.model.lora is not None,
        "dropout": dropout,
    }
    varied = tuple(name for name, varies in decided.items() if varies)
    rows = _ends_of(folder)
    names = list(config.arms)
    return [
        Control(arm, twin, varied, _is_identical(rows, arm, twin))
        for number, arm in enumerate(names)
        for twin in names[:number]
        if _differ_in_seed_alone(config, arm, twin)
    ]


def read_controls(summary: Mapping[str, Any]) -> list[Control]:
    """The controls in the content of a `summary.json`; none where it is older than they are."""
    return [
        Control(each["arm"], each["twin"], tuple(each["varied"]), each["identical"])
        for each in summary.get("controls", [])
    ]


def _differ_in_seed_alone(config: Config, arm: str, twin: str) -> bool:
    one, other = config.arms[arm], config.arms[twin]
    of_one_backbone = (one.backbone, one.revision) == (other.backbone, other.revision)
    return of_one_backbone and config.seed_of(arm) != config.seed_of(twin)


def _ends_of(folder: Path) -> list[SummaryRow]:
    """First and last value of every series of a run."""
    return [row for path in histories_of(folder) for row in summarize(read_history(path))]


def _is_identical(rows: Sequence[SummaryRow], arm: str, twin: str) -> bool:
    """Whether all last values of a comparison are those of a model and itself."""
    ends = [
        (row.last.value, row.last.identity)
        for row in rows
        if {row.series.arm, row.series.reference} == {arm, twin} and row.last.identity is not None
    ]
    return bool(ends) and all(abs(value - identity) < _ROUNDING for value, identity in ends)


def write_summary(
    folder: Path, *, steps: int, seconds: float, controls: Sequence[Control] = ()
) -> None:
    """Write `summary.json`, which also marks the run as complete."""
    rows = [
        {
            "comparison": series.comparison,
            "where": "/".join(part for part in (series.layer, series.label) if part) or "held_out",
            "metric": series.metric,
            "first": first.value,
            "last": last.value,
        }
        for series, first, last in _ends_of(folder)
    ]
    content = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "controls": [control._asdict() for control in controls],
        "values": rows,
    }
    write_json(folder / SUMMARY, content)
