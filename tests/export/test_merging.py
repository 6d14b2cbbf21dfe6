import math

import pytest
import torch

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.export.merging import interpolate, slerp
from tests.tiny import make_model


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_slerp_follows_the_circle(weight):
    angle = 1.1
    x = torch.tensor([3.0, 0.0])
    y = 5 * torch.tensor([math.cos(angle), math.sin(angle)])
    length = 3 + weight * 2
    expected = length * torch.tensor([math.cos(weight * angle), math.sin(weight * angle)])
    assert torch.allclose(slerp(x, y, weight), expected, atol=1e-6)


@pytest.mark.parametrize("other", [torch.zeros(4), torch.arange(4.0), -torch.arange(4.0)])
def test_slerp_without_a_direction_is_linear(other):
    x = torch.arange(4.0)
    assert torch.allclose(slerp(x, other, 0.25), torch.lerp(x, other, 0.25), atol=1e-6)


@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_ends_of_the_interpolation_are_the_models(method):
    for weight, seed in ((0.0, 0), (1.0, 1)):
        model, other = make_model(seed=0), make_model(seed=1)
        expected = make_model(seed=seed).state_dict()
        interpolate(model, other, weight, method)
        for name, value in model.state_dict().items():
            assert torch.allclose(value, expected[name], atol=1e-6), name


def test_other_architectures_are_refused():
    with pytest.raises(BackboneError, match="one architecture"):
        interpolate(make_model(layers=2), make_model(layers=3), 0.5, "linear")
