"""From what the user asks for to a collection of metrics, and which of it two widths can take."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.metrics import hrsa_metrics

__all__ = ["fit_widths", "metric_set"]

_FEW = 4


def metric_set(metrics: Any, num_classes: int | None) -> tuple[MetricCollection, list[str] | None]:
    """The collection that a user's `metrics=` means, and the keys to keep of its values.

    Args:
        metrics: `None` for the HRSA set, a list of its keys to keep only those, a torchmetrics
            metric or collection with `update(x, y)`, or a list or mapping of metrics.
        num_classes: Number of classes of the labels, for the probe of the HRSA set.

    Raises:
        ConfigError: When `metrics` is none of these or names an unknown key.
    """
    if metrics is None:
        return hrsa_metrics(num_classes=num_classes), None
    if isinstance(metrics, MetricCollection):
        return metrics.clone(), None
    if isinstance(metrics, Metric):
        return MetricCollection([metrics.clone()]), None
    if isinstance(metrics, Mapping) and metrics:
        return MetricCollection({name: metric.clone() for name, metric in metrics.items()}), None
    if isinstance(metrics, Sequence) and metrics and not isinstance(metrics, str):
        if all(isinstance(metric, str) for metric in metrics):
            return _named(list(metrics), num_classes), list(metrics)
        if all(isinstance(metric, Metric) for metric in metrics):
            return MetricCollection([metric.clone() for metric in metrics]), None
    raise ConfigError(
        "metrics: expected null, a list of names of HRSA metrics, or torchmetrics metrics, "
        f"got {metrics!r}"
    )


def fit_widths(
    metrics: MetricCollection, x: Tensor, y: Tensor, known: Mapping[str, Tensor]
) -> tuple[MetricCollection, list[str]]:
    """A copy with the metrics that can take these widths, and notes on those left out.

    Args:
        metrics: All of them.
        x: (samples, features).
        y: (samples, other features).
        known: What else there is to know of each sample, (samples, …), such as its label.

    Raises:
        DataError: When none can.
    """
    fitting, notes = metrics.clone(), []
    if x.shape[1] != y.shape[1]:
        few = {name: values[:_FEW] for name, values in known.items()}
        kept: dict[str, Any] = {}
        for name, metric in metrics.items(keep_base=True):
            if _takes(metric, x[:_FEW], y[:_FEW], few):
                kept[name] = metric.clone()
            else:
                notes.append(
                    f"{name} needs equal widths and is left out "
                    f"({x.shape[1]} against {y.shape[1]} features)"
                )
        if not kept:
            raise DataError(notes[0])
        fitting = MetricCollection(kept, prefix=metrics.prefix, postfix=metrics.postfix)
    for metric in fitting.values(copy_state=False):
        # Every rank holds all rows when it compares, so there is nothing to add up.
        metric.distributed_available_fn = _alone
    return fitting, notes


def _named(keys: Sequence[str], num_classes: int | None) -> MetricCollection:
    """The metrics of the HRSA set that give these keys, without those that need absent labels."""
    ks = [int(key[12:]) for key in keys if key.startswith("knn_overlap_") and key[12:].isdigit()]
    available = hrsa_metrics(num_classes=num_classes, k=ks or (10,))
    owners = {
        key: name
        for name, metric in hrsa_metrics(num_classes=2, k=ks or (10,)).items(keep_base=True)
        for key in metric.keys() or (name,)  # type: ignore[operator]
    }
    unknown = [key for key in keys if key not in owners]
    if unknown:
        raise ConfigError(f"metrics: no {unknown[0]!r}; there are {', '.join(owners)}")
    names = dict.fromkeys(owners[key] for key in keys)
    chosen: dict[str, Any] = {
        name: metric for name, metric in available.items(keep_base=True) if name in names
    }
    if not chosen:
        raise ConfigError(f"metrics: {', '.join(keys)} need labels on the probes")
    return MetricCollection(chosen, compute_groups=[list(chosen)])


def _takes(metric: Metric, x: Tensor, y: Tensor, known: Mapping[str, Tensor]) -> bool:
    # A collection gives a metric only the keywords that its `update` has.
    trial = MetricCollection([metric.clone().to(x.device)])
    trial.reset()
    try:
        trial.update(x, y, **known)
    except (ValueError, RuntimeError):
        return False
    return True


def _alone() -> bool:
    return False
