"""A GAN with two optimizers: does the generator still move when the losses do not?

python examples/gan.py
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import SimilarityMonitor

LATENT = 16


class GAN(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid()
        )
        self.discriminator = nn.Sequential(
            nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(64, 1)
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        fake = self(torch.randn(len(real), LATENT, device=self.device))
        of_generator, of_discriminator = self.optimizers()
        loss = nn.functional.softplus(-self.discriminator(fake)).mean()
        self.step(of_generator, loss)
        scores = self.discriminator(real), self.discriminator(fake.detach())
        loss = sum(
            nn.functional.softplus(sign * score).mean()
            for sign, score in zip((-1, 1), scores, strict=True)
        )
        self.step(of_discriminator, loss)

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.9)) for part in parts]


def main(max_epochs: int = 4, folder: str | Path = "runs/gan") -> pl.Trainer:
    pl.seed_everything(0)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    # The lines: fixed noise shows the generator, real digits the discriminator.
    noise = torch.randn(256, LATENT, generator=torch.Generator().manual_seed(1))
    generator = SimilarityMonitor(
        "initial", noise, ["generator.2", "output"], name="generator", log_spaced=2
    )
    discriminator = SimilarityMonitor(
        "initial",
        pixels[1437:],
        ["discriminator.1"],
        forward=lambda module, batch: module.discriminator(batch),
        name="discriminator",
        log_spaced=2,
    )
    callbacks = [generator, discriminator]
    trainer = pl.Trainer(max_epochs=max_epochs, callbacks=callbacks, default_root_dir=folder)
    trainer.fit(GAN(), DataLoader(TensorDataset(pixels[:1437]), 64, shuffle=True))
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
