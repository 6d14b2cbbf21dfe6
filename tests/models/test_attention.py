"""What each supported family attends to, seen from outside: by changing tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models import EmbeddingModel, EmbeddingTokenizer, add_lora, load_backbone
from hrsa_lightning.models.attention import (
    attention_problem,
    configure_attention,
    decoder_layers,
    ensure_attention,
    expand_attention_mask,
    mask_of_known_padding,
)
from tests.tiny import FAMILIES, make_model

HYBRID = "qwen3_next"
EAGER_ONLY = {"gemma2", "gpt_oss"}
SUPPORTED = sorted(set(FAMILIES) - {HYBRID})
CASES = [
    (family, implementation)
    for family in SUPPORTED
    for implementation in ("eager", "sdpa")
    if implementation == "eager" or family not in EAGER_ONLY
]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def _ids(num_tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 60, (1, num_tokens), generator=generator)


def _hidden(model: PreTrainedModel, input_ids: Tensor, num_padding: int = 0) -> Tensor:
    mask = torch.ones_like(input_ids)
    mask[-1, input_ids.shape[1] - num_padding :] = 0
    output = model(input_ids=input_ids, attention_mask=mask, use_cache=False)
    return output.last_hidden_state


def _padded(model: PreTrainedModel, ids: Tensor, seed: int) -> Tensor:
    """Hidden states of `ids` as the padded row of a batch of two; `seed` draws the padding."""
    longer = _ids(ids.shape[1] + 3, seed=7)
    row = torch.cat([ids, _ids(3, seed)], dim=1)
    return _hidden(model, torch.cat([longer, row]), num_padding=3)[1:, : ids.shape[1]]


def _assert_bidirectional(model: PreTrainedModel) -> None:
    # Six tokens lie within reach of the two layers together, where one has a window of 4.
    ids = _ids(6)
    other = ids.clone()
    other[0, -1] += 1
    alone = _hidden(model, ids)
    assert (_hidden(model, other) - alone)[0, 0].abs().max() > 1e-3
    in_batch = _padded(model, ids, seed=1)
    torch.testing.assert_close(in_batch, alone, **TOLERANCE)
    torch.testing.assert_close(_padded(model, ids, seed=2), in_batch, rtol=0, atol=0)
    assert (_padded(model, other, seed=1) - in_batch)[0, 0].abs().max() > 1e-3


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_family_is_bidirectional(
    backbone_folder: Callable[..., Path], family: str, implementation: str
) -> None:
    model = load_backbone(backbone_folder(family), attn_implementation=implementation)
    with torch.no_grad():
        _assert_bidirectional(model)


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_family_is_bidirectional_with_checkpointing_and_lora(
    backbone_folder: Callable[..., Path],
    tokenizer: EmbeddingTokenizer,
    family: str,
    implementation: str,
) -> None:
    model = load_backbone(backbone_folder(family), attn_implementation=implementation)
    peft_model = add_lora(model, r=4, lora_dropout=0.0, seed=1, init_lora_weights=False)
    EmbeddingModel(peft_model, tokenizer).train().gradient_checkpointing_enable()
    _assert_bidirectional(model)
    _hidden(model, _ids(6)).square().sum().backward()
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


@pytest.mark.parametrize("family", sorted(set(SUPPORTED) - EAGER_ONLY))
def test_eager_equals_sdpa(backbone_folder: Callable[..., Path], family: str) -> None:
    eager, sdpa = (
        load_backbone(backbone_folder(family), attn_implementation=implementation)
        for implementation in ("eager", "sdpa")
    )
    ids = _ids(9)
    with torch.no_grad():
        torch.testing.assert_close(_hidden(sdpa, ids), _hidden(eager, ids), **TOLERANCE)
        torch.testing.assert_close(_padded(sdpa, ids, 1), _padded(eager, ids, 1), **TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2", "stablelm", HYBRID])
def test_causal_stays_causal(backbone_folder: Callable[..., Path], family: str) -> None:
    model = load_backbone(backbone_folder(family), attention="causal")
    ids = _ids(6)
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        changed = (_hidden(model, other) - _hidden(model, ids)).abs().amax(2)[0]
    # Not exactly zero: the kernels of linear attention sum in another order.
    assert changed[:-1].max() < 1e-5
    assert changed[-1] > 1e-3
    assert model.config.is_causal is True


def test_window_reaches_both_ways(backbone_folder: Callable[..., Path]) -> None:
    folder = backbone_folder("qwen2_sliding", layers=1, layer_types=["sliding_attention"])
    model = load_backbone(folder)
    ids = _ids(12)
    other = ids.clone()
    other[0, 6] += 1
    with torch.no_grad():
        changed = (_hidden(model, other) - _hidden(model, ids)).abs().amax(2)[0] > 0
    reach = changed.nonzero().flatten()
    assert reach.min() + reach.max() == 12
    assert 2 <= 6 - reach.min() <= 4


def test_hybrid_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    make_model(HYBRID).config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"qwen3_next: layers of type linear_attention are"):
        load_backbone(tmp_path)


def test_undeclared_recurrent_layer_is_found() -> None:
    model = make_model(HYBRID, is_causal=False)
    problem = attention_problem(model, "bidirectional")
    assert problem == "in layers.0 the first token does not see the last, without padding"


@pytest.mark.parametrize(
    ("implementation", "expected"), [("eager", "without padding"), ("sdpa", "with padding")]
)
def test_flag_on_the_modules_alone_is_found_wrong(implementation: str, expected: str) -> None:
    """The authors' edited model files do this: right with flash attention only."""
    model = make_model("qwen2", attn_implementation=implementation)
    for layer in model.layers:
        layer.self_attn.is_causal = False
    problem = attention_problem(model, "bidirectional")
    assert problem == f"in layers.0 the first token does not see the last, {expected}"


def test_leaking_padding_is_found() -> None:
    model = make_model("qwen2", is_causal=False)

    def ignore_padding(module: nn.Module, args: object, kwargs: dict[str, object]) -> object:
        return args, {**kwargs, "attention_mask": None}

    model.register_forward_pre_hook(ignore_padding, with_kwargs=True)
    assert attention_problem(model, "bidirectional") == "in layers.0 real tokens see padding"


def test_wrong_attention_is_refused_in_words() -> None:
    model = make_model("qwen2", is_causal=False)
    with pytest.raises(
        BackboneError,
        match=r"qwen2 with attn_implementation='eager': attention='causal' cannot be had "
        r"\(in layers\.0 the first token sees the last, without padding\)",
    ):
        ensure_attention(model, "causal")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fallback_to_an_explicit_mask(backbone_folder: Callable[..., Path], dtype: str) -> None:
    model = load_backbone(backbone_folder("stablelm"), attn_implementation="sdpa", dtype=dtype)
    assert list(model._forward_pre_hooks.values()) == [expand_attention_mask]
    assert attention_problem(model, "bidirectional") is None


def test_fallback_would_widen_windows_and_is_refused() -> None:
    model = make_model("stablelm", attn_implementation="sdpa", is_causal=False, sliding_window=8)
    with pytest.raises(BackboneError, match=r"stablelm with attn_implementation='sdpa'"):
        ensure_attention(model, "bidirectional")
    assert not model._forward_pre_hooks


def test_check_leaves_no_trace() -> None:
    model = make_model("qwen2", is_causal=False)
    model.layers[0].train()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    ensure_attention(model, "bidirectional")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_frozen_weights_and_no_grad_do_not_disturb_the_check() -> None:
    model = make_model("qwen2", is_causal=False).requires_grad_(False)
    with torch.no_grad():
        assert attention_problem(model, "bidirectional") is None
        assert attention_problem(model, "causal") is not None


def test_attention_survives_saving(backbone_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = load_backbone(backbone_folder("qwen2"))
    model.save_pretrained(tmp_path)
    elsewhere = AutoModel.from_pretrained(tmp_path)
    assert elsewhere.config.is_causal is False
    with torch.no_grad():
        _assert_bidirectional(elsewhere)
        torch.testing.assert_close(_hidden(elsewhere, _ids(6)), _hidden(model, _ids(6)))


def test_attention_of_the_request_wins_over_that_of_the_checkpoint(
    backbone_folder: Callable[..., Path], tmp_path: Path
) -> None:
    load_backbone(backbone_folder("qwen2")).save_pretrained(tmp_path)
    assert load_backbone(tmp_path, attention="causal").config.is_causal is True


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "mixtral", "gemma3_text"])
def test_decoder_layers_are_found_by_their_number(family: str) -> None:
    # As many layers as experts: the outermost list is the right one.
    options = {"layer_types": ["full_attention"] * 4} if family == "gemma3_text" else {}
    model = make_model(family, layers=4, **options)
    layers = decoder_layers(model)
    assert list(layers) == [f"layers.{index}" for index in range(4)]
    assert list(layers.values()) == list(model.layers)


def test_model_without_layer_list_is_refused() -> None:
    model = make_model("qwen2")
    model.config.num_hidden_layers = 3
    with pytest.raises(BackboneError, match=r"Qwen2Model: found no list of 3 decoder layers"):
        decoder_layers(model)


def test_configure_attention_writes_the_config() -> None:
    config = make_model("qwen2").config
    configure_attention(config, "bidirectional")
    assert config.to_dict()["is_causal"] is False
    configure_attention(config, "causal")
    assert config.to_dict()["is_causal"] is True


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_unpadding_attention_gets_the_flat_mask_and_the_right_direction(attention: str) -> None:
    """What flash attention gets: it leaves padding out itself, given a (batch, tokens) mask."""
    seen = []

    def unpadding(module, query, key, value, attention_mask, is_causal=None, **options):  # type: ignore[no-untyped-def]
        seen.append((None if attention_mask is None else attention_mask.ndim, is_causal))
        return query.transpose(1, 2), None

    AttentionInterface.register("unpadding", unpadding)
    AttentionMaskInterface.register("unpadding", flash_attention_mask)
    model = make_model("qwen2", attn_implementation="unpadding", is_causal=attention == "causal")
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    embeddings = EmbeddingModel(model, cast(EmbeddingTokenizer, None))(mask, mask)
    assert embeddings.shape == (2, 32)
    assert seen == [(2, attention == "causal")] * 2


@pytest.mark.parametrize("num_padding", [0, 3])
@pytest.mark.parametrize("family", [*sorted(set(SUPPORTED) - EAGER_ONLY), "causal"])
def test_known_padding_needs_no_look_at_the_mask(
    backbone_folder: Callable[..., Path], family: str, num_padding: int
) -> None:
    model = load_backbone(
        backbone_folder("qwen2" if family == "causal" else family),
        attn_implementation="sdpa",
        attention="causal" if family == "causal" else "bidirectional",
    )
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 9 - num_padding :] = 0
    ids = torch.cat([_ids(9), _ids(9).flip(1)])
    seen = mask_of_known_padding(model, mask, num_padding > 0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found = model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
    assert torch.equal(found[mask.bool()], expected[mask.bool()])
    if family == "qwen2":
        assert seen is None if num_padding == 0 else seen.shape == (2, 1, 9, 9)
    if family == "causal":
        assert seen is mask
