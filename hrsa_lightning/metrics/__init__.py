"""Representation similarity as torchmetrics; needs only torch and torchmetrics."""

from hrsa_lightning.metrics._base import PairMetric
from hrsa_lightning.metrics.cka import LinearCKA
from hrsa_lightning.metrics.cknna import CKNNA
from hrsa_lightning.metrics.collection import HRSAMetrics, hrsa_metrics
from hrsa_lightning.metrics.dimension_correlation import DimensionCorrelation
from hrsa_lightning.metrics.heatmaps import DimensionCorrelationHeatmap, LinearCKAHeatmap
from hrsa_lightning.metrics.invariance import InvarianceProfile, invariance_profile
from hrsa_lightning.metrics.knn import KNNOverlap
from hrsa_lightning.metrics.predictivity import LinearPredictivity
from hrsa_lightning.metrics.probe_transfer import LinearProbeTransfer
from hrsa_lightning.metrics.procrustes import OrthogonalProcrustes

__all__ = [
    "CKNNA",
    "DimensionCorrelation",
    "DimensionCorrelationHeatmap",
    "HRSAMetrics",
    "InvarianceProfile",
    "KNNOverlap",
    "LinearCKA",
    "LinearCKAHeatmap",
    "LinearPredictivity",
    "LinearProbeTransfer",
    "OrthogonalProcrustes",
    "PairMetric",
    "hrsa_metrics",
    "invariance_profile",
]
