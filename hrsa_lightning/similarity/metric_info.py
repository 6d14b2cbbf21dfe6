"""What is known of each metric: its name, its level, and which way is more alike."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hrsa_lightning.similarity.measurement import Measurement

HEADLINE = (
    "cka",
    "cka_standardized",
    "knn_overlap_10",
    "procrustes_global_cosine",
    "inverse_row_entropy",
    "dimension_correlation",
    "probe_transfer_accuracy",
)
"""One metric of each kind, where there is no room for all.

Of the values of a rotation the cosine, which does not depend on the norms of either side: the
residual and its chance level grow with those of the live model.
"""

KINDS = {"global": "global geometry", "local": "local geometry", "basis": "basis"}
"""What training can and cannot take back, in the paper's words."""

_MOST_MAIN = 3


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Attributes:
        title: For people.
        level: `representation`, `geometry`, `function` as its invariances have it, `retrieval`, or
            empty where unknown.
        identity: Value of a model compared with itself where that was not measured; NaN where that
            is no fixed number.
        sign: 1 where larger is more alike, -1 where smaller is; 0 where the value says nothing
            about likeness.
        kind: A key of `KINDS`, or empty.
    """

    title: str
    level: str = ""
    identity: float = math.nan
    sign: int = 1
    kind: str = ""

    def similarity(self, value: float) -> float:
        """A value turned so that larger is more alike."""
        return -value if self.sign < 0 else value

    def short(self) -> str:
        """The title without its qualification, for sentences."""
        return self.title.partition(",")[0]


_BY_OPTION = {
    "cka": {
        "cka": MetricInfo("linear CKA, debiased", "geometry", 1.0, kind="global"),
        "cka_plain": MetricInfo("linear CKA, plain", "geometry", 1.0, kind="global"),
        "cka_standardized": MetricInfo(
            "linear CKA, standardized", "representation", 1.0, kind="global"
        ),
    },
    "knn_overlap": {"knn_overlap": MetricInfo("k-NN overlap", "geometry", 1.0, kind="local")},
    "cknna": {"cknna": MetricInfo("CKNNA", "geometry", 1.0, kind="local")},
    "procrustes": {
        "procrustes_residual": MetricInfo("Procrustes residual", "geometry", 0.0, -1),
        "procrustes_global_cosine": MetricInfo(
            "Procrustes cosine, global", "geometry", 1.0, kind="basis"
        ),
        "procrustes_mean_cosine": MetricInfo("Procrustes cosine, mean", "geometry", 1.0),
        "inverse_row_entropy": MetricInfo("inverse row entropy of O*", "representation", 1.0),
    },
    "dimension_correlation": {
        "dimension_correlation": MetricInfo("dimension correlation", "representation", 1.0),
        "dimension_correlation_median": MetricInfo(
            "dimension correlation, median", "representation", 1.0
        ),
    },
    "predictivity": {
        "predictivity_forward": MetricInfo("linear predictivity of the reference", "function"),
        "predictivity_backward": MetricInfo("linear predictivity from the reference", "function"),
    },
    "probe_transfer": {
        "probe_transfer_accuracy": MetricInfo("probe transfer accuracy", "function"),
        "probe_source_accuracy": MetricInfo(
            "probe accuracy on the reference itself", "function", sign=0
        ),
        "probe_ceiling_accuracy": MetricInfo(
            "probe accuracy, trained on the live model", "function", sign=0
        ),
    },
}
"""What people read of the values of `hrsa_lightning.metrics.collection.MEMBERS`, by what
`compare --metrics` calls the computation that gives them."""

EXTRAS = ("cknna", "predictivity")
"""Computations that are left out unless they are asked for."""

METRICS = tuple(option for option in _BY_OPTION if option not in EXTRAS)
"""The others."""

_KNOWN = {key: info for infos in _BY_OPTION.values() for key, info in infos.items()}
_ORDER = list(_KNOWN)


def info_of(metric: str) -> MetricInfo:
    """What is known of a metric; of an unknown one, that larger is taken for more alike.

    Example:
        >>> info_of("knn_overlap_10").title
        'k-NN overlap, k = 10'
        >>> info_of("my_metric").title
        'my metric'
    """
    if metric in _KNOWN:
        return _KNOWN[metric]
    neighbors = re.fullmatch(r"(knn_overlap|cknna)_(\d+)", metric)
    if neighbors:
        known = _KNOWN[neighbors[1]]
        return replace(known, title=f"{known.title}, k = {neighbors[2]}")
    if "@" in metric:
        name, _, depth = metric.partition("@")
        titles = {"mrr": "MRR", "ndcg": "nDCG"}
        return MetricInfo(f"{titles.get(name, name)}@{depth}", "retrieval")
    return MetricInfo(metric.replace("_", " "))


def option_of(metric: str) -> str:
    """The computation that gives one of our metrics, as `compare --metrics` calls it.

    Example:
        >>> option_of("inverse_row_entropy"), option_of("knn_overlap_10")
        ('procrustes', 'knn_overlap')
    """
    stem = metric if metric in _KNOWN else re.sub(r"_\d+$", "", metric)
    return next(option for option, infos in _BY_OPTION.items() if stem in infos)


def headline(measurements: Iterable[Measurement]) -> list[Measurement]:
    """What of a run's values fits into one row: a metric of each kind at the output, and MRR.

    Drifts of arms from their own start are among them only where nothing else is compared.
    """
    scores: list[Measurement] = []
    drifts: list[Measurement] = []
    pairs: list[Measurement] = []
    for m in measurements:
        if m.metric.startswith("mrr@") and not m.layer:
            scores.append(m)
        elif m.metric in HEADLINE and m.layer == "output" and not m.label:
            (drifts if m.reference == "initial" else pairs).append(m)
    return [*(pairs or drifts), *scores]


def headline_metrics(metrics: Sequence[str]) -> list[str]:
    """One metric of each kind; all of them where none is known."""
    return [metric for metric in HEADLINE if metric in metrics] or list(metrics)


def main_metrics(metrics: Sequence[str], *, is_dominated: bool = False) -> list[str]:
    """The metrics that answer for global geometry, local geometry and basis.

    Args:
        metrics: Those that were measured, in any order.
        is_dominated: One dimension carries most of the variance, which only standardized CKA
            looks beyond.

    Example:
        >>> main_metrics(["probe_transfer_accuracy", "knn_overlap_10", "cka", "cka_plain"])
        ['cka', 'knn_overlap_10']
        >>> main_metrics(["mine"])
        ['mine']
    """
    ranked = list(dict.fromkeys([*headline_metrics(metrics), *metrics]))
    if is_dominated:
        ranked.sort(key="cka_standardized".__ne__)
    found = [next((m for m in ranked if info_of(m).kind == kind), "") for kind in KINDS]
    return list(filter(None, found)) or [m for m in ranked if info_of(m).sign][:_MOST_MAIN]


def metric_order(metric: str, level: str = "") -> tuple[float, str, int]:
    """Sorting key: by level, neighbors by number; one of a user's behind ours of its level.

    Example:
        >>> keys = ["mine", "procrustes_residual", "cka"]
        >>> sorted(keys, key=lambda key: metric_order(key, "geometry"))
        ['cka', 'procrustes_residual', 'mine']
    """
    neighbors = re.fullmatch(r"(.*?)_?(\d+)", metric)
    stem, number = (neighbors[1], int(neighbors[2])) if neighbors else (metric, 0)
    if stem in _ORDER:
        return (_ORDER.index(stem), stem, number)
    of_level = [place for place, known in enumerate(_KNOWN.values()) if known.level == level]
    return (of_level[-1] + 0.5 if of_level else len(_ORDER), stem, number)
