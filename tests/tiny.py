"""Microscopic random backbones: complete Hugging Face folders, made on the spot, no network.

`make_backbone(folder, family="qwen2")` writes config.json, model.safetensors and a fast byte-level
BPE tokenizer, which is all that `load_backbone` and `EmbeddingModel.from_pretrained` need.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|end|>"
VOCAB_SIZE = 384

_TEXTS = (
    "Given a question, retrieve passages that answer the question.",
    "def add(first, second): return first + second",
    "def read_lines(path): return [line.strip() for line in open(path)]",
    "Instruct: Given a description, find the function.\nQuery: Add two numbers.",
    "Return the lines of the file, and raise ValueError when the path is empty.",
    "for index, value in enumerate(values): total += index * value",
)

# What a family needs beyond the common sizes to be tiny, or to show the trait it is here for.
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_FULL_2 = {"layer_types": ["full_attention", "full_attention"]}
_MIXED_2 = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {},
    "qwen2_sliding": {"model_type": "qwen2", "use_sliding_window": True, **_MIXED_2},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, **_MOE},
    "qwen3_5_text": {"head_dim": 8, **_FULL_2},
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, **_MIXED_2},
    "phi3": {},
    "olmo2": {},
    "olmo3": _MIXED_2,
    "granite": {},
    "smollm3": {},
    "cohere2": _MIXED_2,
    "glm4": {"head_dim": 8},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "gpt_neox": {},
    "exaone4": _MIXED_2,
    "stablelm": {},
    "gemma2": {"head_dim": 8, **_MIXED_2},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **_MIXED_2},
    "qwen3_next": {
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 16,
        **_MOE,
    },
}


def make_model(
    family: str = "qwen2",
    *,
    hidden: int = 32,
    layers: int = 2,
    vocab: int = 64,
    seed: int = 0,
    attn_implementation: str = "eager",
    **options: Any,
) -> PreTrainedModel:
    """A random model of the family in evaluation mode; the global RNG is left as it was.

    Weights are drawn larger than a trained model's, so that what one token does to another is far
    above rounding even in two layers.
    """
    settings = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        **FAMILIES[family],
        **options,
    }
    config = AutoConfig.for_model(settings.pop("model_type", family), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, attn_implementation=attn_implementation)
    model.eval()
    return model


@cache
def _trained_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer.to_str()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fast byte-level BPE tokenizer of at most `VOCAB_SIZE` tokens, with pad and end tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
    )


def make_backbone(
    folder: str | Path,
    family: str = "qwen2",
    *,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Writes a complete local backbone folder and returns its path."""
    folder = Path(folder)
    model = make_model(family, hidden=hidden, layers=layers, vocab=VOCAB_SIZE, seed=seed, **options)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
