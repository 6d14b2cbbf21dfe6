import pickle
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.metrics import (
    DimensionCorrelation,
    LinearCKA,
    OrthogonalProcrustes,
    hrsa_metrics,
)
from tests.functional.inputs import pair

GEOMETRY = ["cka", "cka_plain", "cka_standardized", "knn_overlap_10", "knn_overlap_50"]
REPRESENTATION = [
    "dimension_correlation",
    "dimension_correlation_median",
    "inverse_row_entropy",
    "procrustes_global_cosine",
    "procrustes_mean_cosine",
    "procrustes_residual",
]
FUNCTION = ["probe_ceiling_accuracy", "probe_source_accuracy", "probe_transfer_accuracy"]


@pytest.mark.parametrize(
    ("level", "keys"),
    [
        ("geometry", GEOMETRY),
        ("representation", REPRESENTATION),
        ("function", FUNCTION),
        ("all", sorted(GEOMETRY + REPRESENTATION + FUNCTION)),
    ],
)
def test_keys_are_flat_stable_and_scalar(level: Any, keys: list[str]) -> None:
    x, y = pair()
    metrics = hrsa_metrics(level, num_classes=2)
    metrics.update(x, y, (y[:, 0] > 0).long())
    values = metrics.compute()
    assert sorted(values) == keys
    assert all(value.ndim == 0 and torch.isfinite(value) for value in values.values())


def test_without_classes_there_is_no_probe_and_no_label() -> None:
    x, y = pair(40)
    metrics = hrsa_metrics(k=(5, 50), prefix="layer_3/")
    metrics.update(x, y)
    keys = [f"layer_3/{key}" for key in sorted(["cka", "cka_plain", "knn_overlap_5"])]
    values = metrics.compute()
    assert sorted(values)[:2] == keys[:2]
    assert keys[2] in values
    assert not any("probe" in key or "50" in key for key in values)


def test_values_are_those_of_the_functions() -> None:
    x, y = pair()
    metrics = hrsa_metrics()
    for batch in zip(x.split(50), y.split(50), strict=True):
        metrics.update(*batch)
    values = metrics.compute()
    aligned = F.orthogonal_procrustes(x, y)
    for key, expected in {
        "cka": F.linear_cka(x, y),
        "cka_plain": F.linear_cka(x, y, debiased=False),
        "knn_overlap_10": F.knn_overlap(x, y, 10),
        "knn_overlap_50": F.knn_overlap(x, y, 50),
        "procrustes_residual": aligned.residual_variance_ratio,
        "procrustes_mean_cosine": aligned.mean_cosine,
        "inverse_row_entropy": aligned.inverse_row_entropy,
        "dimension_correlation": F.dimension_correlation(x, y).mean,
    }.items():
        assert values[key].item() == pytest.approx(expected.item(), rel=1e-6), key


def test_all_members_share_one_state_from_the_first_update_on() -> None:
    x, y = pair()
    metrics = hrsa_metrics()
    assert len(metrics.compute_groups) == 1
    metrics.update(x, y)
    states = [metric.metric_state for metric in metrics.values(copy_state=False)]
    assert len(states) == 6
    for state in states[1:]:
        assert all(state[name] is states[0][name] for name in states[0])


def test_metrics_of_a_plain_collection_share_their_moments() -> None:
    x, y = pair()
    collection = MetricCollection(
        [
            LinearCKA(state=("exact",)),
            DimensionCorrelation(state=("exact",)),
            OrthogonalProcrustes(mean_cosine=False),
        ]
    )
    collection.update(x[:60], y[:60])
    assert len(collection.compute_groups) == 1
    collection.update(x[60:], y[60:])
    values = collection.compute()
    assert values["LinearCKA"].item() == pytest.approx(F.linear_cka(x, y).item(), rel=1e-6)


def test_sums_of_float64_products_are_not_shared_with_others() -> None:
    x, y = pair()
    metrics = MetricCollection(
        {"cka": LinearCKA(), "procrustes": OrthogonalProcrustes(mean_cosine=False)}
    )
    metrics.update(x, y, x_ids=range(120))
    assert len(metrics.compute_groups) == 2


def test_reset_forward_clone_and_pickle() -> None:
    x, y = pair()
    metrics = hrsa_metrics()
    metrics.update(y, x)
    metrics.compute()
    metrics.reset()
    batch = metrics(x[:60], y[:60])
    assert batch["cka"].item() == pytest.approx(F.linear_cka(x[:60], y[:60]).item(), rel=1e-6)
    for other in (metrics.clone(prefix="a/"), pickle.loads(pickle.dumps(metrics))):
        other.update(x[60:], y[60:])
        prefix = other.prefix or ""
        value = other.compute()[f"{prefix}cka"].item()
        assert value == pytest.approx(F.linear_cka(x, y).item(), rel=1e-6)


def test_chance_levels_have_the_keys_of_the_values() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 200, 16)
    metrics = hrsa_metrics(num_classes=2, prefix="p/")
    metrics.update(x, y, torch.arange(200) % 2)
    values, chance = metrics.compute(), metrics.chance()
    assert set(chance) <= set(values)
    assert set(values) - set(chance) == set()
    for key, level in chance.items():
        spread = 0.35 if "probe" in key or "residual" in key else 0.12
        assert values[key].item() == pytest.approx(level, abs=spread), key


def test_chance_levels_of_one_metric() -> None:
    x, y = pair()
    metric = LinearCKA(debiased=False)
    metric.update(x, y)
    assert 0 < metric.chance()["cka_plain"] < 0.5
    assert LinearCKA(debiased=False).chance.__doc__


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="`level` to be one of representation, geometry"):
        hrsa_metrics("local")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`num_classes` with level"):
        hrsa_metrics("function")
