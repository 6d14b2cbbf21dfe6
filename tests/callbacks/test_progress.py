import re
import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from hrsa_lightning.callbacks import Monitor, Schedule, StepProgressBar, progress
from hrsa_lightning.similarity import Measurement


class _Logs(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        self.log("norm", self.layer.weight.norm(), prog_bar=True)
        self.log("train/tokens_per_second", 1234.4)
        self.log("train/padding_share", 0.05)
        self.log("train/peak_memory_mb", 321.0)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=2)


class _Measures(Monitor):
    """Two arms against a third, the lower value at a layer."""

    def __init__(self):
        super().__init__("similarity", Schedule(1), None, "raise")

    def prepare(self, trainer, pl_module):
        pass

    def measure(self, trainer, pl_module):
        for number in (1, 2):
            self.say(f"part {number} of 2")
        found = [("a", "output", 0.75), ("c", "output", 0.5), ("a", "layer_0", 0.1)]
        return [
            Measurement("cka", value, arm=arm, reference="b", layer=layer)
            for arm, layer, value in found
        ]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    """Some versions of tqdm cut what they show at 80 columns where there is no terminal."""
    monkeypatch.setenv("COLUMNS", "200")


def _fit(tmp_path, bar, **options):
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[_Measures(), bar],
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
    assert "norm=" in shown
    assert "Epoch" not in shown


def test_the_state_of_the_run_is_shown_beside_the_loss(tmp_path, capsys):
    _fit(tmp_path, StepProgressBar(), max_epochs=1)
    last = capsys.readouterr().err.splitlines()[-1]
    for text in ("lr=1.0e-01", "tok/s=1234", "padding=5%", "peak_MB=321", "lowest_cka=0.500"):
        assert text in last


def test_the_bar_says_what_takes_the_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    _fit(tmp_path, StepProgressBar(), max_epochs=1)
    shown = capsys.readouterr().err.splitlines()
    described = [line.partition(":")[0] for line in shown if ":" in line]
    assert described[0] == "training"
    # The start and four steps; the bar is at 0 when the first of these is measured.
    assert described.count("measuring similarity") >= 4
    assert described.count("measuring similarity, part 2 of 2") == 5
    assert described[-1] == "training"


def test_a_file_gets_a_line_now_and_then(tmp_path, capsys):
    bar = StepProgressBar()
    _fit(tmp_path, bar, max_epochs=50)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    lines = [text for text in shown.splitlines() if "/200 " in text]
    assert "200/200" in lines[-1]
    assert len(lines) < 10, "though it is evaluated after every step"


def test_accumulated_batches_are_one_step(tmp_path, capsys):
    _fit(tmp_path, StepProgressBar(), max_steps=3, max_epochs=-1, accumulate_grad_batches=2)
    assert "3/3" in capsys.readouterr().err


def test_other_ranks_show_nothing(tmp_path, capsys):
    bar = StepProgressBar()
    bar.disable()
    _fit(tmp_path, bar, max_epochs=1)
    assert capsys.readouterr().err.count("step/s") == 0


def test_values_are_read_now_and_then(tmp_path, monkeypatch):
    """Each reading waits for the device."""
    readings = []
    monkeypatch.setattr(StepProgressBar, "get_metrics", lambda *_: readings.append(1) or {})
    _fit(tmp_path, StepProgressBar(), max_epochs=10)
    assert len(readings) <= 5, "of 40 steps in about a second, and at the end"
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_READINGS", 0.0)
    readings.clear()
    _fit(tmp_path, StepProgressBar(), max_epochs=10)
    assert len(readings) == 41
    bar = StepProgressBar()
    bar.disable()
    readings.clear()
    _fit(tmp_path, bar, max_epochs=1)
    assert not readings


def test_nothing_is_said_without_a_bar_or_after_an_evaluation():
    monitor = _Measures()
    monitor.say("part 1 of 2")
    assert monitor._say is None


def test_the_rate_is_that_of_steps_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    measure = _Measures.measure
    monkeypatch.setattr(_Measures, "measure", lambda *args: time.sleep(0.5) or measure(*args))
    _fit(tmp_path, StepProgressBar(), max_epochs=1)
    last = capsys.readouterr().err.splitlines()[-2]  # at the end, over the whole time
    number, unit = re.search(r"([\d.]+)(step/s|s/step)", last).groups()
    assert (float(number) if unit == "step/s" else 1 / float(number)) > 4
