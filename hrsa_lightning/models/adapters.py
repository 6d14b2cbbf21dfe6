"""The trained LoRA weights of an embedding model as plain data, for training checkpoints."""

from enum import Enum
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from hrsa_lightning.models.embedder import EmbeddingModel

AdapterState = tuple[dict[str, Any], dict[str, Tensor]]


def adapter_state(model: EmbeddingModel) -> AdapterState | None:
    """peft's configuration (JSON types) and weights; `None` if the model has no adapter.

    Written as `adapter_config.json` and `adapter_model.safetensors` they are what peft reads.
    """
    backbone = model.backbone
    if not isinstance(backbone, PeftModel):
        return None
    config = backbone.peft_config["default"].to_dict()
    weights = get_peft_model_state_dict(backbone, save_embedding_layers=False)
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
    set_peft_model_state_dict(model.backbone, weights)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
