"""Detection as torchvision has it: lists of images and targets in, losses or lists of boxes out.

python examples/detector.py
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hrsa_lightning.callbacks import SimilarityMonitor

Target = dict[str, Tensor]


def scenes(count: int, seed: int) -> list[tuple[Tensor, Target]]:
    """Images of different sizes with one to three bright squares, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        height, width, num = (
            int(torch.randint(low, high, (), generator=generator))
            for low, high in ((24, 33), (24, 33), (1, 4))
        )
        image = torch.rand(3, height, width, generator=generator) * 0.3
        corners = torch.randint(0, 16, (num, 2), generator=generator)
        for x, y in corners.tolist():
            image[:, y : y + 8, x : x + 8] = 1.0
        found.append((image, {"boxes": torch.cat([corners, corners + 8], 1).float()}))
    return found


def collate(rows: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*rows, strict=True)
    return list(images), list(targets)


class Detector(pl.LightningModule):
    """Finds centers of objects in a grid of cells of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.objectness = nn.Conv2d(32, 1, 1)

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> list[Target] | Tensor:
        padded = torch.zeros(len(images), 3, 32, 32, device=self.device)
        for place, image in zip(padded, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        logits = self.objectness(self.backbone(padded)).squeeze(1)
        if targets is not None:
            return self.loss(logits, targets)
        found = []
        for grid in logits.sigmoid():
            y, x = (grid > 0.5).nonzero(as_tuple=True)
            boxes = torch.stack([x * 4 - 4, y * 4 - 4, x * 4 + 4, y * 4 + 4], 1).float()
            found.append({"boxes": boxes, "scores": grid[y, x]})
        return found

    def loss(self, logits: Tensor, targets: list[Target]) -> Tensor:
        wanted = torch.zeros_like(logits)
        for grid, target in zip(wanted, targets, strict=True):
            x, y = ((target["boxes"][:, :2] + target["boxes"][:, 2:]) / 8).long().unbind(1)
            grid[y, x] = 1.0
        return nn.functional.binary_cross_entropy_with_logits(logits, wanted)

    def training_step(self, batch: tuple[list[Tensor], list[Target]], batch_idx: int) -> Tensor:
        return self(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(max_steps: int = 60, folder: str | Path = "runs/detector") -> pl.Trainer:
    pl.seed_everything(0)
    train = DataLoader(scenes(256, seed=1), 16, shuffle=True, collate_fn=collate)
    probes = DataLoader(scenes(64, seed=2), 16, collate_fn=collate)
    # The two lines; eight boxes or none, a sample is an image.
    layers = ["backbone.*", "objectness"]
    monitor = SimilarityMonitor("initial", probes, layers, log_spaced=2)
    trainer = pl.Trainer(max_steps=max_steps, callbacks=[monitor], default_root_dir=folder)
    trainer.fit(Detector(), train)
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
