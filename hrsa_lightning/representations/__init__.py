"""Representations of a live model: probes, layers, references, recorded traces, and the history."""

from hrsa_lightning.representations.history import SummaryRow, read_history, summarize
from hrsa_lightning.representations.isolation import untouched
from hrsa_lightning.representations.layers import select_layers
from hrsa_lightning.representations.pooling import pool
from hrsa_lightning.representations.trace import RepresentationTrace

__all__ = [
    "RepresentationTrace",
    "SummaryRow",
    "pool",
    "read_history",
    "select_layers",
    "summarize",
    "untouched",
]
