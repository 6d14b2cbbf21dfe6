import json
import shutil

import pytest
import torch

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.runs.loading import check_source, load_model
from hrsa_lightning.runs.resolve import find_sources
from tests.tiny import make_backbone

TEXTS = ["river stone", "a longer passage about green paper and a letter"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone and its adapter, in peft's format, and other backbones."""
    folder = tmp_path_factory.mktemp("loading")
    make_backbone(folder / "own", seed=0)
    make_backbone(folder / "wide", hidden=48, seed=0)
    make_backbone(folder / "flat", layers=1, seed=0)
    model = EmbeddingModel.from_pretrained(folder / "own", lora={"r": 2}, attention="causal")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    model.save_adapter(folder / "adapter")
    return folder, model


def test_an_adapter_goes_on_its_backbone(place):
    folder, model = place
    (source,) = find_sources(str(folder / "adapter"))
    config = check_source(source)
    assert config.hidden_size == model.embedding_dim
    loaded = load_model(source)
    assert loaded.transformer.config.is_causal is False
    assert not loaded.training
    bidirectional = EmbeddingModel.from_pretrained(folder / "own", adapter=folder / "adapter")
    torch.testing.assert_close(loaded.embed(TEXTS), bidirectional.embed(TEXTS))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("wide", r"lora_A.weight is 2 x 64 in the adapter, and 2 x 96 on the backbone"),
        ("flat", r"layers.1.\S+ is \d+ x \d+ in the adapter, and absent on the backbone"),
    ],
)
def test_an_adapter_of_another_backbone_is_refused_before_weights_are_read(
    place, monkeypatch, base, message
):
    folder, _ = place
    (source,) = find_sources(str(folder / "adapter"), base=str(folder / base))
    monkeypatch.setattr(EmbeddingModel, "from_pretrained", None)
    with pytest.raises(BackboneError, match=message) as caught:
        check_source(source)
    assert "\n" not in str(caught.value)


def test_adapters_that_cannot_be_read_are_one_line(place, tmp_path):
    folder, _ = place
    shutil.copytree(folder / "adapter", tmp_path / "cut")
    (tmp_path / "cut" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(BackboneError, match="does not fit the backbone") as caught:
        check_source(find_sources(str(tmp_path / "cut"))[0])
    assert "\n" not in str(caught.value)
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    odd = tmp_path / "odd"
    shutil.copytree(folder / "adapter", odd)
    (odd / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["none"]}))
    with pytest.raises(BackboneError, match="does not fit the backbone"):
        check_source(find_sources(str(odd))[0])
