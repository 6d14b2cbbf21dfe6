"""The report: what runs left behind, as one page to read and to send."""

from hrsa_lightning.reporting.report import write_report
from hrsa_lightning.reporting.statistics import (
    ClosedGap,
    HalfLife,
    Spread,
    closed_gap,
    half_life,
    realignment_gain,
    recovered_share,
    spread,
)

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
