import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    Gemma3Config,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models import EmbeddingModel, load_backbone, load_tokenizer
from tests.tiny import make_backbone, make_model, make_tokenizer


def _write(folder: Path, config: object) -> Path:
    """A folder without weights: what is refused is refused before they are read."""
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def test_head_is_left_behind(tmp_path: Path) -> None:
    config = make_model("qwen2").config
    with_head = AutoModelForCausalLM.from_config(config)
    with_head.save_pretrained(tmp_path)
    model = load_backbone(tmp_path)
    assert type(model).__name__ == "Qwen2Model"
    assert not model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, with_head.model.state_dict()[name])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.bfloat16)],
)
def test_dtype(tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    make_model("qwen2").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_backbone(tmp_path, dtype=dtype).parameters()} == {expected}


@pytest.mark.parametrize("family", ["qwen2", "qwen3_next"])
def test_loading_leaves_the_global_rng_alone(
    backbone_folder: Callable[..., Path], family: str
) -> None:
    state = torch.get_rng_state()
    load_backbone(backbone_folder(family), attention="causal")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(hidden_size=32), r"bert is an encoder; expected a decoder LM"),
        (T5Config(d_model=32), r"t5 is an encoder-decoder; expected a decoder"),
        (Gemma3Config(), r"gemma3 has more than a language model in it"),
        (ViTConfig(), r"vit is not a decoder LM known to transformers"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_kinds_of_models_are_refused(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(_write(tmp_path, config))


def test_missing_implementation_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_model("gpt_oss").config)
    with pytest.raises(
        BackboneError, match=r"attn_implementation='sdpa' cannot be loaded: \w+Model does not"
    ) as caught:
        load_backbone(folder)
    assert len(str(caught.value)) < 300


@pytest.mark.skipif(torch.cuda.is_available(), reason="quantized weights have their device")
def test_quantization_needs_a_device_and_adapters(tmp_path: Path) -> None:
    folder = make_backbone(tmp_path)
    with pytest.raises(BackboneError, match=r"quantization='nf4' needs a CUDA device"):
        EmbeddingModel.from_pretrained(folder, quantization="nf4", lora={"r": 2})
    with pytest.raises(ValueError, match="`lora` or `adapter` with `quantization`, got neither"):
        EmbeddingModel.from_pretrained(folder, quantization="nf4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention has its device")
def test_flash_attention_needs_a_device(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_model("qwen2").config)
    with pytest.raises(BackboneError, match=r"'flash_attention_2' needs a CUDA device"):
        load_backbone(folder, attn_implementation="flash_attention_2")


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    make_model("qwen2", layers=1).save_pretrained(tmp_path)
    make_model("qwen2").config.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"lacks 12 weights, such as 'layers\.1\."):
        load_backbone(tmp_path)


def test_unknown_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"of_tomorrow") as caught:
        load_backbone(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text("raise SystemExit('remote code was run')")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"code of its own; trust_remote_code=True would"):
        load_backbone(tmp_path)


def test_hub_id_that_is_not_there_offline() -> None:
    with pytest.raises(BackboneError, match=r"'nobody/nothing': neither a folder nor a model"):
        load_backbone("nobody/nothing")


def test_missing_folder_for_both(tmp_path: Path) -> None:
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(BackboneError, match=r"no such folder"):
            load(tmp_path / "missing")


class TestTokenizer:
    def _save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
        # A family without a tokenizer class of its own: the files say it all.
        AutoConfig.for_model("granite").save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"")
        tokenizer.save_pretrained(folder)
        return folder

    def test_loads_and_truncates_at_the_end(self, tmp_path: Path) -> None:
        given = make_tokenizer()
        given.truncation_side = "left"
        tokenizer = load_tokenizer(self._save(tmp_path, given))
        assert tokenizer("return value").input_ids == make_tokenizer()("return value").input_ids
        assert tokenizer.pad_token_id == given.pad_token_id
        assert tokenizer.truncation_side == "right"

    def test_general_class_is_taken_at_its_word(self, backbone_folder: Callable[..., Path]) -> None:
        """AutoTokenizer of transformers 5.23 normalizes (composes the accent) and splits
        by Qwen2's rules."""
        text = "cafe\u0301"
        expected = make_tokenizer()(text).input_ids
        assert load_tokenizer(backbone_folder("qwen2"))(text).input_ids == expected

    def test_eos_stands_in_for_a_missing_pad_token(self, tmp_path: Path) -> None:
        given = make_tokenizer()
        given.pad_token = None
        tokenizer = load_tokenizer(self._save(tmp_path, given))
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == given.eos_token_id

    def test_neither_pad_nor_eos(self, tmp_path: Path) -> None:
        backend = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
        given = PreTrainedTokenizerFast(tokenizer_object=backend)
        with pytest.raises(BackboneError, match=r"has neither a pad nor an eos token"):
            load_tokenizer(self._save(tmp_path, given))

    def test_no_tokenizer_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match=r"has no tokenizer\.json or other vocabulary"):
            load_tokenizer(_write(tmp_path, make_model("qwen2").config))

    def test_broken_tokenizer(self, tmp_path: Path) -> None:
        folder = self._save(tmp_path, make_tokenizer())
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(BackboneError, match=r"its tokenizer cannot be loaded: ") as caught:
            load_tokenizer(folder)
        assert len(str(caught.value).splitlines()) == 1

    def test_slow_tokenizer_is_refused(self, tmp_path: Path) -> None:
        folder = _write(tmp_path, AutoConfig.for_model("ctrl"))
        (folder / "vocab.json").write_text(json.dumps({"<unk>": 0, "a": 1, "b@@": 2}))
        (folder / "merges.txt").write_text("#version: 0.2\na b\n")
        with pytest.raises(BackboneError, match=r"CTRLTokenizer is not a fast tokenizer"):
            load_tokenizer(folder)
