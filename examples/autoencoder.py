"""An autoencoder that returns a dictionary: its latent space against its start and against PCA.

python examples/autoencoder.py
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import SimilarityMonitor

LATENT = 8


class Autoencoder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 32), nn.GELU(), nn.Linear(32, 64))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        latent = self.encoder(pixels)
        return {"latent": latent, "reconstruction": self.decoder(latent)}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0])["reconstruction"], batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class PCA(nn.Module):
    """What a linear autoencoder would learn; any module that takes the same batches will do."""

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.register_buffer("axes", torch.pca_lowrank(pixels, LATENT)[2])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        latent = pixels @ self.axes
        return {"latent": latent, "reconstruction": latent @ self.axes.T}


def main(max_epochs: int = 10, folder: str | Path = "runs/autoencoder") -> pl.Trainer:
    pl.seed_everything(0)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(pixels[:1437]), batch_size=64, shuffle=True)
    references = {"start": "initial", "pca": PCA(pixels[:1437])}
    # The two lines:
    monitor = SimilarityMonitor(references, pixels[1437:], ["output.latent"], log_spaced=2)
    trainer = pl.Trainer(max_epochs=max_epochs, callbacks=[monitor], default_root_dir=folder)
    trainer.fit(Autoencoder(), loader)
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
