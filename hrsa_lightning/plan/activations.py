"""What a chunk of texts leaves for its backward pass, counted on tensors that hold no data.

Shapes: a chunk has `texts` rows of `width` padded tokens, and texts x width slots.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from hrsa_lightning.plan.shapes import build_empty, materialize_fake

__all__ = ["Backbone", "measure_backbone"]


@dataclass(frozen=True)
class Backbone:
    """Sizes of one backbone with its adapters. Bytes are of a whole replica.

    Attributes:
        num_layers: Decoder layers.
        hidden_size: Features of an embedding.
        num_weights: All weights, adapters included.
        num_embedding_weights: Those of the input embedding, which take no multiplication.
        num_trained: Weights that are trained.
        weight_bytes: Bytes of all weights.
        trained_bytes: Bytes of the trained weights.
        layer_bytes: Bytes of the weights of one decoder layer.
        width: Tokens of a row at which activations were counted.
        bytes_per_text: Saved for the backward pass, for each text of that width.
        bytes_per_chunk: Saved once a chunk, such as 16-bit copies of weights under autocast.
        layer_bytes_per_text: That of one decoder layer in `bytes_per_text`.
        layer_bytes_per_chunk: That of one decoder layer in `bytes_per_chunk`.
    """

    num_layers: int
    hidden_size: int
    num_weights: int
    num_embedding_weights: int
    num_trained: int
    weight_bytes: int
    trained_bytes: int
    layer_bytes: int
    width: int
    bytes_per_text: float
    bytes_per_chunk: float
    layer_bytes_per_text: float
    layer_bytes_per_chunk: float

    def graph_bytes(self, texts: float, chunks: float = 1) -> float:
        """Saved bytes of `texts` texts in `chunks` chunks."""
        return texts * self.bytes_per_text + chunks * self.bytes_per_chunk

    def checkpointed_bytes(self, texts: float, activation_bytes: int) -> float:
        """The same with gradient checkpointing: every layer's input, and one layer's graph."""
        inputs = texts * self.width * self.hidden_size * self.num_layers * activation_bytes
        one_layer = texts * self.layer_bytes_per_text + self.layer_bytes_per_chunk
        return inputs + one_layer


def measure_backbone(
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    lora: Mapping[str, Any] | None,
    width: int,
    autocast: torch.dtype | None = None,
    dropout_bytes: int = 5,
) -> Backbone:
    """Count weights and saved activations, without weights.

    The forward pass of training runs on fake tensors with one and with two decoder layers and with
    one and two texts; all else follows, since both enter linearly. Kernels are those of the CPU.

    Args:
        config: The backbone's.
        dtype: Of the backbone's weights.
        lora: Arguments of `add_lora`, or `None` to train all weights.
        width: Tokens of a row.
        autocast: Dtype of automatic mixed precision.
        dropout_bytes: Kept for each entry that LoRA's dropout may drop: the product, and a mask of
            one byte.
    """
    # Drawing the entries takes real numbers, which fake tensors do not have; so it is added.
    dropped = dropout_bytes if lora is not None and lora.get("lora_dropout", 0.1) else 0
    lora = None if lora is None else {**lora, "lora_dropout": 0.0}
    layers = int(config.num_hidden_layers)
    one, two = (_counts(config, number, dtype, lora, autocast) for number in (1, 2))
    dropped_text = dropped * width * (two[4] - one[4])
    sizes = [a + (layers - 1) * (b - a) for a, b in zip(one, two, strict=True)]
    saved = {
        (number, texts): _saved(config, number, dtype, lora, texts, width, autocast)
        for number in (1, 2)
        for texts in (1, 2)
    }
    per_text = {number: saved[number, 2] - saved[number, 1] for number in (1, 2)}
    per_chunk = {number: saved[number, 1] - per_text[number] for number in (1, 2)}
    text_of_layer = per_text[2] - per_text[1] + dropped_text
    chunk_of_layer = per_chunk[2] - per_chunk[1]
    return Backbone(
        num_layers=layers,
        hidden_size=int(config.hidden_size),
        num_weights=sizes[0],
        num_embedding_weights=int(config.vocab_size) * int(config.hidden_size),
        num_trained=sizes[1],
        weight_bytes=sizes[2],
        trained_bytes=sizes[3],
        layer_bytes=two[2] - one[2],
        width=width,
        bytes_per_text=per_text[1] + dropped_text + (layers - 1) * text_of_layer,
        bytes_per_chunk=per_chunk[1] + (layers - 1) * chunk_of_layer,
        layer_bytes_per_text=text_of_layer,
        layer_bytes_per_chunk=chunk_of_layer,
    )


def _counts(
    config: PretrainedConfig,
    num_layers: int,
    dtype: torch.dtype,
    lora: Mapping[str, Any] | None,
    autocast: torch.dtype | None,
) -> list[int]:
    """Weights, trained weights, bytes of both, and inputs of all adapters."""
    model = build_empty(config, num_layers, dtype, lora, autocast)
    parameters = list(model.parameters())
    first = [p for name, p in model.named_parameters() if ".lora_A." in name]
    trained = [p for p in parameters if p.requires_grad]
    return [
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in trained),
        sum(p.numel() * p.element_size() for p in parameters),
        sum(p.numel() * p.element_size() for p in trained),
        sum(p.shape[-1] for p in first),
    ]


def _saved(
    config: PretrainedConfig,
    num_layers: int,
    dtype: torch.dtype,
    lora: Mapping[str, Any] | None,
    texts: int,
    width: int,
    autocast: torch.dtype | None,
) -> int:
    """Bytes that autograd keeps of one forward pass, the weights themselves left out."""
    model = build_empty(config, num_layers, dtype, lora, autocast)
    mode = FakeTensorMode()
    materialize_fake(model, mode)
    weights = {id(p.untyped_storage()): p for p in model.parameters()}
    known = {p.untyped_storage()._cdata for p in weights.values()}
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
