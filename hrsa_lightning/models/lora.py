"""Low-rank adapters through peft, with peft's own parameter names."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from hrsa_lightning.errors import BackboneError, first_line
from hrsa_lightning.io.distributed import shard_like
from hrsa_lightning.io.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

AUTOCAST_DTYPES = {
    "bf16-mixed": torch.bfloat16,
    "bf16": torch.bfloat16,
    "16-mixed": torch.float16,
    "16": torch.float16,
}
"""What autocast computes in, by Lightning's names of mixed precision."""

AdapterState = tuple[dict[str, Any], dict[str, Tensor]]


def add_lora(
    model: PreTrainedModel,
    r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.1,
    target_modules: str | list[str] = "all-linear",
    seed: int | None = None,
    **peft_options: Any,
) -> PeftModel:
    """Freezes a backbone and puts trainable low-rank adapters on its linear layers.

    Args:
        model: transformer without a head; it is changed in place.
        r: rank of the adapters.
        lora_alpha: adapters are scaled by `lora_alpha / r`.
        lora_dropout: dropout on the adapters' inputs.
        target_modules: names of the layers to adapt, or "all-linear".
        seed: draws the initial weights, and the global RNG is left alone; None draws from the
            global RNG.
        **peft_options: anything else that `peft.LoraConfig` takes.

    Returns:
        The model wrapped by peft; only the adapters require gradients.

    Raises:
        BackboneError: peft refuses the settings for this model, such as dropout on
            mixture-of-experts layers whose experts share one parameter.
    """
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        **peft_options,
    )
    try:
        with _seeded(seed, model), _without_noise():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        message = first_line(error)
        if lora_dropout and "lora_dropout" in str(error):
            message = (
                "its experts share fused parameters, which exclude dropout; set lora_dropout=0"
            )
        raise BackboneError(f"{model.config.model_type}: no LoRA as asked: {message}") from error
    return adapted


def load_lora(model: PreTrainedModel, folder: str | os.PathLike[str]) -> PeftModel:
    """Puts a saved adapter, in peft's format, on a backbone; the adapter is trainable.

    Raises:
        BackboneError: the folder holds no adapter in safetensors, or it does not fit the model.
    """
    shown = repr(os.fspath(folder))
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not Path(folder, name).is_file():
            raise BackboneError(f"adapter {shown} has no {name}")
    try:
        with _without_noise():
            loaded = PeftModel.from_pretrained(model, os.fspath(folder), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        message = first_line(error)
        raise BackboneError(f"adapter {shown} does not fit the backbone: {message}") from error
    # peft passes over weights that it has no place for, and over places without weights.
    with safe_open(Path(folder, ADAPTER_WEIGHTS), "pt") as saved:
        names = set(saved.keys())
    places = set(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    if odd := sorted(names ^ places):
        raise BackboneError(
            f"adapter {shown} does not fit the backbone: {len(odd)} weights are only in one of "
            f"them, such as {odd[0]!r}"
        )
    return loaded


def cast_frozen_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Keeps the frozen weights of linear layers in the dtype that autocast computes them in.

    Autocast casts them in every forward pass and saves the copy for the backward pass; products are
    the same to the bit. Trained weights, embeddings and norms stay as they are.

    Args:
        model: changed in place.
        dtype: that of autocast, such as `torch.bfloat16`.

    Returns:
        The number of weights that were cast.
    """
    count = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            for weight in layer.parameters(recurse=False):
                if not weight.requires_grad and weight.dtype == torch.float32:
                    weight.data = weight.data.to(dtype)
                    count += 1
    return count


def share_frozen_weights(model: nn.Module, other: nn.Module) -> int:
    """Puts the frozen weights of another model in the place of equal ones.

    They are one and the same parameters afterwards, also where either model moves to a device, and
    take memory once. Trained weights and buffers stay the model's own.

    Args:
        model: changed in place.
        other: whose weights are shared; left as it is.

    Returns:
        The number of weights that are shared.
    """
    count = 0
    theirs = {name: weight for name, weight in other.named_parameters() if not weight.requires_grad}
    for path, part in model.named_modules():
        for name, weight in part.named_parameters(recurse=False):
            found = theirs.get(f"{path}.{name}" if path else name)
            if found is None or found is weight or weight.requires_grad:
                continue
            if found.dtype == weight.dtype and torch.equal(found, weight):
                setattr(part, name, found)
                count += 1
    return count


def adapter_state(
    backbone: PreTrainedModel | PeftModel, state_dict: Mapping[str, Tensor] | None = None
) -> AdapterState | None:
    """peft's configuration (JSON types) and weights; `None` if the model has no adapter.

    Written as `adapter_config.json` and `adapter_model.safetensors` they are what peft reads.

    Args:
        backbone: with or without adapter.
        state_dict: where to take the weights from, by their names in `backbone`; default: from it.
    """
    if not isinstance(backbone, PeftModel):
        return None
    config = backbone.peft_config["default"].to_dict()
    weights = get_peft_model_state_dict(backbone, state_dict, save_embedding_layers=False)
    return {key: _plain(value) for key, value in config.items()}, weights


def load_adapter_state(backbone: PreTrainedModel | PeftModel, weights: dict[str, Tensor]) -> None:
    """Puts weights from `adapter_state` back into a backbone that has the same adapter.

    Raises:
        ValueError: the weights do not belong to this adapter.
    """
    own = get_peft_model_state_dict(backbone, save_embedding_layers=False)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())[0]
        raise ValueError(f"the adapter in the checkpoint is another one (such as at {odd})")
    with torch.no_grad():
        for name, weight in own.items():  # what peft returns shares its memory with the model
            weight.copy_(shard_like(weights[name], weight))


@contextmanager
def _without_noise() -> Iterator[None]:
    """Silences what peft warns of on its own account, so that no caller could heed it.

    It uses a deprecated name of transformers, and it adds rank patterns for fused experts that it
    then reports as unmatched although they took effect.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        warnings.filterwarnings(
            "ignore",
            r"The following \w+_pattern keys did not match any .*: \['\.\*\\\\\.gate_up_proj'\]",
            RuntimeWarning,
        )
        yield


@contextmanager
def _seeded(seed: int | None, model: nn.Module) -> Iterator[None]:
    """Seeds the generators of the CPU and of the model's devices for a while, and no others."""
    if seed is None:
        yield
        return
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
