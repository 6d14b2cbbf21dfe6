import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hrsa_lightning.models import add_lora
from hrsa_lightning.models.dropout import draw_kept
from hrsa_lightning.models.fused import FusedLoraLinear, fuse_lora
from tests.tiny import make_model


class _Layers(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.project = nn.Linear(6, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x)


def _pair(bias=True, p=0.0, dtype=torch.float32, **options):
    """A layer of peft's and the same layer fused; all their weights are random."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=7, lora_dropout=p, target_modules=["project"], init_lora_weights=False
    )
    plain = get_peft_model(_Layers(bias).to(dtype), config, **options)
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    return plain.base_model.model.project, fused.base_model.model.project


def _run(layer, x, direction):
    """The output, and the gradients of the input and of both matrices."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    torch.manual_seed(1)
    output = layer(x)
    (output * direction).sum().backward()
    weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    assert layer.base_layer.weight.grad is None
    return output.detach(), x.grad, *(weight.grad.clone() for weight in weights)


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_pefts(shape, bias):
    plain, fused = _pair(bias)
    x, direction = torch.randn(shape), torch.randn(*shape[:-1], 3)
    assert isinstance(fused, FusedLoraLinear)
    torch.testing.assert_close(_run(fused, x, direction), _run(plain, x, direction))


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_dropout_is_that_of_the_drawn_mask(p):
    plain, fused = _pair(p=p)
    x, direction = torch.randn(2, 50, 6), torch.randn(2, 50, 3)
    torch.manual_seed(1)
    mask = draw_kept(x.shape, p).float() / (1 - p)
    assert 0 < (mask == 0).sum() < mask.numel()

    class Masked(nn.Module):
        def forward(self, x):
            return x * mask

    plain.lora_dropout["default"] = Masked()
    torch.testing.assert_close(_run(fused, x, direction), _run(plain, x, direction))
    without = _pair()[0](x)
    drawn = torch.get_rng_state()
    torch.testing.assert_close(fused.eval()(x), without)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_backbones_in_16_bits_keep_adapters_in_32():
    plain, fused = _pair(dtype=torch.bfloat16)
    assert fused.lora_A["default"].weight.dtype == torch.float32
    x, direction = torch.randn(3, 5, 6).bfloat16(), torch.randn(3, 5, 3).bfloat16()
    found, expected = _run(fused, x, direction), _run(plain, x, direction)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_an_input_without_gradient_takes_none():
    _, fused = _pair(p=0.3)
    fused(torch.randn(4, 6)).sum().backward()
    assert fused.lora_B["default"].weight.grad.abs().sum() > 0


class TestWherePeftComputes:
    @pytest.fixture
    def nodes(self, monkeypatch):
        """Calls of the fused computation."""
        called = []
        inner = FusedLoraLinear._plain_adapter
        monkeypatch.setattr(
            FusedLoraLinear,
            "_plain_adapter",
            lambda self, x: called.append(inner(self, x)) or called[-1],
        )
        return called

    def test_hooks_on_its_parts_run(self, nodes):
        plain, fused = _pair()
        seen = []
        fused.base_layer.register_forward_hook(lambda *parts: seen.append(parts[-1]))
        x = torch.randn(4, 6)
        torch.testing.assert_close(fused(x), plain(x))
        assert len(seen) == 1
        assert nodes == [None]

    def test_merged_weights_are_used_alone(self, nodes):
        plain, fused = _pair()
        fused.merge()
        x = torch.randn(4, 6)
        torch.testing.assert_close(fused(x), plain(x))
        assert nodes == [None]

    def test_disabled_adapters_are_left_out(self, nodes):
        _, fused = _pair()
        fused.enable_adapters(False)
        x = torch.randn(4, 6)
        torch.testing.assert_close(fused(x), fused.base_layer(x))
        assert nodes == [None]

    def test_autocast(self, nodes):
        plain, fused = _pair()
        x = torch.randn(4, 6)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fused(x), plain(x))
        assert nodes == [None]


def test_names_and_weights_stay_pefts():
    model = add_lora(make_model("qwen2"), r=2, lora_dropout=0.3, seed=3)
    layers = [module for module in model.modules() if isinstance(module, FusedLoraLinear)]
    assert len(layers) == 14
    config = LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear")
    expected = get_peft_model(make_model("qwen2"), config).state_dict()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
