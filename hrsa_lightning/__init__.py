"""Fine-tune decoder LLMs into embedding models and watch their representations while they train.

The names below load on first use: `hrsa_lightning.functional` and `hrsa_lightning.metrics` need
neither Lightning nor transformers, and importing this package imports not even torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrsa_lightning.callbacks import RepresentationRecorder, RetrievalMonitor, SimilarityMonitor
    from hrsa_lightning.metrics import hrsa_metrics
    from hrsa_lightning.models import EmbeddingModel
    from hrsa_lightning.modules import ContrastiveModule, PairedContrastiveModule
    from hrsa_lightning.similarity import SimilarityEvaluator

try:
    __version__ = version("hrsa-lightning")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "ContrastiveModule",
    "EmbeddingModel",
    "PairedContrastiveModule",
    "RepresentationRecorder",
    "RetrievalMonitor",
    "SimilarityEvaluator",
    "SimilarityMonitor",
    "__version__",
    "hrsa_metrics",
]

_HOMES = {
    "ContrastiveModule": "modules",
    "EmbeddingModel": "models",
    "PairedContrastiveModule": "modules",
    "RepresentationRecorder": "callbacks",
    "RetrievalMonitor": "callbacks",
    "SimilarityEvaluator": "similarity",
    "SimilarityMonitor": "callbacks",
    "hrsa_metrics": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
