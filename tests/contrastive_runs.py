"""Small contrastive runs through a real Trainer, shared by the tests of modules and commands."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.distributed.tensor import DTensor

from hrsa_lightning.data import ContrastiveDataModule
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.modules import PairedContrastiveModule
from hrsa_lightning.modules.checkpoints import SafetensorsCheckpointIO
from tests.tiny import make_backbone

WORDS = [
    "river",
    "stone",
    "cloud",
    "paper",
    "green",
    "seven",
    "window",
    "table",
    "number",
    "letter",
    "quiet",
    "engine",
]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, also where ranks have a shard each; all of them have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write_pairs(path: Path, num_pairs: int = 24, seed: int = 0) -> Path:
    """Pairs of short random texts of different lengths, with two hard negatives each."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    lines = [
        json.dumps({"query": ["Find it", text()], "pos": [text()], "neg": [text(), text()]})
        for _ in range(num_pairs)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_recipe(folder: Path, arms: int = 2) -> Path:
    """A recipe of six steps on microscopic backbones, watched by both monitors."""
    pairs = write_pairs(folder / "pairs.jsonl", 16)
    probes = folder / "probes.txt"
    probes.write_text("".join(f"probe {number} of {number % 5} things\n" for number in range(16)))
    names = ("base", "other")[:arms]
    for seed, name in enumerate(names):
        make_backbone(folder / name, hidden=16, layers=1, seed=seed)
    recipe = folder / "micro.yaml"
    recipe.write_text(
        f"arms: {{{', '.join(f'{name}: {{backbone: {folder / name}}}' for name in names)}}}\n"
        f"data: {{train: [{pairs}], batch_size: 8, train_group_size: 2}}\n"
        "optimizer: {lr: 0.05}\n"
        "trainer: {accelerator: cpu, max_steps: 6, enable_progress_bar: false,"
        " log_every_n_steps: 1}\n"
        "checkpoint: {every_n_train_steps: 2}\n"
        "callbacks:\n"
        f"  similarity: {{preset: realignment, probes: {probes}, metrics: [cka], null: 20,"
        " log_spaced: null, every_n_train_steps: 3}\n"
        f"  retrieval: {{preset: retrieval_quality, pairs: {pairs}, every_n_train_steps: 6}}\n"
    )
    return recipe


def make_arm(folder: Path, seed: int = 0, dropout: float = 0.2, **options: Any) -> EmbeddingModel:
    """An embedding model with LoRA on a random backbone; weights depend on `seed` alone."""
    if not (folder / "config.json").exists():
        make_backbone(folder, seed=0)
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": dropout}
    return EmbeddingModel.from_pretrained(folder, seed=seed, **{"lora": lora, **options})


class GradientLog(Callback):
    """Keeps the gradients that the optimizer is about to use, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append(
            {n: whole(p.grad).clone() for n, p in module.named_parameters() if p.grad is not None}
        )


def fit(
    module: PairedContrastiveModule,
    pairs: Path,
    folder: Path,
    *,
    batch_size: int = 8,
    ckpt_path: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    **trainer_options: Any,
) -> Trainer:
    """Train without logging, on the CPU unless options say otherwise; seeds also order batches."""
    data = ContrastiveDataModule(
        [pairs],
        tokenizers={name: model.tokenizer for name, model in module.encoders().items()},
        batch_size=batch_size,
        train_group_size=3,
        query_length=32,
        passage_length=32,
        seeds=module.seeds,
    )
    options = {"accelerator": "cpu", "max_steps": 3, "enable_checkpointing": False, "logger": False}
    options.update(trainer_options)
    trainer = Trainer(
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        plugins=[SafetensorsCheckpointIO()],
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def trained_weights(module: PairedContrastiveModule, arm: str) -> dict[str, torch.Tensor]:
    """Copies of one arm's trained tensors."""
    named = module.arms[arm].named_parameters()
    return {name: whole(p.detach()).clone() for name, p in named if p.requires_grad}
