"""Permutation nulls: the cheap algebra against values computed anew, and uniform p-values."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.functional import permutation
from hrsa_lightning.functional._inputs import split_halves
from hrsa_lightning.metrics import hrsa_metrics
from tests.functional.inputs import pair

SIZES = pytest.mark.parametrize("n", [60, 20])
ANEW: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "cka": (F.linear_cka, {}),
    "cka_plain": (F.linear_cka, {"debiased": False}),
    "cka_standardized": (F.linear_cka, {"standardize": True}),
    "cka in blocks": (F.linear_cka, {"chunk_bytes": 4000}),
    "knn": (F.knn_overlap, {"k": 5}),
    "knn_mutual": (F.knn_overlap, {"k": (3, 6), "similarity": "euclidean", "overlap": "mutual"}),
    "cknna": (F.cknna, {"k": 6}),
    "correlation": (F.dimension_correlation, {}),
    "procrustes in sample": (F.orthogonal_procrustes, {"protocol": "in_sample"}),
}


@pytest.mark.filterwarnings("ignore::hrsa_lightning.functional.SimilarityWarning")
@SIZES
@pytest.mark.parametrize("name", ANEW)
def test_permuted_values_are_those_of_permuted_rows(name: str, n: int) -> None:
    function, options = ANEW[name]
    x, y = pair(n)
    orders = permutation.permutations(n, 7, x.device)
    found = permutation.PERMUTED[function](x, y, orders, **options)
    for place, order in enumerate(orders):
        expected = permutation.by_key(function(x, y[order], **options))
        for key, values in found.items():
            assert values[place].item() == pytest.approx(
                expected[key].item(), rel=1e-5, abs=1e-7, nan_ok=True
            ), key


SHIFTED = {
    "cka": (F.linear_cka, {}),
    "cka_plain": (F.linear_cka, {"debiased": False}),
    "cka_standardized": (F.linear_cka, {"standardize": True}),
    "cka in chunks": (F.linear_cka, {"chunk_bytes": 8 * 61 * 4 * 7}),
    "correlation": (F.dimension_correlation, {}),
    "knn": (F.knn_overlap, {"k": (3, 6), "similarity": "euclidean"}),
    "knn_mutual": (F.knn_overlap, {"k": 5, "overlap": "mutual"}),
}


@pytest.mark.parametrize("n", [60, 61])
@pytest.mark.parametrize("name", SHIFTED)
def test_many_samples_are_shifted(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value is that of the rows shifted so, in the first order."""
    monkeypatch.setattr(permutation, "FEW", 50)
    function, options = SHIFTED[name]
    x, y = pair(n, 40)
    orders = permutation.permutations(n, 3, x.device)
    found = permutation.PERMUTED[function](x, y, orders, **options)
    left, right = x[orders[0]], y[orders[0]]
    for key, values in found.items():
        assert len(values) == n - 1
        for shift, value in enumerate(values.tolist(), start=1):
            moved = function(left, right.roll(-shift, 0), **options)
            assert value == pytest.approx(
                permutation.by_key(moved)[key].item(), rel=1e-5, abs=1e-6
            ), (key, shift)


def test_many_judged_samples_are_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick sums of held-out values against one product after the other."""
    x, y = pair(120, 5)
    judged = split_halves(y, None)
    orders = permutation.permutations(120, 3, x.device)
    turns = permutation.within(orders, judged)[0]
    shifts = [turns.argsort()[turns.roll(-s)] for s in range(1, int(judged.sum()))]
    back = [torch.empty_like(s).scatter_(0, turns, turns.roll(-k)) for k, s in enumerate(shifts, 1)]
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    slow, quick = {}, {}
    for found, few in ((slow, 10**6), (quick, 20)):
        monkeypatch.setattr(permutation, "FEW", few)
        if few > 120:
            monkeypatch.setattr(permutation, "within", lambda *_: torch.stack(back))
        found |= permutation.permuted_procrustes(x, y, orders, judged, rotation)
        found |= permutation.permuted_predictivity(x, y, orders)
        monkeypatch.undo()
    for key, values in slow.items():
        torch.testing.assert_close(quick[key], values, rtol=1e-5, atol=1e-6, msg=key)


def test_held_out_values_are_permuted_within_the_judged_half() -> None:
    x, y = pair(80, 5)
    judged = split_halves(y, None)
    orders = permutation.permutations(80, 5, x.device)
    moved = []
    for inner in permutation.within(orders, judged):
        rows = torch.arange(80)
        rows[judged] = rows[judged][inner]
        moved.append(rows)
    ids = list(range(80))
    # Ids that put the same rows into the halves as the content does.
    ids = _ids_for(judged)
    labels = (y[:, 0] > 0).long()
    found = permutation.PERMUTED[F.orthogonal_procrustes](x, y, orders, y_ids=ids)
    mapped = permutation.PERMUTED[F.linear_predictivity](x, y, orders, y_ids=ids)
    probed = permutation.PERMUTED[F.linear_probe_transfer](x, y, orders, labels, y_ids=ids)
    for place, rows in enumerate(moved):
        aligned = F.orthogonal_procrustes(x, y[rows], y_ids=ids)
        for key in ("residual_variance_ratio", "global_cosine", "mean_cosine"):
            expected = getattr(aligned, key).item()
            assert found[key][place].item() == pytest.approx(expected, rel=1e-5, abs=1e-6), key
        predicted = F.linear_predictivity(x, y[rows], y_ids=ids)
        assert mapped["forward"][place].item() == pytest.approx(predicted.forward.item())
        # Predicting x from permuted y is predicting permuted x from y.
        back = F.linear_predictivity(x[rows], y, y_ids=ids).backward.item()
        assert mapped["backward"][place].item() == pytest.approx(back)
        transfer = F.linear_probe_transfer(x, y, labels[rows], y_ids=ids).transfer.item()
        assert probed["transfer"][place].item() == pytest.approx(transfer)


def _ids_for(judged: Tensor) -> list[str]:
    ids: list[str] = []
    for half in judged.tolist():
        number = len(ids)
        while bool(split_halves(torch.zeros(1, 1), [f"{number}"])) != half or f"{number}" in ids:
            number += 1000
        ids.append(f"{number}")
    return ids


UNIFORM = {
    "cka": (F.linear_cka, {}),
    "cka_plain": (F.linear_cka, {"debiased": False}),
    "knn": (F.knn_overlap, {"k": 5}),
    "cknna": (F.cknna, {"k": 8}),
    "correlation": (F.dimension_correlation, {}),
    "procrustes": (F.orthogonal_procrustes, {}),
    "predictivity": (F.linear_predictivity, {}),
}


@pytest.mark.parametrize(
    ("name", "few"),
    [(name, 512) for name in UNIFORM] + [(name, 10) for name in ("cka", "procrustes")],
)
def test_p_values_of_unrelated_data_are_uniform(
    name: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permutation, "FEW", few)
    function, options = UNIFORM[name]
    found: dict[Any, list[float]] = {}
    for seed in range(60):
        x, y = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(seed))
        null = F.permutation_null(function, x, y, num_permutations=99, **options)
        for key, value in permutation.by_key(null.p_value).items():
            found.setdefault(key, []).append(value.item())
    for key, values in found.items():
        if not math.isnan(values[0]):
            assert scipy.stats.kstest(values, "uniform").pvalue > 0.01, key


@pytest.mark.parametrize("name", UNIFORM)
def test_related_data_have_the_least_p_value(name: str) -> None:
    function, options = UNIFORM[name]
    x, y = pair(80, 6, noise=0.1)
    null = F.permutation_null(function, x, y, **options)
    values = [v.item() for v in permutation.by_key(null.p_value).values() if v.isfinite()]
    if name != "correlation":  # y is turned
        assert max(values) == pytest.approx(1 / 201)
    residual = null.level.get("residual_variance_ratio") if name == "procrustes" else None
    assert residual is None or null.value["residual_variance_ratio"] < residual


def test_any_function_and_too_few_permutations() -> None:
    x, y = pair(30, 3)
    null = F.permutation_null(lambda x, y: (x[:, 0] * y[:, 0]).mean().double(), x, y)
    assert 0 < null.p_value <= 1
    with pytest.raises(ValueError, match="at least 19 permutations for a 95 % level, got 5"):
        F.permutation_null(F.linear_cka, x, y, num_permutations=5)


@pytest.mark.parametrize("num_groups", [None, 5])
def test_the_collection_has_levels_and_p_values_of_its_functions(num_groups: int | None) -> None:
    """With standard errors beside them, which run the functions on fewer samples, as well."""
    x, y = pair(90, 5)
    labels = (y[:, 0] > 0).long()
    metrics = hrsa_metrics(
        k=(5,),
        num_classes=2,
        null=99,
        num_jackknife_groups=num_groups,
        extra=("cknna", "predictivity"),
    )
    for rows in torch.arange(90).split(40):
        metrics.update(x[rows], y[rows], labels[rows], x_ids=rows)
    values = metrics.compute()
    ids = list(range(90))
    for key, function, options, field in (
        ("cka", F.linear_cka, {}, ""),
        ("cka_plain", F.linear_cka, {"debiased": False}, ""),
        ("cka_standardized", F.linear_cka, {"standardize": True}, ""),
        ("knn_overlap_5", F.knn_overlap, {"k": 5}, ""),
        ("cknna_10", F.cknna, {"k": 10}, ""),
        ("procrustes_residual", F.orthogonal_procrustes, {"y_ids": ids}, "residual_variance_ratio"),
        ("procrustes_mean_cosine", F.orthogonal_procrustes, {"y_ids": ids}, "mean_cosine"),
        ("dimension_correlation", F.dimension_correlation, {}, "mean"),
        ("predictivity_backward", F.linear_predictivity, {"y_ids": ids}, "backward"),
    ):
        null = F.permutation_null(function, x, y, num_permutations=99, **options)
        parts = [permutation.by_key(part)[field].item() for part in null]
        found = [values[f"{key}{ending}"].item() for ending in ("", "_null", "_p")]
        assert found == pytest.approx(parts, rel=1e-5, abs=1e-7), key
    assert values["probe_transfer_accuracy_p"] < 0.05
    assert math.isnan(values["probe_source_accuracy_p"])
    assert set(metrics.identity()) < set(values)
