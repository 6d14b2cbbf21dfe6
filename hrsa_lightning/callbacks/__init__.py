"""Callbacks for any Lightning project that measure representations while a model trains."""

from hrsa_lightning.callbacks.base import Monitor
from hrsa_lightning.callbacks.progress import StepProgressBar
from hrsa_lightning.callbacks.recorder import RepresentationRecorder
from hrsa_lightning.callbacks.retrieval import RetrievalMonitor
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.callbacks.similarity import SimilarityMonitor

__all__ = [
    "Monitor",
    "RepresentationRecorder",
    "RetrievalMonitor",
    "Schedule",
    "SimilarityMonitor",
    "StepProgressBar",
]
