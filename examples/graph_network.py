"""A graph network in plain torch, on batches that are objects, as graph libraries make them.

python examples/graph_network.py
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hrsa_lightning.callbacks import SimilarityMonitor


class GraphBatch:
    """Graphs as one: all nodes, all edges, and the graph that each node belongs to."""

    def __init__(self, graphs: list[tuple[Tensor, Tensor, int]]) -> None:
        sizes = torch.tensor([len(nodes) for nodes, _, _ in graphs])
        starts = sizes.cumsum(0) - sizes
        self.x = torch.cat([nodes for nodes, _, _ in graphs])
        self.edge_index = torch.cat(
            [edges + start for (_, edges, _), start in zip(graphs, starts, strict=True)], dim=1
        )
        self.batch = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
        self.y = torch.tensor([label for _, _, label in graphs])

    def to(self, device: torch.device) -> "GraphBatch":
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self


def molecules(count: int, seed: int) -> list[tuple[Tensor, Tensor, int]]:
    """Random graphs of five to twelve nodes; a dense one is of the second class."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for number in range(count):
        size, label = int(torch.randint(5, 13, (), generator=generator)), number % 2
        edges = torch.randint(size, (2, size * (1 + 2 * label)), generator=generator)
        graphs.append((torch.randn(size, 8, generator=generator), edges, label))
    return graphs


class Convolution(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.own = nn.Linear(in_features, out_features)
        self.neighbors = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        sent = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
        return torch.relu(self.own(x) + self.neighbors(sent))


class GraphClassifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([Convolution(8, 32), Convolution(32, 32)])
        self.head = nn.Linear(32, 2)

    def forward(self, batch: GraphBatch) -> Tensor:
        for conv in self.convs:
            batch.x = conv(batch.x, batch.edge_index)
        sums = batch.x.new_zeros(len(batch.y), 32).index_add(0, batch.batch, batch.x)
        return self.head(sums / torch.bincount(batch.batch).unsqueeze(1))

    def training_step(self, batch: GraphBatch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch), batch.y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(max_steps: int = 150, folder: str | Path = "runs/graph_network") -> pl.Trainer:
    pl.seed_everything(0)
    train = DataLoader(molecules(512, seed=1), 32, shuffle=True, collate_fn=GraphBatch)
    val = DataLoader(molecules(128, seed=2), 32, collate_fn=GraphBatch)
    # The two lines; nodes are averaged graph by graph, by the batch's own vector.
    monitor = SimilarityMonitor("initial", val, ["convs.*", "output"], log_spaced=2)
    trainer = pl.Trainer(max_steps=max_steps, callbacks=[monitor], default_root_dir=folder)
    trainer.fit(GraphClassifier(), train)
    return trainer


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
