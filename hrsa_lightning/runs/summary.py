"""The end of a run in numbers: first and last value of every metric, for people and as a file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from hrsa_lightning.io import write_json
from hrsa_lightning.runs.directory import HISTORIES, SUMMARY, histories_of
from hrsa_lightning.similarity.history import SummaryRow, read_history, summarize
from hrsa_lightning.similarity.measurement import headline_layer

_ARROW = " -> "
_START = "initial"


def write_summary(folder: Path, *, steps: int, seconds: float) -> None:
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
    content = {"steps": steps, "seconds": round(seconds, 1), "values": rows}
    write_json(folder / SUMMARY, content)


def summary_lines(folder: Path) -> list[str]:
    """Tables of the values at the embedding (or the last layer), before and after training."""
    lines: list[str] = []
    for path in histories_of(folder):
        rows = _rows(path)
        lines += _similarity_tables(path.stem, [row for row in rows if row.series.reference])
        scores = [row for row in rows if not row.series.reference and not row.series.layer]
        what = f"{path.stem}{' on held-out pairs' if path.name in HISTORIES else ''}"
        lines += _table(f"{what}, before{_ARROW}after", scores, {})
    return lines


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
