"""A loop on Lightning Fabric, which moves, wraps and casts; the evaluator takes what it returns.

python examples/fabric_loop.py
"""

import sys

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning import SimilarityEvaluator
from hrsa_lightning.similarity import Measurement


def main(
    epochs: int = 2, watch: bool = True, **options: object
) -> tuple[nn.Module, list[Measurement]]:
    fabric = Fabric(**{"accelerator": "cpu", "precision": "bf16-mixed", **options})
    fabric.launch()
    fabric.seed_everything(0)
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(pixels[:1437], torch.tensor(digits.target[:1437]))
    loader = fabric.setup_dataloaders(DataLoader(data, 64, shuffle=True))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    # The lines; within `fabric.autocast()` the probes are computed as training steps are.
    evaluator = SimilarityEvaluator(model, pixels[1437:], ["1", "output"]) if watch else None
    for epoch in range(epochs):
        if evaluator is not None:
            with fabric.autocast():
                evaluator.evaluate(epoch)
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
    if evaluator is None:
        return model, []
    with fabric.autocast():
        evaluator.evaluate(epochs)
    return model, evaluator.history


if __name__ == "__main__":
    for m in main()[1]:
        if m.metric == "cka":
            print(m.step, m.layer, f"{m.value:.3f}")
    sys.exit(0)
