"""The end of a run in numbers: first and last value of every metric, for people and as a file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hrsa_lightning.config.schema import Config
from hrsa_lightning.io import write_json
from hrsa_lightning.runs.directory import HISTORIES, SUMMARY, histories_of
from hrsa_lightning.similarity.history import SummaryRow, read_history, summarize
from hrsa_lightning.similarity.measurement import headline_layer

if TYPE_CHECKING:
    from hrsa_lightning.data import PairSource

_ARROW = " -> "
_START = "initial"
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

    def __str__(self) -> str:
        if self.identical:
            return f"{self.arm} is no control: it ends identical to {self.twin}"
        *first, last = self.varied or ("nothing",)
        words = f"{', '.join(first)} and {last}" if first else last
        return f"{self.arm} differs from {self.twin} in {words}"


def find_controls(
    config: Config, sources: "Sequence[PairSource]", *, dropout: bool, folder: Path
) -> list[Control]:
    """The seed controls of a run, what they varied, and whether they turned out identical.

    Args:
        config: The recipe.
        sources: The training pairs.
        dropout: Whether the arms have any, in adapters or backbones.
        folder: Of the run, for its histories.
    """
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
    rows = [row for path in histories_of(folder) for row in _rows(path)]
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
    seeds = [config.seed if each.seed is None else each.seed for each in (one, other)]
    return (one.backbone, one.revision) == (other.backbone, other.revision) and (
        seeds[0] != seeds[1]
    )


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
            "first": first.value if math.isfinite(first.value) else None,
            "last": last.value if math.isfinite(last.value) else None,
        }
        for path in histories_of(folder)
        for series, first, last in _rows(path)
    ]
    content = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "controls": [control._asdict() for control in controls],
        "values": rows,
    }
    write_json(folder / SUMMARY, content)


def summary_lines(folder: Path, controls: Sequence[Control] = ()) -> list[str]:
    """Tables of the values at the embedding (or the last layer), before and after training.

    What the seed controls varied comes last.
    """
    lines: list[str] = []
    for path in histories_of(folder):
        rows = _rows(path)
        lines += _similarity_tables(path.stem, [row for row in rows if row.series.reference])
        scores = [row for row in rows if not row.series.reference and not row.series.layer]
        what = f"{path.stem}{' on held-out pairs' if path.name in HISTORIES else ''}"
        lines += _table(f"{what}, before{_ARROW}after", scores, {})
    return [*lines, *([""] if controls else []), *map(str, controls)]


def _similarity_tables(name: str, rows: Sequence[SummaryRow]) -> list[str]:
    if not rows:
        return []
    layer = headline_layer(row.series.layer for row in rows)
    chosen = [row for row in rows if (row.series.layer, row.series.label) == (layer, "")]
    alone = len({row.series.comparison for row in chosen}) == 1
    drift = [row for row in chosen if _is_drift(row) and not alone]
    between = [row for row in chosen if row not in drift]
    chance = {series.metric: last.chance for series, _, last in chosen if last.chance is not None}
    return [
        *_table(f"{name} at {layer}, before{_ARROW}after", between, chance),
        *_table(f"drift from each arm's own start at {layer}, at the end", drift, chance),
    ]


def _rows(path: Path) -> list[SummaryRow]:
    return summarize(read_history(path))


def _is_drift(row: SummaryRow) -> bool:
    return row.series.reference == _START


def _table(title: str, rows: Sequence[SummaryRow], chance: Mapping[str, float]) -> list[str]:
    """Metrics down, comparisons across, and the chance level of each metric where one is known.

    Self-comparisons show only the last value; the first is 1.
    """
    if not rows:
        return []
    names = {
        row.series.comparison: row.series.arm if _is_drift(row) else row.series.comparison
        for row in rows
    }
    cells = {(row.series.metric, row.series.comparison): _cell(row) for row in rows}
    header = ["", *names.values(), *(["chance"] if chance else [])]
    body = []
    for metric in dict.fromkeys(row.series.metric for row in rows):
        line = [metric, *(cells.get((metric, name), "") for name in names)]
        if chance:
            line.append(_number(chance[metric]) if metric in chance else "")
        body.append(line)
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]
    rendered = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *body)
    ]
    return ["", title, rendered[0], "-" * (sum(widths) + 2 * len(widths) - 2), *rendered[1:]]


def _cell(row: SummaryRow) -> str:
    if _is_drift(row) and row.series.arm:
        return _number(row.last.value)
    return _number(row.first.value) + _ARROW + _number(row.last.value)


def _number(value: float) -> str:
    # Adding zero after rounding takes the sign off a zero.
    return "undefined" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"
