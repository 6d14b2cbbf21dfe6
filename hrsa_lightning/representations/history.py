"""The history of an evaluation: JSON lines beside the run, one per evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SummaryRow", "append_record", "cut_history", "read_history", "split_tag", "summarize"]


class SummaryRow(NamedTuple):
    """First and last value of one metric at one place.

    Attributes:
        comparison: Such as `rlvr_vs_base`; empty when the run has only one comparison.
        where: Such as `layer_3` or `output`.
        metric: Such as `cka`.
        first: Value at the first evaluation that has it.
        last: Value at the last.
    """

    comparison: str
    where: str
    metric: str
    first: float
    last: float


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a history file; a last line that was cut off by a kill is left out.

    Args:
        path: The file.

    Returns:
        Records in the order written; an undefined value is NaN.
    """
    records = []
    for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]:
        record = json.loads(line)
        for key in ("values", "floors"):
            if key in record:
                record[key] = {
                    tag: math.nan if value is None else value for tag, value in record[key].items()
                }
        records.append(record)
    return records


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record; NaN and infinities, which JSON lacks, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(record)) + "\n")


def cut_history(source: Path, target: Path, last_step: int) -> list[int]:
    """Begin `target` with the records of `source` up to a step, for a run that resumes there.

    Args:
        source: The file of the run that was interrupted; may be missing.
        target: The file of the run that goes on; may be the same one. Where no record is kept,
            there is none.
        last_step: Later records are dropped.

    Returns:
        The steps of the records kept.
    """
    lines = source.read_text(encoding="utf-8").split("\n")[:-1] if source.is_file() else []
    kept = [(step, line) for line in lines if (step := json.loads(line)["step"]) <= last_step]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not kept:
        target.unlink(missing_ok=True)
        return []
    partial = target.with_name(target.name + ".partial")
    partial.write_text("".join(f"{line}\n" for _, line in kept), encoding="utf-8")
    partial.replace(target)
    return [step for step, _ in kept]


def split_tag(tag: str) -> tuple[str, str, str, str]:
    """Take a tag apart into group, metric, comparison and place.

    Example:
        >>> split_tag("similarity/cka/rlvr_vs_base/layer_3")
        ('similarity', 'cka', 'rlvr_vs_base', 'layer_3')
        >>> split_tag("similarity/cka/output")
        ('similarity', 'cka', '', 'output')
        >>> split_tag("retrieval/rlvr/mrr@10")
        ('retrieval', 'mrr@10', 'rlvr', 'held_out')
    """
    group, metric, *rest = tag.split("/")
    if "@" in tag:  # a ranking score: no layer, and the arm stands before the metric
        return (group, rest[0], metric, "held_out") if rest else (group, metric, "", "held_out")
    comparison = rest.pop(0) if rest and "_vs_" in rest[0] else ""
    return group, metric, comparison, "/".join(rest)


def summarize(history: Sequence[Mapping[str, Any]]) -> list[SummaryRow]:
    """First and last value of every metric at every place, in the order of the tags.

    Args:
        history: What `read_history` returns.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for record in history:
        for tag, value in record["values"].items():
            first.setdefault(tag, value)
            last[tag] = value
    rows = []
    for tag in first:
        _, metric, comparison, where = split_tag(tag)
        if where:
            rows.append(SummaryRow(comparison, where, metric, first[tag], last[tag]))
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
