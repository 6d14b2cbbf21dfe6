import torch
from lightning.pytorch import LightningModule, Trainer

from hrsa_lightning.callbacks import StepProgressBar


class _Logs(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=2)


def _fit(tmp_path, bar, **options):
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[bar],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(_Logs())


def test_one_bar_counts_the_steps_of_all_epochs(tmp_path, capsys):
    _fit(tmp_path, StepProgressBar(), max_epochs=3)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "loss=" in shown
    assert "Epoch" not in shown


def test_accumulated_batches_are_one_step(tmp_path, capsys):
    _fit(tmp_path, StepProgressBar(), max_steps=3, max_epochs=-1, accumulate_grad_batches=2)
    assert "3/3" in capsys.readouterr().err


def test_other_ranks_show_nothing(tmp_path, capsys):
    bar = StepProgressBar()
    bar.disable()
    _fit(tmp_path, bar, max_epochs=1)
    assert capsys.readouterr().err.count("step/s") == 0
