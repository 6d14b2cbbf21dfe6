"""A decoder LLM in causal training: which of its layers move, and what they still share.

The model is small and random, so that the example needs no download; put
`AutoModelForCausalLM.from_pretrained(...)` and its tokenizer in place of the two.

    python examples/language_model.py
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from hrsa_lightning.callbacks import SimilarityMonitor

TEXT = Path(__file__).read_text(encoding="utf-8")


def tokenize(texts: list[str]) -> dict[str, Tensor]:
    """Letters as tokens, padded on the right."""
    ids = [torch.tensor([ord(letter) % 127 + 1 for letter in text]) for text in texts]
    input_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"input_ids": input_ids, "attention_mask": (input_ids > 0).long()}


class LanguageModel(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=12,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, **batch: Tensor) -> Tensor:
        return self.model(**batch).logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(**batch)[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(
            logits, batch["input_ids"][:, 1:].flatten(), ignore_index=0
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(max_steps: int = 100, folder: str | Path = "runs/language_model") -> pl.Trainer:
    pl.seed_everything(0)
    pieces = [TEXT[start : start + 32] for start in range(0, len(TEXT) - 32, 16)]
    loader = DataLoader(pieces[::2], 16, shuffle=True, collate_fn=tokenize)
    # The two lines; without layers= they are the output and eight of the twelve.
    monitor = SimilarityMonitor(
        "initial", pieces[1::2], tokenizer=tokenize, exclude_first_token=True, log_spaced=2
    )
    trainer = pl.Trainer(max_steps=max_steps, callbacks=[monitor], default_root_dir=folder)
    trainer.fit(LanguageModel(), loader)
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
