"""Sizes of a backbone, by its shape alone: models without weights, run on tensors without data."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from hrsa_lightning.errors import BackboneError, first_line
from hrsa_lightning.models.lora import add_lora, cast_frozen_linears
from hrsa_lightning.models.paths import resolve_backbone

_Shape = tuple[str, int, int, int, int, int, int]

_QWEN_1_5B: _Shape = ("qwen2", 1536, 8960, 28, 12, 2, 151_936)
_QWEN_0_5B: _Shape = ("qwen2", 896, 4864, 24, 14, 2, 151_936)
_OLMO2_1B: _Shape = ("olmo2", 2048, 8192, 16, 16, 16, 100_352)
_SMOLLM2: _Shape = ("llama", 576, 1536, 30, 9, 3, 49_152)

KNOWN: Mapping[str, _Shape] = {
    "Qwen/Qwen2.5-0.5B": _QWEN_0_5B,
    "hkust-nlp/Qwen-2.5-0.5B-SimpleRL-Zoo": _QWEN_0_5B,
    "Qwen/Qwen2.5-1.5B": _QWEN_1_5B,
    "hkust-nlp/Qwen-2.5-1.5B-SimpleRL-Zoo": _QWEN_1_5B,
    "Qwen/Qwen2.5-Math-1.5B": _QWEN_1_5B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _QWEN_1_5B,
    "nvidia/Nemotron-Research-Reasoning-Qwen-1.5B": _QWEN_1_5B,
    "Open-Reasoner-Zero/Open-Reasoner-Zero-0.5B": _QWEN_0_5B,
    "Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B": _QWEN_1_5B,
    "sail/Qwen2.5-Math-1.5B-Oat-Zero": _QWEN_1_5B,
    "allenai/OLMo-2-0425-1B": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-SFT": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-DPO": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-RLVR1": _OLMO2_1B,
    "allenai/OLMo-2-0425-1B-Instruct": _OLMO2_1B,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "Qwen/Qwen3-0.6B-Base": ("qwen3", 1024, 3072, 28, 16, 8, 151_936),
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 151_936),
    "Qwen/Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 151_936),
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


def backbone_config(
    path: str, revision: str | None = None, online: bool = False
) -> PretrainedConfig:
    """The configuration of a backbone: from its folder, the table above, or the hub.

    Args:
        path: Folder or hub id.
        revision: On the hub; those of a known backbone are of one shape.
        online: Whether the hub may be asked, beside its cache on this machine.

    Raises:
        BackboneError: It is not to be had there.
    """
    if path in KNOWN:
        return _from_table(KNOWN[path])
    source = resolve_backbone(path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source, revision=revision, local_files_only=not online
        )
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir():
            raise BackboneError(f"backbone {path!r}: {first_line(error)}") from error
        raise BackboneError(
            f"backbone {path!r}: its config.json is not to be had from"
            f" {'the hub' if online else 'its cache here (--online asks the hub)'}, and it is none"
            f" of those known offline ({', '.join(KNOWN)})"
        ) from error
    return config


@dataclass(frozen=True)
class Backbone:
    """Sizes of one backbone with its adapters. Bytes are of a whole replica.

    Attributes:
        num_layers: Decoder layers.
        hidden_size: Features of an embedding.
        num_weights: All weights, adapters included.
        num_embedding_weights: Those of the input embedding.
        num_trained: Weights that are trained.
        weight_bytes: Bytes of all weights.
        trained_bytes: Bytes of the trained weights.
        width: Tokens of a row at which activations were counted.
        bytes_per_text: Kept for the backward pass, for each text of that width.
        bytes_per_chunk: Kept once a chunk, such as 16-bit copies of weights under autocast.
    """

    num_layers: int
    hidden_size: int
    num_weights: int
    num_embedding_weights: int
    num_trained: int
    weight_bytes: int
    trained_bytes: int
    width: int
    bytes_per_text: float
    bytes_per_chunk: float

    def graph_bytes(self, texts: float, chunks: float = 1) -> float:
        """Kept bytes of `texts` texts in `chunks` chunks."""
        return texts * self.bytes_per_text + chunks * self.bytes_per_chunk

    def checkpointed_bytes(self, texts: float, activation_bytes: int) -> float:
        """The same with gradient checkpointing: every layer's input, and one layer's graph."""
        inputs = texts * self.width * self.hidden_size * self.num_layers * activation_bytes
        return inputs + self.graph_bytes(texts) / self.num_layers


def measure_backbone(
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    lora: Mapping[str, Any] | None,
    width: int,
    autocast: torch.dtype | None = None,
) -> Backbone:
    """Count weights and what a forward pass keeps for the backward pass, without weights.

    The forward pass of training runs on fake tensors, which have shapes and no data, with one and
    with two texts: the number of texts enters linearly. Kernels are those of the CPU.

    Args:
        config: The backbone's.
        dtype: Of the backbone's weights.
        lora: Arguments of `add_lora`, or `None` to train all weights.
        width: Tokens of a row.
        autocast: Dtype of automatic mixed precision.
    """
    model = _build_empty(config, dtype, lora, autocast)
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    one, two = (_kept_bytes(model, texts, width, autocast) for texts in (1, 2))
    return Backbone(
        num_layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        num_weights=sum(p.numel() for p in parameters),
        num_embedding_weights=int(config.vocab_size) * int(config.hidden_size),
        num_trained=sum(p.numel() for p in trained),
        weight_bytes=sum(p.nbytes for p in parameters),
        trained_bytes=sum(p.nbytes for p in trained),
        width=width,
        bytes_per_text=two - one,
        bytes_per_chunk=2 * one - two,
    )


def _build_empty(
    config: PretrainedConfig,
    dtype: torch.dtype,
    lora: Mapping[str, Any] | None,
    autocast: torch.dtype | None,
) -> PreTrainedModel:
    """The model in training mode, its tensors on the meta device, where they take no memory."""
    config = type(config).from_dict(config.to_dict())
    config.is_causal = False
    with torch.device("meta"):
        auto: Any = AutoModel
        model: Any = auto.from_config(config, attn_implementation="sdpa", dtype=dtype)
        if lora is not None:
            model = add_lora(model, **lora)
            if autocast is not None:
                cast_frozen_linears(model, autocast)
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    nn.Module.train(model)
    empty: PreTrainedModel = model
    return empty


def _kept_bytes(
    model: PreTrainedModel, texts: int, width: int, autocast: torch.dtype | None
) -> int:
    """Bytes that autograd keeps of one forward pass, the weights themselves left out."""
    # Fake tensors on the CPU choose their kernels as real ones do.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _materialize(model)
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    casting = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with mode, casting, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        tokens = torch.zeros(texts, width, dtype=torch.long)
        mask = torch.ones(texts, width, dtype=torch.long)
        output = model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del output
    return total


def _materialize(model: nn.Module) -> None:
    """Put new CPU tensors in the place of the model's; fake ones under a `FakeTensorMode`."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fresh = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                module._parameters[name] = nn.Parameter(fresh, parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


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
