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
    from hrsa_lightning.report.writing import write_report

__all__ = [
    "ClosedGap",
    "HalfLife",
    "Spread",
    "closed_gap",
    "half_life",
    "realignment_gain",
    "recovered_share",
    "spread",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "write_report":  # loads matplotlib, which the formulas and `--help` do without
        from hrsa_lightning.report.writing import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
