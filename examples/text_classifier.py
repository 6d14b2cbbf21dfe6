"""A Hugging Face encoder with a classification head, its drift watched layer by layer.

The encoder is small and random, so that the example needs no download; put
`AutoModel.from_pretrained(...)` in its place.

    python examples/text_classifier.py
"""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from hrsa_lightning.callbacks import SimilarityMonitor

VOCABULARY, LENGTH = 100, 12


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Random token sequences; a sentence is positive when it holds more high than low tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        size = int(torch.randint(4, LENGTH + 1, (), generator=generator))
        tokens = torch.randint(1, VOCABULARY, (size,), generator=generator)
        rows.append({"tokens": tokens, "label": int((tokens >= VOCABULARY // 2).sum() * 2 > size)})
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    input_ids = nn.utils.rnn.pad_sequence([row["tokens"] for row in rows], batch_first=True)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids > 0).long(),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


class TextClassifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.head(states.last_hidden_state[:, 0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(logits, batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(max_steps: int = 150, folder: str | Path = "runs/text_classifier") -> pl.Trainer:
    pl.seed_everything(0)
    loader = DataLoader(sentences(1024, seed=1), 32, shuffle=True, collate_fn=collate)
    probes = DataLoader(sentences(256, seed=2), 32, collate_fn=collate)
    # The two lines:
    monitor = SimilarityMonitor("initial", probes, ["encoder.encoder.layer.*"], log_spaced=2)
    trainer = pl.Trainer(max_steps=max_steps, callbacks=[monitor], default_root_dir=folder)
    trainer.fit(TextClassifier(), loader)
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
