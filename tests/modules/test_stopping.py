"""Signals and the clock stop a fit with a checkpoint from which it goes on to the same weights."""

import os
import signal
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loops.fit_loop import _FitLoop

from hrsa_lightning.modules import ContrastiveModule
from hrsa_lightning.modules.checkpoints import newest_checkpoint, step_of
from hrsa_lightning.modules.stopping import EndingFitLoop, StepCheckpoint, Stopped
from tests.contrastive_runs import fit, make_arm, trained_weights, write_pairs


class _Signal(Callback):
    """Sends a signal to this process at the end of a step, or of training."""

    def __init__(self, step=None, signum=signal.SIGTERM):
        self._step, self._signum = step, signum
        self.ends = 0

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self._step:
            os.kill(os.getpid(), self._signum)

    def on_train_end(self, trainer, *args):
        self.ends += 1
        if self._step is None and self.ends == 1:
            os.kill(os.getpid(), self._signum)


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setattr(_FitLoop, "skip", EndingFitLoop.skip)  # the loop of the train command
    pairs = write_pairs(tmp_path / "pairs.jsonl")

    def start(*callbacks, every=100, keep=2, max_time=None, folder="run", **length):
        """Train 3 steps, the pairs once, from where the run is."""
        module = ContrastiveModule(make_arm(tmp_path / "backbone"), lr=1e-2)
        run = tmp_path / folder
        checkpoint = StepCheckpoint(run / "checkpoints", every, keep, max_time)
        options = {"callbacks": (*callbacks, checkpoint), "enable_checkpointing": True, **length}
        fit(module, pairs, run, ckpt_path=newest_checkpoint(run), **options)
        return trained_weights(module, "model")

    return start


def _steps(folder):
    return sorted(step_of(path) for path in (folder / "run" / "checkpoints").glob("step_*"))


def _equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_fit_that_is_out_of_time_goes_on_with_as_much_again(start, tmp_path):
    for step in (1, 2):
        with pytest.raises(Stopped) as stop:
            start(max_time=timedelta(0))
        assert stop.value.code == 124
        assert step_of(newest_checkpoint(tmp_path / "run")) == step
    weights = start(max_time=timedelta(0))  # the time is up after the last step, too
    assert _equal(weights, start(folder="whole", max_time=timedelta(hours=1)))


@pytest.mark.parametrize("step", [2, 3, None])
def test_a_signal_leaves_a_checkpoint_of_its_step(start, tmp_path, step):
    with pytest.raises(Stopped) as stop:
        start(_Signal(step))
    assert stop.value.code == 128 + signal.SIGTERM
    assert _steps(tmp_path) == [step or 3]
    ends = _Signal(0)
    assert _equal(start(ends), start(folder="whole"))
    assert ends.ends == 1, "the end of training is repeated"
    assert _steps(tmp_path) == [step or 3]


def test_as_many_checkpoints_stay_after_a_resume(start, tmp_path):
    with pytest.raises(Stopped):
        start(_Signal(2), every=1, keep=-1)
    start(every=1, keep=2)
    assert _steps(tmp_path) == [2, 3]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


AVERAGES = {
    "none": lambda: Callback(),
    "EMA": lambda: EMAWeightAveraging(decay=0.5),
    "mean": WeightAveraging,
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1),
}


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that")
@pytest.mark.filterwarnings("ignore:SWA is", "ignore:Swapping scheduler")
@pytest.mark.parametrize("name", AVERAGES)
def test_averaged_weights_go_on(start, tmp_path, name):
    average = AVERAGES[name]
    length = {"max_steps": -1, "max_epochs": 3}
    whole = start(average(), folder="whole", **length)
    with pytest.raises(Stopped):
        start(_Signal(5), average(), every=1, **length)
    assert _equal(start(average(), every=1, **length), whole)
    if name != "none":
        assert not _equal(whole, start(folder="plain", **length))
