"""Folders like those that training leaves behind, made without training."""

import dataclasses
import json
from pathlib import Path

import torch

from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.modules.checkpoints import SafetensorsCheckpointIO
from hrsa_lightning.runs.summary import write_summary


def make_run(
    folder: Path, *overrides: str, finished: bool = True, spread: float = 0.05
) -> dict[str, EmbeddingModel]:
    """A run of the quickstart with two arms whose adapters are random; returns its models."""
    config = load_config("quickstart", ["arms.sft=null", "arms.base_seed2=null", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    models = {}
    for number, name in enumerate(config.arms):
        models[name] = model = EmbeddingModel.from_pretrained(
            config.arms[name].backbone,
            attention=config.model.attention,
            pooling=config.model.pooling,
            normalize=config.model.normalize,
            instruction_mask=config.model.instruction_mask,
            lora=dataclasses.asdict(config.model.lora) if config.model.lora else None,
            seed=config.seed_of(name),
        )
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=spread)
        model.save_adapter(folder / "adapters" / name)
        model.eval()
    record = {"step": 0, "values": {"retrieval/base/mrr@10": 0.125}}
    (folder / "retrieval.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "retrieval.png").write_bytes(b"a picture")
    if finished:
        write_summary(folder, steps=7, seconds=1.0)
    return models


def make_whole_checkpoint(run: Path, models: dict[str, EmbeddingModel], step: int) -> Path:
    """A checkpoint in which all weights were trained, as `SafetensorsCheckpointIO` writes it."""
    state = {
        f"arms.{name}.{key}": value
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }
    folder = run / "checkpoints" / f"step_{step:06d}"
    SafetensorsCheckpointIO().save_checkpoint({"state_dict": state}, folder)
    return folder
