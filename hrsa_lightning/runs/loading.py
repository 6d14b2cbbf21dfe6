"""Loads the model that was named: its backbone, its adapter, or the weights of a checkpoint."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PretrainedConfig

from hrsa_lightning.config.schema import ModelConfig
from hrsa_lightning.errors import BackboneError, first_line
from hrsa_lightning.io.files import ADAPTER_WEIGHTS
from hrsa_lightning.models.backbone import load_backbone_config
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.lora import load_adapter_state
from hrsa_lightning.modules.checkpoints import SafetensorsCheckpointIO
from hrsa_lightning.runs.resolve import Source


def check_source(source: Source, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the backbone's config, and refuse an adapter of another one; no weights are read.

    Raises:
        BackboneError: See `load_backbone_config`; or the adapter's weights have other names or
            shapes than this backbone needs.
    """
    config = load_backbone_config(source.backbone, source.revision, trust_remote_code)
    if source.adapter is not None:
        _check_adapter(source, source.adapter, config, trust_remote_code)
    return config


def load_model(
    source: Source, model: ModelConfig | None = None, device: torch.device | str | None = None
) -> EmbeddingModel:
    """Load a model, on the CPU and in evaluation mode.

    Args:
        source: The model.
        model: How it embeds; by default as it was trained to, and where nothing says that, as
            recipes do.
        device: Where it will run; flash attention is verified there.

    Raises:
        BackboneError: See `EmbeddingModel.from_pretrained`; or the weights of an adapter or of a
            checkpoint do not fit the backbone.
    """
    lora = _exported_lora(source)
    loaded = EmbeddingModel.from_pretrained(
        source.backbone,
        revision=source.revision,
        device=device,
        **(model or source.model or ModelConfig()).loading_options(),
        lora=lora,
        adapter=None if lora is not None else source.adapter,
    )
    if lora is not None and source.adapter is not None:
        load_adapter_state(loaded.backbone, load_file(source.adapter))
    if source.arm is not None and source.checkpoint is not None:
        _load_checkpoint(loaded, source.checkpoint, source.arm.name)
    return loaded.eval()


def _exported_lora(source: Source) -> dict[str, Any] | None:
    """Settings of an export's adapter; an adapter in peft's format has them in its own folder."""
    if source.adapter is None or source.adapter.is_dir():
        return None
    assert source.model is not None
    assert source.model.lora is not None
    return asdict(source.model.lora)


def _load_checkpoint(model: EmbeddingModel, checkpoint: Path, arm: str) -> None:
    """Replace all weights by those of an arm in a checkpoint."""
    content = SafetensorsCheckpointIO().load_checkpoint(checkpoint)
    prefix = f"arms.{arm}."
    own = {
        name.removeprefix(prefix): weight
        for name, weight in content["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise BackboneError(
            f"{checkpoint}: the weights of arm {arm!r} do not fit its backbone: {problem:.200}"
        ) from error


def _check_adapter(
    source: Source, adapter: Path, config: PretrainedConfig, trust_remote_code: bool
) -> None:
    file = adapter if adapter.is_file() else adapter / ADAPTER_WEIGHTS
    misfit = f"adapter {str(adapter)!r} does not fit the backbone {source.backbone!r}"
    try:
        wanted = _adapter_shapes(source, adapter, config, trust_remote_code)
        with safe_open(file, "pt") as saved:
            names = saved.keys()
            found = {name: tuple(saved.get_slice(name).get_shape()) for name in names}
    except (ValueError, TypeError, SafetensorError, OSError) as error:
        first = first_line(error)
        raise BackboneError(f"{misfit}: {first}") from error
    odd = next((name for name in [*found, *wanted] if found.get(name) != wanted.get(name)), None)
    if odd is not None:
        raise BackboneError(
            f"{misfit}: {odd.removeprefix('base_model.model.')} is {_shown(found.get(odd))} in the"
            f" adapter, and {_shown(wanted.get(odd))} on the backbone"
        )


def _adapter_shapes(
    source: Source, adapter: Path, config: PretrainedConfig, trust_remote_code: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's weights on a backbone, found out without memory."""
    lora = _exported_lora(source)
    settings = LoraConfig(**lora) if lora else PeftConfig.from_pretrained(str(adapter))
    auto: Any = AutoModel
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft repeats them when the weights are loaded
        empty = auto.from_config(config, trust_remote_code=trust_remote_code)
        adapted = get_peft_model(empty, settings)
        state: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(weight.shape) for name, weight in state.items()}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
