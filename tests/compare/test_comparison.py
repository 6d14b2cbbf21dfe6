import pytest

from hrsa_lightning.compare.comparison import (
    Comparison,
    ComparisonResults,
    Heatmap,
    pair_layers,
)
from hrsa_lightning.compare.options import ExtractionOptions, MetricOptions
from hrsa_lightning.compare.results import summary_lines
from hrsa_lightning.similarity import Measurement

OUT = ["output"]


def numbered(count, name="layer"):
    return [f"{name}_{index}" for index in range(count)]


def test_models_of_one_depth_are_paired_in_order_whatever_the_names():
    assert pair_layers(numbered(3) + OUT, numbered(3, "block")) == dict(
        zip([*numbered(3)], numbered(3, "block"), strict=True)
    )


@pytest.mark.parametrize(("shallow", "deep"), [(2, 3), (4, 7), (12, 28), (28, 36), (1, 9)])
def test_other_depths_are_paired_by_nearest_relative_depth(shallow, deep):
    pairs = [*pair_layers(numbered(shallow) + OUT, numbered(deep) + OUT).items()]
    assert pairs[-1] == ("output", "output")
    indices = [(int(a.split("_")[1]), int(b.split("_")[1])) for a, b in pairs[:-1]]
    assert indices[-1] == (shallow - 1, deep - 1)
    assert [a for a, _ in indices] == list(range(shallow))
    for a, b in indices:
        gap = [abs((a + 1) / shallow - (other + 1) / deep) for other in range(deep)]
        assert gap[b] == pytest.approx(min(gap))


def test_pairing_is_the_same_from_either_side():
    forth = pair_layers(numbered(5), numbered(8))
    back = pair_layers(numbered(8), numbered(5))
    assert forth == {a: b for b, a in back.items()}


def test_an_output_that_only_one_side_has_is_left_out():
    assert pair_layers([*numbered(2), "output.logits"], numbered(2)) == {
        "layer_0": "layer_0",
        "layer_1": "layer_1",
    }


def test_the_summary_names_what_one_dimension_dominates_and_leaves_undefined_metrics_out():
    def value(metric, number, **levels):
        return Measurement(metric, number, 0.0, arm="b", reference="a", layer="output", **levels)

    comparison = Comparison(
        "b",
        "a",
        {"output": "output"},
        Heatmap(["output"], ["output"], [[1.0]], [[1.0]], None, None, 9),
        [
            value("procrustes_residual", 0.5, identity=0.161, p_value=0.005),
            value("inverse_row_entropy", float("nan")),
        ],
        dominated={"layer_1": 0.98, "layer_2": 0.6},
    )
    results = ComparisonResults([], None, 9, ExtractionOptions(), MetricOptions(), [comparison])
    text = "\n".join(summary_lines(results))
    assert "| procrustes_residual | 0.500  | 0.000  | 0.161  | 0.005 |" in text
    assert "Undefined here and left out: inverse_row_entropy." in text
    assert "b_vs_a: one dimension carries" in text
    assert "read cka_standardized (up to 98%, at layer_1 to layer_2)" in text
