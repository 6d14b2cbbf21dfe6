import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction, PeftModel
from torch import Tensor
from transformers import AutoModel

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models import EmbeddingModel
from hrsa_lightning.models.attention import attention_problem
from hrsa_lightning.modules.gradcache import _saved_bytes

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "init_lora_weights": False}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
TEXTS = [
    "return value",
    ("Find the function.", "Add two numbers."),
    "",
    "def read_lines(path): return [line.strip() for line in open(path)]",
    ("Find the function.", "Return the lines of the file."),
    "index",
]


@pytest.fixture
def load(backbone_folder: Callable[..., Path]) -> Callable[..., EmbeddingModel]:
    def load(family: str = "qwen2", **options: Any) -> EmbeddingModel:
        return EmbeddingModel.from_pretrained(backbone_folder(family), **options)

    return load


def _embed(model: EmbeddingModel, **options: Any) -> Tensor:
    with torch.no_grad():
        return model.eval().encode_texts(model.tokenize(TEXTS, 24), **options)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "first"])
def test_embeddings_equal_texts_taken_one_by_one(load: Any, pooling: str) -> None:
    model = load(pooling=pooling).eval()
    embeddings = _embed(model)
    assert embeddings.dtype == torch.float32
    tokens = model.tokenize(TEXTS, 24)
    for index, embedding in enumerate(embeddings):
        row = tokens.select([index])
        with torch.no_grad():
            states = model.transformer(input_ids=row.input_ids[None]).last_hidden_state[0].double()
        kept = states[row.pool_mask]
        weights = torch.arange(1, len(kept) + 1, dtype=torch.float64)
        expected = {
            "mean": kept.mean(0),
            "weighted_mean": (kept * weights[:, None]).sum(0),
            "last": states[-1],
            "first": states[0],
        }[pooling]
        torch.testing.assert_close(
            embedding, (expected / expected.norm()).float(), rtol=1e-5, atol=1e-5
        )


def test_last_pooling_ends_texts_with_eos(load: Any) -> None:
    for pooling, expected in (("last", True), ("mean", False)):
        model = load(pooling=pooling)
        ids = model.tokenize(["return value"], 8).input_ids
        assert (ids[-1] == model.tokenizer.tokenizer.eos_token_id) == expected


def test_normalization_is_optional(load: Any) -> None:
    raw, normalized = _embed(load(normalize=False)), _embed(load())
    assert not torch.allclose(raw.norm(dim=1), torch.ones(len(raw)))
    torch.testing.assert_close(normalized, raw / raw.norm(dim=1, keepdim=True))


def test_row_without_pooled_tokens_takes_all_real_ones(load: Any) -> None:
    model = load().eval()
    batch = model.probe_batch(["return value", "index = 0, first"], 16)
    everything = model(batch["input_ids"], batch["attention_mask"])
    batch["pool_mask"][1] = False
    torch.testing.assert_close(model(**batch), everything, rtol=0, atol=0)


@pytest.mark.parametrize("budget", [1, 17, 60, 10_000])
def test_chunks_do_not_change_embeddings(load: Any, budget: int) -> None:
    model = load(lora=LORA, seed=0)
    torch.testing.assert_close(
        _embed(model, max_tokens_per_chunk=budget), _embed(model), rtol=1e-5, atol=1e-6
    )


def test_gradients_flow_through_chunks(load: Any) -> None:
    gradients = []
    for budget in (None, 30):
        model = load(lora={**LORA, "lora_dropout": 0.0}, seed=0)
        embeddings = model.encode_texts(model.tokenize(TEXTS, 24), budget)
        (embeddings @ embeddings.T).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for whole, chunked in zip(*gradients, strict=True):
        assert whole.abs().sum() > 0
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)


def test_no_texts_give_no_embeddings(load: Any) -> None:
    model = load()
    assert model.encode_texts(model.tokenize([], 8)).shape == (0, model.embedding_dim)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_checkpointing_changes_no_gradient_and_no_dropout(load: Any, lora: Any) -> None:
    gradients, recomputed = [], []
    for checkpointing in (False, True):
        model = load(lora=lora, seed=0, gradient_checkpointing=checkpointing)
        calls = []
        # Hooks of the layer itself stay outside; those within it run again.
        mlp = model.transformer.layers[0].mlp
        mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        embeddings = model.encode_texts(model.tokenize(TEXTS, 24))
        (embeddings @ embeddings.T).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        recomputed.append(len(calls) == 2)
    assert recomputed == [False, True]
    for stored, computed_again in zip(*gradients, strict=True):
        torch.testing.assert_close(computed_again, stored, rtol=1e-5, atol=1e-6)


def test_sixteen_bit_backbone_gives_float32_embeddings(load: Any) -> None:
    embeddings = _embed(load(dtype="bfloat16"))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_frozen_weights_in_the_dtype_of_autocast_change_no_bit(load: Any, family: str) -> None:
    found = []
    for cast in (False, True):
        model = load(family, lora=LORA, seed=3)
        if cast:
            model.cast_frozen_weights(torch.bfloat16)
        torch.manual_seed(0)
        with (
            torch.autocast("cpu", torch.bfloat16),
            _saved_bytes(list(model.parameters())) as saved,
        ):
            embeddings = model.encode_texts(model.tokenize(TEXTS, 24))
        embeddings[:, 0].sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        found.append((sum(saved.values()), [embeddings, *gradients]))
    (plain_bytes, plain), (cast_bytes, same) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert {gradient.dtype for gradient in same} == {torch.float32}
    linears = [m.base_layer.weight for m in model.modules() if hasattr(m, "base_layer")]
    assert {weight.dtype for weight in linears} == {torch.bfloat16}
    # A 16-bit copy of each was saved beside the activations, where its input needs a gradient.
    first = model.transformer.layers[0].self_attn
    unsaved = sum(getattr(first, name).base_layer.weight.nbytes for name in _PROJECTIONS)
    assert plain_bytes - cast_bytes == sum(weight.nbytes for weight in linears) - unsaved


def test_cast_weights_compute_outside_of_autocast_too(load: Any) -> None:
    model = load(lora=LORA, seed=3)
    expected = _embed(model)
    model.cast_frozen_weights(torch.bfloat16)
    torch.testing.assert_close(_embed(model), expected, rtol=0, atol=0.02)
    whole = load()
    whole.cast_frozen_weights(torch.bfloat16)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_layer_names_lead_to_the_layers(load: Any) -> None:
    plain, adapted = load(), load(lora=LORA, seed=0)
    assert plain.layer_names() == ["backbone.layers.0", "backbone.layers.1"]
    assert adapted.layer_names() == [f"backbone.base_model.model.layers.{i}" for i in range(2)]
    for model in (plain, adapted):
        assert model.num_layers == 2
        assert model.embedding_dim == 32
        for name, layer in model.decoder_layers.items():
            assert model.get_submodule(name) is layer is model.transformer.layers[int(name[-1])]


def test_hooks_on_layers_run_under_lora(load: Any) -> None:
    model, seen = load(lora=LORA, seed=0), []
    for name, layer in model.decoder_layers.items():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    _embed(model)
    assert seen == model.layer_names()


def test_loads_in_training_mode_without_touching_the_global_rng(load: Any) -> None:
    state = torch.get_rng_state()
    model = load(lora=LORA, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(_embed(load(lora=LORA, seed=4)), _embed(model), rtol=0, atol=0)


def test_fallback_mask_reaches_an_adapted_model(load: Any) -> None:
    """stablelm under sdpa needs the explicit mask, and peft's wrapper would pass by its hook."""
    sdpa, eager = (
        load("stablelm", lora=LORA, seed=0, attn_implementation=implementation)
        for implementation in ("sdpa", "eager")
    )
    torch.testing.assert_close(_embed(sdpa), _embed(eager), rtol=1e-5, atol=1e-5)


# peft's own loading, called directly here, uses a deprecated name of transformers.
PEFT_LOADS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


class TestSaving:
    def test_adapter_round_trip(self, load: Any, tmp_path: Path) -> None:
        model = load(lora=LORA, seed=0)
        model.save_adapter(tmp_path)
        again = load(adapter=tmp_path)
        torch.testing.assert_close(_embed(again), _embed(model), rtol=0, atol=0)
        trained = [p for p in again.parameters() if p.requires_grad]
        assert len(trained) == 28

    @PEFT_LOADS
    def test_adapter_is_peft_s(self, load: Any, tmp_path: Path) -> None:
        model = load(lora=LORA, seed=0)
        model.save_adapter(tmp_path)
        assert not list(tmp_path.glob("*.bin"))
        elsewhere = PeftModel.from_pretrained(load().transformer, tmp_path)
        model.backbone = elsewhere
        restored = _embed(model)
        torch.testing.assert_close(restored, _embed(load(adapter=tmp_path)), rtol=0, atol=0)

    def test_merged_equals_unmerged(self, load: Any, tmp_path: Path) -> None:
        model = load(lora=LORA, seed=0)
        before = _embed(model)
        model.backbone = model.backbone.merge_and_unload()
        torch.testing.assert_close(_embed(model), before, rtol=1e-5, atol=1e-5)
        model.save_adapter(tmp_path)
        loaded = EmbeddingModel.from_pretrained(tmp_path)
        torch.testing.assert_close(_embed(loaded), before, rtol=1e-5, atol=1e-5)

    def test_whole_backbone_keeps_its_attention(self, load: Any, tmp_path: Path) -> None:
        model = load()
        model.save_adapter(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["is_causal"] is False
        assert attention_problem(AutoModel.from_pretrained(tmp_path), "bidirectional") is None
        loaded = EmbeddingModel.from_pretrained(tmp_path)
        torch.testing.assert_close(_embed(loaded), _embed(model), rtol=0, atol=0)

    @PEFT_LOADS
    def test_adapter_elsewhere_is_causal(self, load: Any, tmp_path: Path) -> None:
        """Why `export` exists: an adapter says nothing about its backbone's attention."""
        load(lora=LORA, seed=0).save_adapter(tmp_path)
        elsewhere = AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path)
        assert attention_problem(elsewhere.get_base_model(), "causal") is None


def test_unknown_pooling(load: Any) -> None:
    with pytest.raises(ValueError, match=r"`pooling` one of mean, weighted_mean, last, first, got"):
        load(pooling="cls")


def test_lora_and_adapter_exclude_each_other(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of `lora` and `adapter`, got both"):
        load(lora=LORA, adapter=tmp_path)


def test_missing_adapter(load: Any, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"has no adapter_config\.json"):
        load(adapter=tmp_path)
