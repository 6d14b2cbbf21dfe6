import random

import numpy as np
import pytest
import torch
from torch import nn

from hrsa_lightning.similarity import preserve_training_state


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_states_come_back_and_the_inside_is_repeatable():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    inside = []
    for _ in range(2):
        with preserve_training_state():
            inside.append(draws())
    assert inside[0] == inside[1] != expected
    assert draws() == expected


def test_generators_come_back_even_after_an_error():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()

    def draw_and_fail():
        with preserve_training_state(generators=[generator]):
            torch.rand(2, generator=generator)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        draw_and_fail()
    assert torch.equal(generator.get_state(), before)


def test_modes_buffers_and_gradients():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2))
    net[2].eval()
    net.register_buffer("replaced", torch.arange(3.0))
    original = net.replaced
    version = net[0].running_mean._version
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def change_and_fail():
        with preserve_training_state(net):
            assert not any(part.training for part in net.modules())
            assert not torch.is_grad_enabled()
            net.replaced = torch.zeros(5)
            net[2].running_mean.add_(1)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        change_and_fail()
    assert [part.training for part in net.modules()] == [True, True, True, False]
    assert net.replaced is original
    assert net[0].running_mean._version == version, "an unchanged buffer is not written to"
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert torch.is_grad_enabled()


def test_what_a_module_caches_inside_can_be_trained_with():
    with preserve_training_state():
        cached = torch.ones(2) * 2
    weight = torch.ones(2, requires_grad=True)
    (weight * cached).sum().backward()
    assert weight.grad.tolist() == [2.0, 2.0]
