import pytest
import torch
from torch import nn

from hrsa_lightning.models.dropout import DropoutLinear, draw_kept
from hrsa_lightning.models.embedder import EmbeddingModel
from tests.tiny import make_backbone


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_entries_are_kept_independently_with_the_asked_probability(p):
    kept = draw_kept(torch.Size([1000, 999]), p).double()
    count = kept.numel()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    sigma = (p * (1 - p) / count) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 5 * sigma
    # Pairs of neighbors, along rows, along columns and within one 64-bit number, are uncorrelated.
    centered = kept - kept.mean()
    for pair in (
        (centered[:, 1:], centered[:, :-1]),
        (centered[1:], centered[:-1]),
        (centered.flatten()[:-1:2], centered.flatten()[1::2]),
    ):
        correlation = (pair[0] * pair[1]).mean() / centered.square().mean()
        assert abs(correlation) < 5 / pair[0].numel() ** 0.5
    assert not torch.equal(kept, draw_kept(torch.Size([1000, 999]), p))


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_value_and_gradients_are_those_of_dropout_and_a_linear_layer(p):
    layer = DropoutLinear(nn.Linear(6, 3, bias=False), p)
    x = torch.randn(2, 5, 6, requires_grad=True)
    direction = torch.randn(2, 5, 3)
    torch.manual_seed(1)
    output = layer(x)
    (output * direction).sum().backward()
    found = x.grad, layer.weight.grad
    torch.manual_seed(1)
    mask = draw_kept(x.shape, p).float() / (1 - p)
    assert 0 < (mask == 0).sum() < mask.numel()
    x.grad = layer.weight.grad = None
    expected = nn.functional.linear(x * mask, layer.weight)
    torch.testing.assert_close(output, expected)
    (expected * direction).sum().backward()
    torch.testing.assert_close(found, (x.grad, layer.weight.grad))


def test_evaluation_drops_nothing_and_the_seed_decides():
    layer = DropoutLinear(nn.Linear(8, 4, bias=False), 0.5)
    x = torch.randn(3, 8)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(layer.eval()(x), nn.functional.linear(x, layer.weight))


def test_adapters_with_dropout_keep_pefts_names(tmp_path):
    make_backbone(tmp_path)
    with_dropout, without = (
        EmbeddingModel.from_pretrained(tmp_path, lora={"r": 2, "lora_dropout": p}, seed=3)
        for p in (0.3, 0.0)
    )
    names = with_dropout.state_dict().keys()
    assert names == without.state_dict().keys()
    assert any(isinstance(module, DropoutLinear) for module in with_dropout.modules())
    assert not any(isinstance(module, nn.Dropout) for module in with_dropout.modules())
    assert with_dropout.backbone.peft_config["default"].lora_dropout == 0.3
    for name, weight in with_dropout.named_parameters():
        assert torch.equal(weight, without.get_parameter(name))
        assert weight.requires_grad == ("lora_" in name)
