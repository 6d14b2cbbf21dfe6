"""Pure tensor functions for representation similarity; needs only torch."""

from hrsa_lightning.functional._numerics import SimilarityWarning
from hrsa_lightning.functional.cka import linear_cka
from hrsa_lightning.functional.cka_heatmap import linear_cka_heatmap
from hrsa_lightning.functional.cknna import cknna
from hrsa_lightning.functional.dimension_correlation import (
    DimensionCorrelationResult,
    dimension_correlation,
    dimension_correlation_heatmap,
)
from hrsa_lightning.functional.knn import chance_overlap, knn_overlap
from hrsa_lightning.functional.permutation import PermutationNull, permutation_null
from hrsa_lightning.functional.predictivity import (
    LinearPredictivityResult,
    linear_predictivity,
)
from hrsa_lightning.functional.probe_transfer import ProbeTransferResult, linear_probe_transfer
from hrsa_lightning.functional.procrustes import (
    AlignmentSpectrum,
    ProcrustesResult,
    alignment_spectrum,
    inverse_row_entropy,
    orthogonal_procrustes,
    procrustes_identity,
    random_rotation_inverse_row_entropy,
)
from hrsa_lightning.functional.reference import Reference
from hrsa_lightning.functional.uncertainty import JackknifeResult, jackknife

__all__ = [
    "AlignmentSpectrum",
    "DimensionCorrelationResult",
    "JackknifeResult",
    "LinearPredictivityResult",
    "PermutationNull",
    "ProbeTransferResult",
    "ProcrustesResult",
    "Reference",
    "SimilarityWarning",
    "alignment_spectrum",
    "chance_overlap",
    "cknna",
    "dimension_correlation",
    "dimension_correlation_heatmap",
    "inverse_row_entropy",
    "jackknife",
    "knn_overlap",
    "linear_cka",
    "linear_cka_heatmap",
    "linear_predictivity",
    "linear_probe_transfer",
    "orthogonal_procrustes",
    "permutation_null",
    "procrustes_identity",
    "random_rotation_inverse_row_entropy",
]
