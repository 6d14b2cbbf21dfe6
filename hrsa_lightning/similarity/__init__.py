"""The engine: how similar models are to references, layer by layer, in any training loop.

Names load on first use: histories are read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrsa_lightning.similarity.evaluator import SimilarityEvaluator
    from hrsa_lightning.similarity.history import read_history, summarize
    from hrsa_lightning.similarity.isolation import preserve_training_state
    from hrsa_lightning.similarity.layers import select_layers
    from hrsa_lightning.similarity.measurement import Measurement
    from hrsa_lightning.similarity.pooling import pool
    from hrsa_lightning.similarity.trace import RepresentationTrace

__all__ = [
    "Measurement",
    "RepresentationTrace",
    "SimilarityEvaluator",
    "pool",
    "preserve_training_state",
    "read_history",
    "select_layers",
    "summarize",
]

_HOMES = {
    "Measurement": "measurement",
    "RepresentationTrace": "trace",
    "SimilarityEvaluator": "evaluator",
    "pool": "pooling",
    "preserve_training_state": "isolation",
    "read_history": "history",
    "select_layers": "layers",
    "summarize": "history",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
