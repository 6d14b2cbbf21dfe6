from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models import add_lora
from hrsa_lightning.models.lora import load_lora
from tests.tiny import make_model


def _adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "phi3"])
def test_every_linear_layer_is_adapted_and_nothing_else_trained(family: str) -> None:
    model = make_model(family)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = {
        name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        for name in _adapter(add_lora(model, r=2))
    }
    assert adapted == linear


def test_seed_decides_the_weights_and_the_global_rng_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        _adapter(add_lora(make_model("qwen2"), r=4, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    a_matrices = [name for name in first if "lora_A" in name]
    assert len(a_matrices) == 14
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in a_matrices)


def test_without_seed_the_global_rng_decides() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(_adapter(add_lora(make_model("qwen2"), r=4)))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    following = _adapter(add_lora(make_model("qwen2"), r=4))
    assert any(not torch.equal(drawn[0][name], following[name]) for name in following)


def test_names_are_peft_s() -> None:
    model = add_lora(make_model("qwen2"), 4, 8, 0.2, ["q_proj"], use_rslora=True)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.2)
    assert config.target_modules == {"q_proj"}
    assert config.use_rslora
    assert config.task_type == "FEATURE_EXTRACTION"


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_fused_experts_exclude_dropout(family: str) -> None:
    with pytest.raises(
        BackboneError, match=rf"{family}: no LoRA as asked: its experts share fused parameters"
    ):
        add_lora(make_model(family), lora_dropout=0.1)
    adapted = _adapter(add_lora(make_model(family), lora_dropout=0.0))
    ranks = {weight.shape[0] for name, weight in adapted.items() if "base_layer.lora_A" in name}
    assert ranks == {4 * 2 * 16}  # experts, halves of the fused projection, r


def test_unknown_target_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"qwen2: no LoRA as asked: .*no_such_layer"):
        add_lora(make_model("qwen2"), target_modules=["no_such_layer"])


class TestLoading:
    def test_round_trip(self, tmp_path: Path) -> None:
        saved = add_lora(make_model("qwen2"), r=4, init_lora_weights=False)
        saved.save_pretrained(tmp_path, save_embedding_layers=False)
        loaded = load_lora(make_model("qwen2"), tmp_path)
        expected = _adapter(saved)
        assert all(torch.equal(weight, expected[name]) for name, weight in _adapter(loaded).items())
        assert _adapter(loaded).keys() == expected.keys()

    def test_folder_without_adapter(self, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match=r"has no adapter_config\.json"):
            load_lora(make_model("qwen2"), tmp_path)

    def test_pickled_adapter(self, tmp_path: Path) -> None:
        add_lora(make_model("qwen2")).save_pretrained(tmp_path, save_embedding_layers=False)
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
        with pytest.raises(BackboneError, match=r"has no adapter_model\.safetensors"):
            load_lora(make_model("qwen2"), tmp_path)

    def test_adapter_of_another_backbone(self, tmp_path: Path) -> None:
        add_lora(make_model("qwen2", hidden=64)).save_pretrained(
            tmp_path, save_embedding_layers=False
        )
        with pytest.raises(BackboneError, match=r"does not fit the backbone"):
            load_lora(make_model("qwen2"), tmp_path)

    def test_adapter_for_more_layers(self, tmp_path: Path) -> None:
        add_lora(make_model("qwen2", layers=3)).save_pretrained(
            tmp_path, save_embedding_layers=False
        )
        with pytest.raises(BackboneError, match=r"does not fit the backbone"):
            load_lora(make_model("qwen2"), tmp_path)
