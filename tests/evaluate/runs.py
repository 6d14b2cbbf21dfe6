"""Finished runs made on the spot: a resolved recipe and one random adapter per arm."""

import dataclasses
import json
from pathlib import Path

import torch

from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.config.schema import ArmConfig
from hrsa_lightning.models.embedder import EmbeddingModel
from tests.tiny import make_backbone

WORDS = ["river", "stone", "cloud", "paper", "green", "seven", "window", "table", "letter"]


def make_run(folder: Path, backbones: Path, arms=("base", "rlvr"), seed=1, **changes) -> Path:
    """Write config.yaml and adapters/<arm>; an arm `X_seed2` starts from the backbone of `X`."""
    config = load_config("quickstart", [f"seed={seed}", "model.lora.r=2"])
    config = dataclasses.replace(config, output_dir=str(folder.parent), **changes)
    config.arms = {}
    for number, name in enumerate(arms):
        start = name.removesuffix("_seed2")
        backbone = backbones / start
        if not backbone.exists():
            make_backbone(backbone, seed=len(list(backbones.iterdir())))
        own = None if start == name else seed + 1000
        config.arms[name] = ArmConfig(backbone=str(backbone), seed=own)
        model = EmbeddingModel.from_pretrained(backbone, lora={"r": 2}, seed=seed + number)
        with torch.no_grad():
            for parameter, values in model.named_parameters():
                if "lora_B" in parameter:
                    values.normal_(0, 0.05)
        model.save_adapter(folder / "adapters" / name)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def write_pairs(path: Path, count: int = 12, instruction: str = "Find it") -> Path:
    """Queries whose words come back in their positives."""
    lines = []
    for number in range(count):
        first, second = WORDS[number % 9], WORDS[(number * 4 + 1) % 9]
        pair = {
            "query": [instruction, f"{first} {second} {number}"],
            "pos": [f"{second} {first} {number}"],
            "neg": [f"{first} {number + 1} {other}" for other in WORDS[:3]],
        }
        lines.append(json.dumps(pair))
    path.write_text("\n".join(lines) + "\n")
    return path
