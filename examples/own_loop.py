"""A loop of one's own in plain PyTorch, on one process or several.

python examples/own_loop.py
torchrun --nproc-per-node 2 examples/own_loop.py
"""

import os
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from hrsa_lightning import SimilarityEvaluator
from hrsa_lightning.similarity import Measurement


def train(
    steps: int = 60, every: int = 20, watch: bool = True
) -> tuple[nn.Module, list[Measurement]]:
    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    train, probes = pixels[:1437], pixels[1437:]
    data = TensorDataset(train, torch.tensor(digits.target[:1437]))
    model: nn.Module = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10)
    )
    sampler = None
    if dist.is_initialized():
        model, sampler = DistributedDataParallel(model), DistributedSampler(data)
    loader = DataLoader(data, 32, shuffle=sampler is None, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # The lines: every rank evaluates, each its share of the probes.
    evaluator = SimilarityEvaluator(model, probes, ["2", "output"]) if watch else None
    step = 0
    while step < steps:
        for inputs, labels in loader:
            if evaluator is not None and step % every == 0:
                evaluator.evaluate(step)
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
    if evaluator is None:
        return model, []
    evaluator.evaluate(step)
    return model, evaluator.history


def main() -> None:
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    _, history = train()
    for m in history:
        if m.metric == "cka" and (not dist.is_initialized() or dist.get_rank() == 0):
            print(m.step, m.layer, f"{m.value:.3f}", "chance", f"{m.chance:.3f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
