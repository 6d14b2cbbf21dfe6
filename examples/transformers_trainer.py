"""A callback for the trainers of transformers and sentence-transformers.

python examples/transformers_trainer.py
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hrsa_lightning import SimilarityEvaluator
from hrsa_lightning.similarity import Measurement


class SimilarityCallback(TrainerCallback):
    """Compares the model with its start at every logging step; values go where the losses go.

    Args:
        probes: See `SimilarityEvaluator`, as for all others.
        layers: See `SimilarityEvaluator`.
    """

    def __init__(self, probes: Any, layers: Any = None, **options: Any) -> None:
        self._make = lambda model: SimilarityEvaluator(model, probes, layers, **options)
        self.trainer: Trainer | None = None
        self.history: list[Measurement] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.evaluator = self._make(model)
        self._evaluate(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_log or state.global_step == state.max_steps:
            self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        found = self.evaluator.evaluate(step)
        self.history = self.evaluator.history
        if self.trainer is not None:  # to TensorBoard, W&B and whatever else it reports to
            self.trainer.log({f"similarity/{m.metric}/{m.layer}": m.value for m in found})


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 100, (count, 12), generator=generator)
    return [{"input_ids": row, "labels": int(row.float().mean() > 50)} for row in ids]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = torch.stack([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def main(
    max_steps: int = 40, folder: str | Path = "runs/transformers_trainer", watch: bool = True
) -> Trainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    rows = sentences(256, seed=2)
    # The lines; a project of texts gives these, and tokenizer= as well.
    callback = SimilarityCallback(
        [collate(rows[start : start + 64]) for start in range(0, 256, 64)],
        layers=["bert.encoder.layer.*", "output"],
    )
    trainer = Trainer(
        BertForSequenceClassification(config),
        TrainingArguments(
            str(folder),
            max_steps=max_steps,
            logging_steps=10,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=sentences(1024, seed=1),
        data_collator=collate,
        callbacks=[callback] if watch else [],
    )
    callback.trainer = trainer
    trainer.train()
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
