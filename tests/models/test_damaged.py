"""Damaged and edited backbones: one line that names what is wrong, before anything trains."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, GPT2Config

from hrsa_lightning.config import load_config
from hrsa_lightning.config.build import build_data
from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.models import EmbeddingModel
from hrsa_lightning.models.paths import check_available
from tests.tiny import make_backbone, make_model, make_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of two layers whose config has no list of its layers' types to contradict."""
    return make_backbone(tmp_path_factory.mktemp("whole"), "llama")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "backbone"))


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _truncate(folder: Path) -> None:
    _weights(folder).write_bytes(_weights(folder).read_bytes()[:-100])


def _cut_in_header(folder: Path) -> None:
    _weights(folder).write_bytes(_weights(folder).read_bytes()[:100])


def _spoil_header(folder: Path) -> None:
    content = _weights(folder).read_bytes()
    _weights(folder).write_bytes(content[:8] + b"x" + content[9:])


def _shard(folder: Path, name: str) -> None:
    weights = load_file(_weights(folder))
    _weights(folder).rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BEFORE_TORCH = {
    "empty": (lambda f: _weights(f).write_bytes(b""), r"model\.safetensors: no safetensors file"),
    "truncated": (_truncate, r"model\.safetensors: expected [\d,]+ bytes, got [\d,]+: cut off"),
    "cut header": (_cut_in_header, r"model\.safetensors: no safetensors file, or cut off within"),
    "odd header": (_spoil_header, r"model\.safetensors: no safetensors file: its header"),
    "index to bin": (lambda f: _shard(f, "pytorch_model.bin"), r"got 'pytorch_model\.bin'"),
    "index outside": (lambda f: _shard(f, "../x.safetensors"), r"beside it, got '\.\./x\.safet"),
    "index to none": (lambda f: _shard(f, "x.safetensors"), r"weight_map: no file 'x\.safetensor"),
    "fewer layers": (
        lambda f: _edit(f / "config.json", num_hidden_layers=1),
        r"config\.json: num_hidden_layers: expected 2 as there are in the weights, got 1",
    ),
}


@pytest.mark.parametrize("damage", BEFORE_TORCH)
def test_damage_is_found_without_loading(folder: Path, damage: str) -> None:
    check_available(folder)
    spoil, message = BEFORE_TORCH[damage]
    spoil(folder)
    for load in (check_available, EmbeddingModel.from_pretrained):
        with pytest.raises(BackboneError, match=message) as caught:
            load(folder)
        assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_is_not_read(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trapped",)

    _shard(folder, "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BackboneError, match="weight_map"):
        EmbeddingModel.from_pretrained(folder)
    assert not (tmp_path / "trapped").exists()


def test_whole_shards_are_read(folder: Path) -> None:
    _shard(folder, "model-00001-of-00001.safetensors")
    check_available(folder)
    assert EmbeddingModel.from_pretrained(folder).num_layers == 2


def _with_nan(folder: Path) -> None:
    weights = load_file(_weights(folder))
    weights["layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, _weights(folder), {"format": "pt"})


def _with_high_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        if token["content"] == "<|pad|>":
            token["id"] = 9999
    content["model"]["vocab"]["<|pad|>"] = 9999
    path.write_text(json.dumps(content))


LOADING = {
    "vocab_size": (
        lambda f: _edit(f / "config.json", vocab_size=1000),
        r"asks for 'embed_tokens\.weight' of shape \(1000, 32\), the checkpoint has \(384, 32\)",
    ),
    "more layers": (lambda f: _edit(f / "config.json", num_hidden_layers=3), r"lacks 9 weights"),
    "hidden_size": (
        lambda f: _edit(f / "config.json", hidden_size=64),
        r"config\.json asks for 'embed_tokens\.weight' of shape \(384, 64\)",
    ),
    "pad id": (lambda f: _edit(f / "config.json", pad_token_id=5000), r"Padding_idx must be"),
    "words": (
        lambda f: _edit(f / "config.json", num_hidden_layers="two"),
        r"num_hidden_layers|'str' object cannot be interpreted",  # transformers 5.2
    ),
    "NaN": (_with_nan, r"'layers\.1\.mlp\.up_proj\.weight' holds NaN or infinite weights"),
    "pad token": (_with_high_token, r"its tokenizer has ids up to 9999, and its embedding table 3"),
}


@pytest.mark.parametrize("damage", LOADING)
def test_damage_is_found_by_loading(folder: Path, damage: str) -> None:
    spoil, message = LOADING[damage]
    spoil(folder)
    with pytest.raises(BackboneError, match=message) as caught:
        EmbeddingModel.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


def test_texts_longer_than_a_table_of_positions(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=384,
        n_positions=64,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    arm = EmbeddingModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert arm.max_positions == 64
    recipe = load_config("quickstart", ["data.query_length=64", "data.passage_length=65"])
    with pytest.raises(ConfigError, match=r"data\.passage_length: expected at most 64, .*arms\.b"):
        build_data(recipe, {"base": arm})


def test_rotary_positions_have_no_end(whole: Path) -> None:
    assert make_model("llama").config.max_position_embeddings == 128
    assert EmbeddingModel.from_pretrained(whole).max_positions is None
