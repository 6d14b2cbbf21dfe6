"""Convolutions over raw signals, channels first, with augmentation in the transfer hook.

python examples/audio_tagger.py
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import SimilarityMonitor

RATE = 800


def tones(count: int, seed: int) -> TensorDataset:
    """Noisy tones of four pitches, a second each: (samples, 1, time)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    time = torch.arange(RATE) / RATE
    pitches = torch.tensor([40.0, 60.0, 90.0, 135.0])[labels].unsqueeze(1)
    waves = torch.sin(2 * torch.pi * pitches * time)
    noise = torch.randn(waves.shape, generator=generator)
    return TensorDataset((waves + noise).unsqueeze(1), labels)


def block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels, width, 9, stride=4), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
    )


class Tagger(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(block(1, 16), block(16, 32), block(32, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, waves: Tensor) -> Tensor:
        return self.head(self.encoder(waves).mean(2))

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        waves, labels = batch
        waves = waves / waves.std(2, keepdim=True)
        if self.trainer.training:
            waves = waves * torch.empty(len(waves), 1, 1, device=waves.device).uniform_(0.5, 2.0)
        return [waves, labels]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(max_steps: int = 60, folder: str | Path = "runs/audio_tagger") -> pl.Trainer:
    pl.seed_everything(0)
    train = DataLoader(tones(512, seed=1), 32, shuffle=True)
    val = DataLoader(tones(128, seed=2), 32)
    # The two lines; the probes are what a validation step gets, and time is averaged.
    monitor = SimilarityMonitor("initial", "val_dataloader", ["encoder.*", "output"], log_spaced=2)
    trainer = pl.Trainer(max_steps=max_steps, callbacks=[monitor], default_root_dir=folder)
    trainer.fit(Tagger(), train, val)
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
