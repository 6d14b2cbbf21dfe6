"""Backbones turned into embedding models: loading, attention, tokenization, pooling, LoRA.

Importing this package imports no torch: the names below load on first use, so that `config.py` can
ask `hrsa_lightning.models.paths` about a backbone before anything slow begins.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrsa_lightning.models.backbone import load_backbone, load_tokenizer
    from hrsa_lightning.models.chunks import length_sorted_chunks
    from hrsa_lightning.models.embedder import EmbeddingModel
    from hrsa_lightning.models.lora import add_lora
    from hrsa_lightning.models.paths import resolve_backbone
    from hrsa_lightning.models.tokenization import EmbeddingTokenizer, TokenizedTexts

__all__ = [
    "EmbeddingModel",
    "EmbeddingTokenizer",
    "TokenizedTexts",
    "add_lora",
    "length_sorted_chunks",
    "load_backbone",
    "load_tokenizer",
    "resolve_backbone",
]

_HOMES = {
    "EmbeddingModel": "embedder",
    "EmbeddingTokenizer": "tokenization",
    "TokenizedTexts": "tokenization",
    "add_lora": "lora",
    "length_sorted_chunks": "chunks",
    "load_backbone": "backbone",
    "load_tokenizer": "backbone",
    "resolve_backbone": "paths",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
