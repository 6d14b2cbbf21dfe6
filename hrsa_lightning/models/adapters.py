"""The trained LoRA weights of an embedding model as plain data, for training checkpoints."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from hrsa_lightning.distributed import shard_like
from hrsa_lightning.models.embedder import EmbeddingModel

AdapterState = tuple[dict[str, Any], dict[str, Tensor]]


def adapter_state(
    model: EmbeddingModel, state_dict: Mapping[str, Tensor] | None = None
) -> AdapterState | None:
    """peft's configuration (JSON types) and weights; `None` if the model has no adapter.

    Written as `adapter_config.json` and `adapter_model.safetensors` they are what peft reads.

    Args:
        model: The embedding model.
        state_dict: Where to take the weights from, by their names in `model`; default: from it.
    """
    backbone = model.backbone
    if not isinstance(backbone, PeftModel):
        return None
    config = backbone.peft_config["default"].to_dict()
    prefix = "backbone."
    state = None
    if state_dict is not None:
        state = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    weights = get_peft_model_state_dict(backbone, state, save_embedding_layers=False)
    return {key: _plain(value) for key, value in config.items()}, weights


def load_adapter_state(model: EmbeddingModel, weights: dict[str, Tensor]) -> None:
    """Put weights from `adapter_state` back into a model that has the same adapter.

    Raises:
        ValueError: The weights do not belong to this adapter.
    """
    own = get_peft_model_state_dict(model.backbone, save_embedding_layers=False)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())[0]
        raise ValueError(f"the adapter in the checkpoint is another one (such as at {odd})")
    with torch.no_grad():
        for name, weight in own.items():  # what peft returns shares its memory with the model
            weight.copy_(shard_like(weights[name], weight))


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
