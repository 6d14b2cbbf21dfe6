"""Callbacks that drop into any Lightning project and watch its representations."""

from hrsa_lightning.callbacks.progress import StepProgressBar
from hrsa_lightning.callbacks.recorder import RepresentationRecorder
from hrsa_lightning.callbacks.retrieval import RetrievalMonitor
from hrsa_lightning.callbacks.similarity import SimilarityMonitor

__all__ = ["RepresentationRecorder", "RetrievalMonitor", "SimilarityMonitor", "StepProgressBar"]
