"""What the report knows of each metric: its name, its level, and which way is more alike."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BAND_SUFFIXES", "HEADLINE", "Fact", "fact_of", "headline_tags", "metric_order"]

BAND_SUFFIXES = ("_low", "_high", "_se")
"""Ends of the names under which a value's own uncertainty is kept."""

HEADLINE = (
    "cka",
    "knn_overlap_10",
    "procrustes_residual",
    "inverse_row_entropy",
    "dimension_correlation",
    "probe_transfer_accuracy",
)
"""One metric of each kind, where there is no room for all."""


@dataclass(frozen=True)
class Fact:
    """One metric.

    Attributes:
        title: For people.
        level: `representation`, `geometry`, `function`, `retrieval`, or `` where unknown.
        identity: Value of a model compared with itself; NaN where that is no fixed number.
        sign: 1 where larger is more alike, -1 where smaller is; 0 where the value says nothing
            about likeness.
        kind: `local`, `global` or `basis`, for what training can and cannot take back.
    """

    title: str
    level: str = ""
    identity: float = math.nan
    sign: int = 1
    kind: str = ""

    def similarity(self, value: float) -> float:
        """A value turned so that larger is more alike."""
        return -value if self.sign < 0 else value

    @property
    def self_similarity(self) -> float:
        """Similarity of a model with itself."""
        return self.similarity(self.identity)


_FACTS = {
    "cka": Fact("linear CKA, debiased", "geometry", 1.0, kind="global"),
    "cka_plain": Fact("linear CKA, plain", "geometry", 1.0, kind="global"),
    "knn_overlap": Fact("k-NN overlap", "geometry", 1.0, kind="local"),
    "procrustes_residual": Fact("Procrustes residual", "representation", 0.0, -1, "basis"),
    "procrustes_global_cosine": Fact("Procrustes cosine, global", "representation", 1.0),
    "procrustes_mean_cosine": Fact("Procrustes cosine, mean", "representation", 1.0),
    "inverse_row_entropy": Fact("inverse row entropy of O*", "representation", 1.0),
    "dimension_correlation": Fact("dimension correlation", "representation", 1.0),
    "dimension_correlation_median": Fact("dimension correlation, median", "representation", 1.0),
    "probe_transfer_accuracy": Fact("probe transfer accuracy", "function"),
    "probe_source_accuracy": Fact("probe accuracy on the reference itself", "function", sign=0),
    "probe_ceiling_accuracy": Fact("probe accuracy, trained on the live model", "function", sign=0),
}
_ORDER = list(_FACTS)


def fact_of(metric: str) -> Fact:
    """What is known of a metric; of a stranger's metric, that larger is taken for more alike.

    Example:
        >>> fact_of("knn_overlap_10").title
        'k-NN overlap, k = 10'
        >>> fact_of("my_metric").title
        'my metric'
    """
    if metric in _FACTS:
        return _FACTS[metric]
    neighbors = re.fullmatch(r"knn_overlap_(\d+)", metric)
    if neighbors:
        fact = _FACTS["knn_overlap"]
        return Fact(f"{fact.title}, k = {neighbors[1]}", fact.level, 1.0, kind=fact.kind)
    if "@" in metric:
        name, _, depth = metric.partition("@")
        known = {"mrr": "MRR", "ndcg": "nDCG"}
        return Fact(f"{known.get(name, name)}@{depth}", "retrieval")
    return Fact(metric.replace("_", " "))


def headline_tags(tags: Iterable[str]) -> list[str]:
    """What of a run's values fits into one row: a metric of each kind at the output, and MRR.

    Drifts of arms from their own start are among them only where nothing else is compared.

    Example:
        >>> headline_tags(["similarity/cka/a_vs_b/output", "similarity/cka/a_vs_initial/output"])
        ['similarity/cka/a_vs_b/output']
    """
    # Here, because it loads torch, which nothing else in this module needs.
    from hrsa_lightning.representations.history import split_tag

    scores: list[str] = []
    drifts: list[str] = []
    pairs: list[str] = []
    for tag in (tag for tag in tags if "/" in tag):  # others log plain names such as loss
        _, metric, comparison, where = split_tag(tag)
        if metric.startswith("mrr@"):
            scores.append(tag)
        elif metric in HEADLINE and where == "output":
            (drifts if comparison.endswith("_vs_initial") else pairs).append(tag)
    return [*(pairs or drifts), *scores]


def metric_order(metric: str) -> tuple[int, str, int]:
    """Sorting key: by level as the paper has them, neighbors by number, strangers last."""
    neighbors = re.fullmatch(r"(.*?)_?(\d+)", metric)
    stem, number = (neighbors[1], int(neighbors[2])) if neighbors else (metric, 0)
    return (_ORDER.index(stem) if stem in _ORDER else len(_ORDER), stem, number)
