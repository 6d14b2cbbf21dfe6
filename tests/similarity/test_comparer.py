import math
import warnings
from functools import partial

import pytest
import torch
from scipy import stats
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.functional import (
    SimilarityWarning,
    cknna,
    jackknife,
    knn_overlap,
    linear_cka,
    permutation_null,
    procrustes_identity,
)
from hrsa_lightning.functional.knn import chance_overlap
from hrsa_lightning.metrics import KNNOverlap, LinearCKA
from hrsa_lightning.similarity.comparer import Comparer, LabeledComparer, variance_shares
from hrsa_lightning.similarity.measurement import Measurement
from hrsa_lightning.similarity.metric_info import metric_order

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
Y = X @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2)) + 0.5 * torch.randn(80, 6)


def test_the_hrsa_set_agrees_with_the_functions():
    result = Comparer().compare(X, Y)
    assert result.values["cka"] == pytest.approx(linear_cka(X, Y).item(), abs=1e-6)
    assert result.values["knn_overlap_10"] == pytest.approx(knn_overlap(X, Y, k=10).item())
    assert result.chance["cka"] == 0.0
    assert result.notes == []


def test_names_choose_and_keep_their_order():
    result = Comparer(["knn_overlap_5", "cka", "procrustes_residual"]).compare(X, Y)
    assert list(result.values) == ["knn_overlap_5", "cka", "procrustes_residual"]
    with pytest.raises(ConfigError, match="no 'ckaa'; there are cka, cka_plain"):
        Comparer(["ckaa"])


def test_extra_metrics_go_by_name():
    keys = ["cknna_5", "predictivity_forward", "cknna_10", "cka_standardized"]
    result = Comparer(keys, num_permutations=20).compare(X, Y, calibrate=True)
    assert list(result.values) == keys
    assert result.values["cknna_5"] == pytest.approx(cknna(X, Y, k=5).item(), abs=1e-6)
    assert result.chance["predictivity_forward"] == 0
    assert set(result.null) == set(keys)


@pytest.mark.parametrize(("num_rows", "told"), [(10, True), (30, True), (60, False)])
def test_few_samples_for_the_width_are_said_once_with_the_cure(num_rows, told):
    x = torch.randn(num_rows, 20, generator=torch.Generator().manual_seed(0))
    notes = Comparer(["procrustes_residual", "inverse_row_entropy"]).compare(x, x).notes
    assert len(notes) == told
    assert not told or "not 0 / 1 / 1; take more than 40 samples, or tokens" in notes[0]
    assert ("inverse row entropy is undefined" in "".join(notes)) == (num_rows == 10)


def test_other_metrics():
    expected = (X - Y).abs().mean().item()
    for metrics in (MeanAbsoluteError(), [MeanAbsoluteError()], {"mae": MeanAbsoluteError()}):
        (value,) = Comparer(metrics).compare(X, Y).values.values()
        assert value == pytest.approx(expected, abs=1e-6)


def test_evaluations_do_not_add_up():
    comparer = Comparer(MeanAbsoluteError())
    comparer.compare(X, Y + 9)
    assert comparer.compare(X, X).values == {"MeanAbsoluteError": 0.0}


def test_metrics_that_need_equal_widths_are_left_out_and_named():
    result = Comparer().compare(X, Y[:, :4])
    assert "cka" in result.values
    assert not any(key.startswith("dimension_correlation") for key in result.values)
    assert any("dimension_correlation needs equal widths" in note for note in result.notes)
    with pytest.raises(DataError, match="6 against 4 features"):
        Comparer(MeanAbsoluteError()).compare(X, Y[:, :4])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_give_nan_for_all_metrics_and_one_note(bad):
    spoiled = X.clone()
    spoiled[3, 2] = bad
    result = Comparer().compare(spoiled, Y)
    assert result.values.keys() == Comparer().compare(X, Y).values.keys()
    assert all(math.isnan(value) for value in result.values.values())
    assert len(result.notes) == 1
    assert "not finite" in result.notes[0]


def test_a_degenerate_layer_is_nan_with_a_reason():
    result = Comparer(["cka"]).compare(torch.ones(80, 6), Y)
    assert math.isnan(result.values["cka"])
    assert any("NaN" in note for note in result.notes)


def test_a_calibrated_comparison_has_identity_and_null_of_the_functions():
    few, ids = X[:8], torch.arange(8)  # 4 rows cannot fix a rotation of 6 features
    result = Comparer(["procrustes_residual", "cka"]).compare(few, Y[:8], calibrate=True)
    expected = procrustes_identity(Y[:8], y_ids=ids).residual_variance_ratio.item()
    assert result.identity == {"procrustes_residual": pytest.approx(expected), "cka": 1.0}
    assert expected > 0.1
    assert result.null == {}
    comparer = Comparer(num_permutations=50)
    result = comparer.compare(X, Y, calibrate=True)
    for key, function in (("cka", linear_cka), ("knn_overlap_10", knn_overlap)):
        found = permutation_null(function, X, Y, num_permutations=50)
        assert result.null[key] == (
            pytest.approx(found.level.item(), abs=1e-6),
            pytest.approx(found.p_value.item()),
        )
    other = comparer.compare(X, torch.randn(80, 6), calibrate=True)
    assert other.null["cka"] != result.null["cka"]  # nothing is kept from before
    assert "inverse_row_entropy" not in result.null
    again = comparer.compare(X, Y)
    assert (again.values, again.identity, again.null) == (result.values, {}, {})
    assert comparer.calibration_seconds > 0


def test_a_metric_with_a_null_of_its_own_has_it_as_fields():
    result = Comparer(LinearCKA(null=20)).compare(X, Y)
    assert list(result.values) == ["cka"]
    assert result.null["cka"][1] == pytest.approx(1 / 21)
    with pytest.raises(ConfigError, match="null: expected 0 or at least 19 permutations"):
        Comparer(num_permutations=5)


def test_the_band_holds_the_value_and_narrows_with_samples():
    widths = []
    for n in (40, 400):
        x = torch.randn(n, 6)
        y = x + torch.randn(n, 6)
        result = Comparer(["cka"], num_groups=10).compare(x, y)
        low, high = result.bands["cka"]
        assert low < result.values["cka"] < high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_the_band_covers_the_truth_about_as_often_as_it_says():
    """CKA of a joint Gaussian: the true value comes from a very large sample."""
    mix = torch.randn(4, 4)
    truth = linear_cka(*_draw(20_000, mix)).item()
    comparer, covered = Comparer(["cka"], num_groups=10), 0
    for _ in range(20):
        low, high = comparer.compare(*_draw(100, mix)).bands["cka"]
        covered += low <= truth <= high
    assert covered >= 16


def _draw(n, mix):
    x = torch.randn(n, 4)
    return x, x @ mix + 0.7 * torch.randn(n, 4)


def test_labels_reach_the_probe():
    labels = (X[:, 0] > 0).long()
    values = Comparer(num_classes=2).compare(X, Y, labels).values
    assert values["probe_ceiling_accuracy"] > 0.7
    assert not any(key.startswith("probe") for key in Comparer().compare(X, Y).values)


def test_labels_and_other_widths_leave_out_what_needs_equal_ones():
    labels = (X[:, 0] > 0).long()
    result = Comparer(num_classes=2).compare(X, Y[:, :4], labels)
    assert result.values["cka"] == pytest.approx(linear_cka(X, Y[:, :4]).item(), abs=1e-6)
    assert not any(key.startswith(("probe", "dimension")) for key in result.values)
    for name in ("probe_transfer", "dimension_correlation"):
        note = f"{name} needs equal widths and is left out (6 against 4 features)"
        assert result.notes.count(note) == 1
    with pytest.raises(DataError, match="probe_transfer needs equal widths"):
        Comparer(["probe_transfer_accuracy"], num_classes=2).compare(X, Y[:, :4], labels)


def test_chance_levels_have_the_keys_of_the_values_and_no_others():
    result = Comparer(["procrustes_residual", "knn_overlap_5"]).compare(X, Y)
    assert result.chance.keys() == result.values.keys()
    result = Comparer({"mine": KNNOverlap(5)}).compare(X, Y)
    assert result.chance == {"mine": pytest.approx(chance_overlap(5, len(X)))}
    collection = MetricCollection({"knn": KNNOverlap((5, 9))}, prefix="a_")
    for y in (Y, Y[:, :4]):
        result = Comparer(collection).compare(X, y)
        assert set(result.values) == set(result.chance) == {"a_knn_overlap_5", "a_knn_overlap_9"}


def test_a_band_of_fewer_samples_than_groups():
    x, y = X[:6], Y[:6]
    result = Comparer(["cka_plain"], num_groups=10).compare(x, y)
    error = jackknife(
        partial(linear_cka, debiased=False), x, y, num_groups=6, y_ids=torch.arange(6)
    )
    half = float(error.standard_error) * stats.t.ppf(0.975, 5)
    assert result.bands["cka_plain"][1] - result.values["cka_plain"] == pytest.approx(
        half, rel=1e-4
    )


def test_variance_shares():
    x = torch.zeros(10, 5)
    x[0, 3] = 100.0
    assert variance_shares(x)["variance_share_dimension"] == pytest.approx(1.0)
    assert variance_shares(x)["variance_share_sample"] == pytest.approx(0.9)
    assert math.isnan(variance_shares(torch.ones(4, 2))["variance_share_sample"])


class Vector(Metric):
    def update(self, x, y):
        pass

    def compute(self):
        return torch.ones(2)


def test_mistakes_are_named():
    with pytest.raises(DataError, match=r"80 rows against 79.*same tokenizer"):
        Comparer().compare(X, Y[:-1])
    with pytest.raises(DataError, match="at least 11 samples, got 3"):
        Comparer().compare(X[:3], Y[:3])
    with pytest.raises(
        DataError, match=r"metric Vector: expected one number, got the shape \(2,\)"
    ):
        Comparer(Vector()).compare(X, Y)
    with pytest.raises(ConfigError, match="num_jackknife_groups"):
        Comparer(num_groups=4)
    for metrics in (3, [], "cka", [3]):
        with pytest.raises(ConfigError, match="metrics: expected"):
            Comparer(metrics)


def test_warnings_of_others_are_not_taken_for_those_of_metrics():
    class NoisyError(MeanAbsoluteError):
        def update(self, x, y):
            super().update(x, y)
            warnings.warn("from a thread beside", DeprecationWarning, stacklevel=1)
            warnings.warn("of a metric", SimilarityWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="from a thread beside"):
        result = Comparer(NoisyError()).compare(X, Y)
    assert result.notes == ["of a metric"]


class Distances(Metric):
    """A metric of a user's, of geometry: how unlike distances between rows are."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, x, y):
        self.total += (torch.pdist(x) - torch.pdist(y)).abs().mean()

    def compute(self):
        return {"distances": self.total, "double": 2 * self.total}


class Picky(Distances):
    """Takes no rows but those of its own project."""

    def update(self, x, y):
        if x.shape[1] != 7:
            raise ValueError("seven features")
        super().update(x, y)

    def compute(self):
        return self.total


def test_metrics_of_a_user_have_the_level_of_their_invariances():
    x, y = torch.randn(2, 40, 7)
    metrics = {"mine": Distances(), "picky": Picky(), "cka": LinearCKA()}
    place = Measurement("", 0.0, None, layer="a", reference="b")
    found, _ = LabeledComparer(Comparer(metrics)).compare(place, x, y)
    levels = {m.metric: m.level for m in found}
    assert levels == {"distances": "geometry", "double": "geometry", "picky": "", "cka": ""}
    order = sorted(levels, key=lambda key: metric_order(key, levels[key]))
    assert order == ["cka", "distances", "double", "picky"]
    known = sorted(
        ["procrustes_residual", *order], key=lambda k: metric_order(k, levels.get(k, ""))
    )
    assert known.index("procrustes_residual") == 1
