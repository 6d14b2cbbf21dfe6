"""What every metric class must do, and that it gives the value of its function."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.metrics import (
    DimensionCorrelation,
    DimensionCorrelationHeatmap,
    KNNOverlap,
    LinearCKA,
    LinearCKAHeatmap,
    LinearProbeTransfer,
    OrthogonalProcrustes,
    PairMetric,
)
from tests.functional.inputs import HOSTILE, pair


def procrustes(x: Tensor, y: Tensor, labels: Tensor, protocol: str = "held_out") -> dict[str, Any]:
    result = F.orthogonal_procrustes(x, y, protocol)  # type: ignore[arg-type]
    return {
        "procrustes_residual": result.residual_variance_ratio,
        "procrustes_global_cosine": result.global_cosine,
        "procrustes_mean_cosine": result.mean_cosine,
        "inverse_row_entropy": result.inverse_row_entropy,
    }


def correlation(x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Any]:
    result = F.dimension_correlation(x, y)
    return {
        "dimension_correlation": result.mean,
        "dimension_correlation_median": result.median,
    }


def probe(x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Any]:
    result = F.linear_probe_transfer(x, y, labels)
    return {f"probe_{name}_accuracy": value for name, value in result._asdict().items()}


def knn(x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Any]:
    values = F.knn_overlap(x, y, (3, 9), "euclidean", "mutual")
    return {f"knn_overlap_{k}": value for k, value in values.items()}


CASES: dict[str, tuple[Callable[[], PairMetric], Callable[..., Any]]] = {
    "cka": (LinearCKA, lambda x, y, _: F.linear_cka(x, y)),
    "cka_plain": (
        lambda: LinearCKA(debiased=False),
        lambda x, y, _: F.linear_cka(x, y, debiased=False),
    ),
    "cka_standardized": (
        lambda: LinearCKA(standardize=True),
        lambda x, y, _: F.linear_cka(x, y, standardize=True),
    ),
    "procrustes": (OrthogonalProcrustes, procrustes),
    "procrustes_paper": (
        lambda: OrthogonalProcrustes("paper"),
        lambda x, y, labels: procrustes(x, y, labels, "paper"),
    ),
    "dimension_correlation": (DimensionCorrelation, correlation),
    "knn": (KNNOverlap, lambda x, y, _: F.knn_overlap(x, y)),
    "knn_several": (lambda: KNNOverlap((3, 9), "euclidean", "mutual"), knn),
    "probe": (lambda: LinearProbeTransfer(num_classes=2), probe),
}
EACH = pytest.mark.parametrize("name", CASES)


def data(n: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    x, y = pair(n)
    return x, y, (y[:, 0] > 0).long()


def assert_equal(value: Any, expected: Any, rel: float = 1e-6) -> None:
    if isinstance(expected, dict):
        assert sorted(value) == sorted(expected)
        for key, part in expected.items():
            assert value[key].item() == pytest.approx(
                part.item(), rel=rel, abs=3e-8, nan_ok=True
            ), key
            assert value[key].ndim == 0
    else:
        assert value.item() == pytest.approx(expected.item(), rel=rel, nan_ok=True)


@EACH
@pytest.mark.parametrize("sizes", [[120], [60, 60], [1, 118, 1], [17] * 7 + [1], [0, 119, 0, 1]])
def test_batches_give_the_value_of_the_function(name: str, sizes: list[int]) -> None:
    make, function = CASES[name]
    metric, arguments = make(), data()
    for batch in zip(*(part.split(sizes) for part in arguments), strict=True):
        metric.update(*batch)
    assert_equal(metric.compute(), function(*arguments))


@EACH
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    make, function = CASES[name]
    metric, arguments = make(), data()
    order = torch.randperm(120)
    for rows in order.split(32):
        metric.update(*(part[rows] for part in arguments))
    assert_equal(metric.compute(), function(*arguments))


@EACH
def test_reset_forgets_everything(name: str) -> None:
    make, _ = CASES[name]
    metric, (x, y, labels) = make(), data()
    metric.update(x + 1, y**2, labels)
    metric.compute()
    metric.reset()
    metric.update(x[:80], y[:80], labels[:80])
    fresh = make()
    fresh.update(x[:80], y[:80], labels[:80])
    assert_equal(metric.compute(), fresh.compute(), rel=0)
    assert metric.num_samples() == 80


@EACH
def test_forward_gives_the_batch_and_accumulates(name: str) -> None:
    make, function = CASES[name]
    metric, (x, y, labels) = make(), data()
    first, second = slice(0, 70), slice(70, 120)
    assert_equal(metric(x[first], y[first], labels[first]), function(x[:70], y[:70], labels[:70]))
    metric(x[second], y[second], labels[second])
    assert_equal(metric.compute(), function(x, y, labels))


@EACH
def test_forward_on_a_last_batch_of_one_is_nan_and_harmless(name: str) -> None:
    make, function = CASES[name]
    metric, (x, y, labels) = make(), data()
    metric(x[:119], y[:119], labels[:119])
    value = metric(x[119:], y[119:], labels[119:])
    parts = value.values() if isinstance(value, dict) else [value]
    assert all(math.isnan(part.item()) for part in parts)
    assert_equal(metric.compute(), function(x, y, labels))


@EACH
def test_pickle_copy_and_state_dict(name: str) -> None:
    make, function = CASES[name]
    metric, (x, y, labels) = make(), data()
    metric.update(x[:50], y[:50], labels[:50])
    metric.persistent(True)
    restored = make()
    restored.load_state_dict(metric.state_dict())
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), restored):
        other.update(x[50:], y[50:], labels[50:])
        assert_equal(other.compute(), function(x, y, labels))


@EACH
def test_merge_state(name: str) -> None:
    make, function = CASES[name]
    one, two, empty = make(), make(), make()
    x, y, labels = data()
    one.update(x[:50], y[:50], labels[:50])
    two.update(x[50:], y[50:], labels[50:])
    kept = copy.deepcopy(two)
    empty.merge_state(one)
    empty.merge_state(two)
    empty.merge_state(make())
    one.merge_state(two.metric_state)
    for metric in (one, empty):
        assert_equal(metric.compute(), function(x, y, labels))
    assert_equal(two.compute(), kept.compute(), rel=0)


@EACH
def test_to_keeps_state_and_dtype_casts_are_refused(name: str) -> None:
    make, function = CASES[name]
    metric, arguments = make(), data()
    metric.update(*arguments)
    for cast in (
        lambda m: m.to("cpu"),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.set_dtype(torch.float16),
    ):
        metric = cast(metric)
    assert_equal(metric.compute(), function(*arguments), rel=1e-6)


@EACH
def test_half_precision_inputs(name: str) -> None:
    make, function = CASES[name]
    metric, (x, y, labels) = make(), data()
    x, y = x.bfloat16(), y.bfloat16()
    metric.update(x, y, labels)
    assert_equal(metric.compute(), function(x, y, labels))


@EACH
def test_plot(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    metric = CASES[name][0]()
    metric.update(*data())
    _, axes = metric.plot()
    assert axes is not None
    _, axes = metric.plot([metric.compute(), metric.compute()])
    assert len(axes.lines[0].get_xdata()) == 2
    assert len(pyplot.get_fignums()) == 2, "as those of torchmetrics, for notebooks and show()"
    pyplot.close("all")


@EACH
def test_too_few_samples(name: str) -> None:
    metric, (x, y, labels) = CASES[name][0](), data()
    metric.update(x[:1], y[:1], labels[:1])
    with pytest.raises(ValueError, match=r"Expected at least .* samples.*, got 1"):
        metric.compute()


@EACH
def test_another_width_is_refused(name: str) -> None:
    metric, (x, y, labels) = CASES[name][0](), data()
    metric.update(x, y, labels)
    with pytest.raises(ValueError, match="`x` to have width 16 as before, got 15"):
        metric.update(x[:, 1:], y[:, 1:], labels)


@EACH
def test_another_device_is_refused(name: str) -> None:
    metric, (x, y, labels) = CASES[name][0](), data()
    with pytest.raises(ValueError, match="inputs on cpu, where the metric is, got meta"):
        metric.update(x.to("meta"), y.to("meta"), labels)


@EACH
def test_shuffled_ids_are_noticed(name: str) -> None:
    metric, (x, y, labels) = CASES[name][0](), data()
    with pytest.raises(ValueError, match="id 0 in `x_ids` and 119 in `y_ids` at row 0"):
        metric.update(x, y, labels, x_ids=range(120), y_ids=range(119, -1, -1))


@EACH
def test_non_finite_input_gives_nan_and_one_warning(name: str) -> None:
    metric, (x, y, labels) = CASES[name][0](), data()
    x[7, 7] = math.nan
    metric.update(x, y, labels)
    with pytest.warns(F.SimilarityWarning, match="is NaN: an input is not finite") as caught:
        value = metric.compute()
    assert len(caught) == 1
    parts = value.values() if isinstance(value, dict) else [value]
    assert all(math.isnan(part.item()) for part in parts)


@pytest.mark.parametrize("hostile", [name for name in HOSTILE if name != "different_widths"])
@pytest.mark.parametrize("size", [25, 1])
def test_streamed_values_survive_hostile_inputs(hostile: str, size: int) -> None:
    x, y = HOSTILE[hostile]()
    metrics: list[PairMetric] = [LinearCKA(), LinearCKA(False), DimensionCorrelation()]
    for metric in metrics:
        for batch in zip(x.split(size), y.split(size), strict=True):
            metric.update(*batch)
    assert_equal(metrics[0].compute(), F.linear_cka(x, y))
    assert_equal(metrics[1].compute(), F.linear_cka(x, y, debiased=False))
    assert_equal(metrics[2].compute(), correlation(x, y, x))


@pytest.mark.parametrize(
    "hostile",
    ["ordinary", "large_mean", "tiny_scale", "huge_scale", "massive_dimension", "massive_rows",
     "duplicates"],
)  # fmt: skip
@pytest.mark.parametrize("protocol", ["held_out", "in_sample", "paper"])
def test_streamed_procrustes_survives_hostile_inputs(hostile: str, protocol: str) -> None:
    x, y = HOSTILE[hostile]()
    metric = OrthogonalProcrustes(protocol)  # type: ignore[arg-type]
    for batch in zip(x.split(25), y.split(25), strict=True):
        metric.update(*batch)
    assert_equal(metric.compute(), procrustes(x, y, x, protocol))


def test_procrustes_without_mean_cosine_keeps_no_rows() -> None:
    x, y = pair()
    metric = OrthogonalProcrustes(mean_cosine=False)
    metric.update(x, y, x_ids=range(120))
    assert metric.parts == ("moments", "exact")
    expected = F.orthogonal_procrustes(x, y, x_ids=range(120))
    values = metric.compute()
    assert values["procrustes_residual"].item() == pytest.approx(
        expected.residual_variance_ratio.item(), rel=1e-6
    )
    assert list(values) == [
        "procrustes_residual", "procrustes_global_cosine", "inverse_row_entropy"
    ]  # fmt: skip


HEATMAPS = {
    "cka": (LinearCKAHeatmap, F.linear_cka_heatmap),
    "cka_standardized": (
        lambda: LinearCKAHeatmap(standardize=True),
        lambda xs, ys: F.linear_cka_heatmap(xs, ys, standardize=True),
    ),
    "correlation": (DimensionCorrelationHeatmap, F.dimension_correlation_heatmap),
}


@pytest.mark.parametrize("name", HEATMAPS)
def test_heatmap_in_batches(name: str) -> None:
    make, function = HEATMAPS[name]
    x, y = pair()
    xs, ys = [x, 1e3 * x**2 + 1e5], [y, y.relu(), x.roll(1, 1)]
    metric = make()
    for rows in torch.randperm(120).split(50):
        metric.update([v[rows] for v in xs], [v[rows] for v in ys])
    torch.testing.assert_close(metric.compute(), function(xs, ys), rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"widths \[16, 16\] as before, got \[16\]"):
        metric.update([x], ys)
    with pytest.raises(ValueError, match="inputs on cpu, where the metric is, got meta"):
        metric.update([x.to("meta")] * 2, [y.to("meta")] * 3)


def test_cka_heatmap_of_layers_of_any_width() -> None:
    x, y = pair()
    metric = LinearCKAHeatmap()
    metric.update([x, x[:, :3] ** 2], [y[:, 1:]])
    expected = F.linear_cka_heatmap([x, x[:, :3] ** 2], [y[:, 1:]])
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", HEATMAPS)
def test_heatmap_merge_and_pickle(name: str) -> None:
    make, function = HEATMAPS[name]
    x, y = pair()
    one, two = make(), make()
    one.update([x[:50], y[:50]], [y[:50]])
    two.merge_state(one)
    two.update([x[50:], y[50:]], [y[50:]])
    two = pickle.loads(pickle.dumps(two))
    torch.testing.assert_close(two.compute(), function([x, y], [y]), rtol=1e-6, atol=1e-7)
    assert list(two.chance().values()) == [0.0]


def test_classes_beyond_num_classes_are_refused() -> None:
    x, y, labels = data()
    metric = LinearProbeTransfer(num_classes=2)
    metric.update(x, y, labels + 1)
    with pytest.raises(ValueError, match="`labels` to be classes from 0 to 1"):
        metric.compute()


def test_probe_needs_labels() -> None:
    x, y, _ = data()
    with pytest.raises(TypeError, match="`labels` to be a"):
        LinearProbeTransfer(num_classes=2).update(x, y)


def test_probe_without_classes_is_regression() -> None:
    x, y, _ = data()
    metric = LinearProbeTransfer(num_classes=None)
    metric.update(x, y, y[:, 0])
    expected = F.linear_probe_transfer(x, y, y[:, 0])
    assert metric.compute()["probe_transfer_r2"].item() == pytest.approx(expected.transfer.item())


def test_skipping_large_k() -> None:
    x, y, _ = data(40)
    metric = KNNOverlap((5, 39, 40), skip_large_k=True)
    metric.update(x, y)
    assert list(metric.compute()) == ["knn_overlap_5", "knn_overlap_39"]
    strict = KNNOverlap((5, 40))
    strict.update(x, y)
    with pytest.raises(ValueError, match=r"at least 41 samples.*k = 40, got 40"):
        strict.compute()


def test_an_unknown_part_of_state_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`state` to be one of moments, exact, rows, labels, got 'gram'"
    ):
        LinearCKA(state=("gram",))


def test_neighbors_of_a_frozen_reference_are_kept_between_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = pair()
    searched = []
    search = F.knn.nearest_neighbors

    def counting(rows: Tensor, *args: Any) -> Tensor:
        searched.append(rows)
        return search(rows, *args)

    monkeypatch.setattr(F.knn, "nearest_neighbors", counting)
    metric = KNNOverlap()
    for live, new_searches in ((x, 2), (x + 1, 1), (x**2, 1)):
        metric.reset()
        metric.update(live, y)
        searched.clear()
        value = metric.compute().item()
        assert len(searched) == new_searches
        assert value == F.knn_overlap(live, y).item()
    metric.reset()
    metric.update(x, y**2)
    assert metric.compute().item() == F.knn_overlap(x, y**2).item()


JACKKNIFED = {
    "cka": (LinearCKA, ["cka"]),
    "cka_plain": (lambda **o: LinearCKA(debiased=False, **o), ["cka_plain"]),
    "cka_standardized": (lambda **o: LinearCKA(standardize=True, **o), ["cka_standardized"]),
    "knn": (KNNOverlap, ["knn_overlap_10"]),
    "procrustes": (
        OrthogonalProcrustes,
        ["procrustes_residual", "procrustes_global_cosine", "procrustes_mean_cosine",
         "inverse_row_entropy"],
    ),
    "dimension_correlation": (
        DimensionCorrelation,
        ["dimension_correlation", "dimension_correlation_median"],
    ),
    "probe": (
        lambda **o: LinearProbeTransfer(2, **o),
        ["probe_transfer_accuracy", "probe_source_accuracy", "probe_ceiling_accuracy"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JACKKNIFED)
def test_standard_errors_are_those_of_the_function(name: str) -> None:
    make, keys = JACKKNIFED[name]
    function = CASES[name][1]
    metric, (x, y, labels) = make(num_jackknife_groups=4), data()
    order = torch.randperm(120)
    for rows in order.split(50):
        metric.update(x[rows], y[rows], labels[rows])
    values = metric.compute()
    assert metric.keys() == tuple(values)
    assert list(values) == keys + [f"{key}_se" for key in keys]

    def by_key(*arguments: Tensor) -> dict[str, Tensor]:
        value = function(*arguments)
        return value if isinstance(value, dict) else {keys[0]: value}

    expected, errors = F.jackknife(by_key, x, y, labels, num_groups=4)
    assert_equal({key: values[key] for key in keys}, expected)
    assert all(error > 0 for error in errors.values())
    assert_equal({key: values[f"{key}_se"] for key in keys}, errors, rel=1e-4)


def test_standard_errors_stay_out_of_forward_and_refuse_one_group() -> None:
    x, y, _ = data()
    metric = LinearCKA(num_jackknife_groups=4)
    batch = metric(x, y)
    assert batch["cka"].item() == pytest.approx(F.linear_cka(x, y).item(), rel=1e-6)
    assert math.isnan(batch["cka_se"].item())
    assert metric(x[:1], y[:1]).keys() == batch.keys()
    with pytest.raises(ValueError, match="`num_groups` to be at least 2, got 1"):
        LinearCKA(num_jackknife_groups=1)


def test_heatmap_has_standard_errors_and_levels_of_its_shape() -> None:
    x, y, _ = data()
    metric = LinearCKAHeatmap(num_jackknife_groups=4, null=19)
    metric.update([x, y], [y])
    value = metric.compute()
    null = F.permutation_null(F.linear_cka, x, y, num_permutations=19)
    assert value["cka_null"][0, 0].item() == pytest.approx(null.level.item(), rel=1e-5)
    assert value["cka_p"].tolist() == [[null.p_value.item()], [0.05]]
    expected = F.jackknife(F.linear_cka, x, y, num_groups=4).standard_error
    assert value["cka_se"].shape == (2, 1)
    # The groups of a heatmap follow the rows of all layers of y together: here the same.
    assert value["cka_se"][0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
