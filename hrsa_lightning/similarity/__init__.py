"""The engine: how similar models are to references, layer by layer, in any training loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrsa_lightning.similarity.history import read_history, summarize
    from hrsa_lightning.similarity.measurement import Measurement

# Loaded when they are first used: histories are read without torch.
_HOMES = {
    "Measurement": "measurement",
    "read_history": "history",
    "summarize": "history",
}

__all__ = ["Measurement", "read_history", "summarize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
