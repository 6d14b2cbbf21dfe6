"""A metric that hangs on a LightningModule is cast with it; its sums must not be."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hrsa_lightning.functional import linear_cka
from hrsa_lightning.metrics import LinearCKA, hrsa_metrics

L = pytest.importorskip("lightning.pytorch")


def batches() -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        yield torch.randn(50, 8, generator=generator)


class Module(L.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.cka = LinearCKA()
        self.metrics = hrsa_metrics("geometry", k=(5,))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        out = self.layer(batch)
        self.cka.update(out, batch)
        self.metrics.update(out, batch)
        self.seen.append((out.detach().clone(), batch))
        self.log("cka", self.cka, on_epoch=True, on_step=False)
        return out.square().mean()

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
def test_values_under_every_precision(precision: str) -> None:
    module = Module()
    loader: Any = DataLoader(list(batches()), batch_size=None)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    assert module.cka.count.dtype == torch.float64
    x, y = (torch.cat(side).float() for side in zip(*module.seen, strict=True))
    expected = linear_cka(x, y).item()
    assert trainer.callback_metrics["cka"].item() == pytest.approx(expected, rel=1e-5)
