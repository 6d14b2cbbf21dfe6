"""The end of a run in numbers: first and last value of every metric, for people and as a file."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from hrsa_lightning.representations.history import SummaryRow, read_history, summarize
from hrsa_lightning.runs import HISTORIES, SUMMARY

_BOUNDS = ("_low", "_high")
_ARROW = " -> "


def write_summary(folder: Path, *, steps: int, seconds: float) -> None:
    """Write `summary.json`, which also marks the run as complete."""
    rows = [row._asdict() for name in HISTORIES for row in _rows(folder / name)]
    for row in rows:
        for key in ("first", "last"):
            row[key] = row[key] if math.isfinite(row[key]) else None
    content = {"steps": steps, "seconds": round(seconds, 1), "values": rows}
    partial = folder / f"{SUMMARY}.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / SUMMARY)


def summary_lines(folder: Path) -> list[str]:
    """Tables of the values at the embedding (or the last layer), before and after training."""
    lines: list[str] = []
    similarity = _rows(folder / HISTORIES[0])
    if similarity:
        where = _place(similarity)
        floors = _floors(folder / HISTORIES[0], where)
        chosen = [row for row in similarity if row.where == where]
        drift = [row for row in chosen if row.comparison.endswith("_vs_initial")]
        between = [row for row in chosen if row not in drift]
        lines += _table(f"similarity at {where}, before{_ARROW}after", between, floors)
        lines += _table(f"drift from each arm's own start at {where}, at the end", drift, floors)
    retrieval = _rows(folder / HISTORIES[1])
    lines += _table(f"retrieval on held-out pairs, before{_ARROW}after", retrieval, {})
    return lines


def _rows(path: Path) -> list[SummaryRow]:
    if not path.is_file():
        return []
    return [row for row in summarize(read_history(path)) if not row.metric.endswith(_BOUNDS)]


def _place(rows: Sequence[SummaryRow]) -> str:
    places = [row.where for row in rows]
    return "output" if "output" in places else places[-1]


def _floors(path: Path, where: str) -> dict[str, float]:
    """Chance level by metric; it depends on sample count and width only."""
    floors: dict[str, float] = {}
    for record in read_history(path)[:1]:
        for tag, value in record.get("floors", {}).items():
            if tag.endswith(f"/{where}"):
                floors[tag.split("/")[1]] = value
    return floors


def _table(title: str, rows: Sequence[SummaryRow], floors: dict[str, float]) -> list[str]:
    """Metrics down, comparisons across; a drift starts at identity, so only its end is shown."""
    if not rows:
        return []
    columns = list(dict.fromkeys(row.comparison for row in rows))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.metric, row.comparison): _cell(row) for row in rows}
    header = ["", *(name.removesuffix("_vs_initial") for name in columns)]
    header += ["chance"] if floors else []
    body = []
    for metric in metrics:
        line = [metric, *(cells.get((metric, column), "") for column in columns)]
        if floors:
            line.append(_number(floors[metric]) if metric in floors else "")
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
    if row.comparison.endswith("_vs_initial"):
        return _number(row.last)
    return _number(row.first) + _ARROW + _number(row.last)


def _number(value: float) -> str:
    # Adding zero after rounding takes the sign off a zero.
    return "undefined" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"
