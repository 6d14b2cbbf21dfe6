"""What the callbacks that look at representations add. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hrsa_lightning.config.schema import Config
from hrsa_lightning.plan.workload import count_lines

__all__ = ["Monitoring", "monitoring_of"]

_DEFAULT_PROBES = 512
_SVD_OPERATIONS = 22
"""Operations of a singular value decomposition with vectors, per cubed dimension (Golub and Van
Loan, Matrix Computations, table 8.6.1)."""


class Sizes(Protocol):
    """What is needed of a backbone."""

    num_layers: int
    hidden_size: int
    num_weights: int
    num_embedding_weights: int


@dataclass(frozen=True)
class Monitoring:
    """Cost of all monitors of a recipe.

    Attributes:
        probes: Texts of the largest probe set.
        places: Layers that are looked at, the output included.
        device_bytes: On one GPU, while an evaluation runs.
        host_bytes: Representations of the references, in the computer's memory.
        flops_per_evaluation: Operations of an evaluation of every monitor.
        flops_per_step: The same, spread over the steps between evaluations.
        record_bytes: Bytes that recorders write at each of their steps.
        record_every: Steps between two of these.
    """

    probes: int = 0
    places: int = 0
    device_bytes: float = 0.0
    host_bytes: float = 0.0
    flops_per_evaluation: float = 0.0
    flops_per_step: float = 0.0
    record_bytes: float = 0.0
    record_every: int = 1

    def recorded_bytes(self, steps: int) -> float:
        """Bytes on disk after so many steps; the start is recorded too."""
        return self.record_bytes * (steps // self.record_every + 1)


def monitoring_of(config: Config, arms: Mapping[str, Any]) -> Monitoring:
    """Add up the callbacks of the recipe that have probes or pairs."""
    totals: dict[str, float] = {}
    for entry in config.callbacks.values():
        probes = entry.get("probes", entry.get("pairs"))
        if probes is None:
            continue
        for name, value in _cost(entry, _count_probes(entry, probes), arms).items():
            if name in ("probes", "places", "device_bytes", "record_every"):
                totals[name] = max(totals.get(name, 0), value)  # one runs at a time
            else:
                totals[name] = totals.get(name, 0) + value
    whole = {"probes", "places", "record_every"}
    typed: dict[str, Any] = {k: int(v) if k in whole else v for k, v in totals.items()}
    return Monitoring(**typed)


def _cost(entry: Mapping[str, Any], probes: int, arms: Mapping[str, Sizes]) -> dict[str, float]:
    every = entry.get("every_n_train_steps") or 100
    tokens = probes * float(entry.get("max_length", 128))
    batch_tokens = entry.get("batch_size", 32) * float(entry.get("max_length", 128))
    compares = "similarity" in entry["_target_"].lower()
    records = "recorder" in entry["_target_"].lower()
    references = entry.get("reference", "initial")
    comparisons = len(references) if isinstance(references, list) else 1
    flops = device = host = record = places = 0.0
    for arm in arms.values():
        seen = _places(entry, arm.num_layers) if compares or records else 1
        places = max(places, seen)
        width = arm.hidden_size
        flops += 2 * tokens * (arm.num_weights - arm.num_embedding_weights)
        rows = 4.0 * seen * probes * width
        # Hidden states of a batch, a few at a time, without a graph.
        device = max(device, 8 * 4 * batch_tokens * width)
        if compares:
            flops += seen * comparisons * _metric_flops(probes, width)
            host += rows * (1 + comparisons)
            device = max(device, 8.0 * (4 * width**2 + 2 * probes * width))
        record += rows if records else 0
    return {
        "probes": probes,
        "places": places,
        "device_bytes": device,
        "host_bytes": host,
        "flops_per_evaluation": flops,
        "flops_per_step": flops / every,
        "record_bytes": record,
        "record_every": every,
    }


def _metric_flops(probes: int, width: int) -> float:
    """One comparison of two (probes, width) matrices by the HRSA set.

    CKA and Procrustes multiply the two matrices with themselves and each other, Procrustes
    decomposes the product, and k-NN overlap multiplies each by its transpose.
    """
    products = 4 * 2.0 * probes * width**2
    neighbors = 2 * 2.0 * probes**2 * width
    return products + neighbors + _SVD_OPERATIONS * float(width) ** 3


def _places(entry: Mapping[str, Any], num_layers: int) -> int:
    layers = entry.get("layers", ["output"])
    return sum(num_layers if "*" in pattern else 1 for pattern in layers)


def _count_probes(entry: Mapping[str, Any], probes: Any) -> int:
    found = count_lines(probes) if isinstance(probes, str) else None
    limit = entry.get("limit_probe_batches")
    if limit is not None:
        most = limit * entry.get("batch_size", 32)
        return int(most if found is None else min(most, found))
    return _DEFAULT_PROBES if found is None else found
