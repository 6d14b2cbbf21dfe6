import pytest

from hrsa_lightning.compare.comparison import pair_layers

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
