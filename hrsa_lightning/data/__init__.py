"""Contrastive pairs: reading, sampling, collating.

Names are loaded when they are first used: reading and checking files needs no torch, so that a
command can answer a bad line before the heavy imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrsa_lightning.data.collate import (
        ArmBatches,
        ContrastiveBatch,
        ContrastiveCollator,
        text_id,
    )
    from hrsa_lightning.data.datamodule import ContrastiveDataModule, ContrastiveLoader
    from hrsa_lightning.data.entries import PairEntry
    from hrsa_lightning.data.pairs import PairSource, read_pairs, read_retrieval_set
    from hrsa_lightning.data.sampling import (
        ContrastiveDataset,
        ContrastiveExample,
        GlobalBatchSampler,
        check_pairs,
    )
    from hrsa_lightning.io.pairs import ContrastivePair, RetrievalSet

_MODULES = {
    "ArmBatches": "collate",
    "ContrastiveBatch": "collate",
    "ContrastiveCollator": "collate",
    "ContrastiveDataModule": "datamodule",
    "ContrastiveDataset": "sampling",
    "ContrastiveExample": "sampling",
    "ContrastiveLoader": "datamodule",
    "ContrastivePair": "pairs",
    "GlobalBatchSampler": "sampling",
    "PairEntry": "entries",
    "PairSource": "pairs",
    "RetrievalSet": "pairs",
    "check_pairs": "sampling",
    "read_pairs": "pairs",
    "read_retrieval_set": "pairs",
    "text_id": "collate",
}

__all__ = [
    "ArmBatches",
    "ContrastiveBatch",
    "ContrastiveCollator",
    "ContrastiveDataModule",
    "ContrastiveDataset",
    "ContrastiveExample",
    "ContrastiveLoader",
    "ContrastivePair",
    "GlobalBatchSampler",
    "PairEntry",
    "PairSource",
    "RetrievalSet",
    "check_pairs",
    "read_pairs",
    "read_retrieval_set",
    "text_id",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
