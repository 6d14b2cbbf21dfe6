"""Small Lightning projects as others write them, in both flavors of the framework."""

import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FLAVORS = ("lightning.pytorch", "pytorch_lightning")
INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(7))
TARGETS = torch.randint(0, 3, (48,), generator=torch.Generator().manual_seed(8))


def flavor(name: str = FLAVORS[0]) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def train_loader(**options: Any) -> DataLoader:
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, **options)


def probe_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(INPUTS.split(10), TARGETS.split(10), strict=True))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.drop(self.norm(x))


def classifier(pl: ModuleType, base: type | None = None) -> Any:
    """A classifier with dropout and BatchNorm; `base` mixes in another way to train."""

    class Classifier(*([base] if base else []), pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder()
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(x))

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            step = getattr(super(), "step_of_project", None)
            return step(batch) if step else self.loss(batch)

        def configure_optimizers(self) -> Any:
            own = getattr(super(), "optimizers_of_project", None)
            return own() if own else torch.optim.AdamW(self.parameters(), lr=0.02)

    return Classifier()


class TwoOptimizers:
    """Manual optimization with two optimizers, both stepping in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def step_of_project(self, batch: Any) -> None:
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def optimizers_of_project(self) -> list[Any]:
        parts = (self.encoder, self.head)
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in parts]


def fit(
    callbacks: list[Any],
    folder: Any,
    *,
    pl: ModuleType | None = None,
    make: Any = None,
    loader: Any = None,
    ckpt_path: Any = None,
    max_steps: int = 6,
    seed: int = 3,
    **options: Any,
) -> Any:
    """Train quietly; returns the trainer, whose `lightning_module` is the trained module."""
    pl = pl or flavor()
    pl.seed_everything(seed, verbose=False)
    module = (make or classifier)(pl)
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=None if options.get("barebones") else 1,
        **options,
    )
    with warnings.catch_warnings():
        # Advice of the framework about workers, old names in its own code and the like.
        for text in (".*many workers.*", ".*LeafSpec.*", ".*training batches.*", ".*eval mode.*"):
            warnings.filterwarnings("ignore", text)
        loader = train_loader() if loader is None else loader
        trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.lightning_module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
