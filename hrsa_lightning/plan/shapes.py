"""Backbones by their shapes: a table of known ones, and models that hold no weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models.lora import add_lora, cast_frozen_linears
from hrsa_lightning.models.paths import resolve_backbone

__all__ = ["KNOWN", "backbone_config", "build_empty", "materialize_fake"]

_Shape = tuple[str, int, int, int, int, int, int]

_QWEN_1_5B: _Shape = ("qwen2", 1536, 8960, 28, 12, 2, 151_936)
_QWEN_0_5B: _Shape = ("qwen2", 896, 4864, 24, 14, 2, 151_936)

KNOWN: Mapping[str, _Shape] = {
    "Qwen/Qwen2.5-0.5B": _QWEN_0_5B,
    "hkust-nlp/Qwen-2.5-0.5B-SimpleRL-Zoo": _QWEN_0_5B,
    "Qwen/Qwen2.5-1.5B": _QWEN_1_5B,
    "hkust-nlp/Qwen-2.5-1.5B-SimpleRL-Zoo": _QWEN_1_5B,
    "Qwen/Qwen2.5-Math-1.5B": _QWEN_1_5B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _QWEN_1_5B,
    "nvidia/Nemotron-Research-Reasoning-Qwen-1.5B": _QWEN_1_5B,
    "Qwen/Qwen3-0.6B-Base": ("qwen3", 1024, 3072, 28, 16, 8, 151_936),
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 151_936),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 18_944, 28, 28, 4, 152_064),
    "Qwen/Qwen2.5-14B": ("qwen2", 5120, 13_824, 48, 40, 8, 152_064),
    "Qwen/Qwen2.5-32B": ("qwen2", 5120, 27_648, 64, 40, 8, 152_064),
    "Qwen/Qwen2.5-72B": ("qwen2", 8192, 29_568, 80, 64, 8, 152_064),
}
"""Hub id to model_type, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
num_key_value_heads and vocab_size, as in the config.json of each repository. Those of the Qwen2.5
paper (arXiv 2412.15115, table 1) agree; a test holds the numbers of weights to the published ones.
"""

_HEAD_DIM = {"qwen3": 128}


def backbone_config(path: str, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a backbone: from its folder, the table above, or the hub.

    Raises:
        BackboneError: The hub cannot be reached, or has no such model.
    """
    if path in KNOWN and revision is None:
        return _from_table(KNOWN[path])
    source = resolve_backbone(path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir():
            raise BackboneError(f"backbone {path!r}: {str(error).splitlines()[0]}") from error
        raise BackboneError(
            f"backbone {path!r}: its config.json is not to be had from the hub, and it is none of"
            f" those known offline ({', '.join(KNOWN)})"
        ) from error
    return config


def build_empty(
    config: PretrainedConfig,
    num_layers: int,
    dtype: torch.dtype,
    lora: Mapping[str, Any] | None,
    autocast: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model with fewer layers and without memory: its tensors are on the meta device."""
    settings = {**config.to_dict(), "num_hidden_layers": num_layers}
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:num_layers]
    small = type(config).from_dict(settings)
    small.is_causal = False
    with torch.device("meta"):
        auto: Any = AutoModel
        model: Any = auto.from_config(small, attn_implementation="sdpa", dtype=dtype)
        if lora is not None:
            model = add_lora(model, **lora)
            if autocast is not None:
                cast_frozen_linears(model, autocast)
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    nn.Module.train(model)
    empty: PreTrainedModel = model
    return empty


def materialize_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake CPU tensors in the place of the meta ones.

    Operations then choose their kernels as on real tensors, with nothing computed or allocated.
    """
    with mode:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    fresh = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(fresh, parameter.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = torch.empty(
                        buffer.shape, dtype=buffer.dtype, device="cpu"
                    )


def _from_table(shape: _Shape) -> PretrainedConfig:
    kind, hidden, intermediate, layers, heads, kv_heads, vocabulary = shape
    options = {"head_dim": _HEAD_DIM[kind]} if kind in _HEAD_DIM else {}
    config: PretrainedConfig = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        **options,
    )
    return config
