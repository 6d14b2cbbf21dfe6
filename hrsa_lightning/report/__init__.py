"""The report: what runs left behind, as one page to read and to send."""

from typing import TYPE_CHECKING, Any

from hrsa_lightning.report.statistics import (
    ClosedGap,
    HalfLife,
    Spread,
    closed_gap,
    half_life,
    realignment_gain,
    recovered_share,
    spread,
)

if TYPE_CHECKING:
    from hrsa_lightning.report.writing import summary_lines, write_report

__all__ = [
    "ClosedGap",
    "HalfLife",
    "Spread",
    "closed_gap",
    "half_life",
    "realignment_gain",
    "recovered_share",
    "spread",
    "summary_lines",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in ("summary_lines", "write_report"):  # load matplotlib, which formulas do without
        from hrsa_lightning.report import writing

        return getattr(writing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
