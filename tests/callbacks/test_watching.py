"""Watching changes nothing: weights with and without the monitor are equal bit for bit."""

import copy
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from hrsa_lightning.callbacks import RepresentationRecorder, SimilarityMonitor
from tests.callbacks import projects
from tests.callbacks.projects import FLAVORS, classifier, fit, flavor, same, weights
from tests.histories import read_tags

pytestmark = pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning")


def monitor(**options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["encoder.layers.*", "output"],
        "every_n_train_steps": 2,
        "metrics": ["cka"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 0,
    }
    return SimilarityMonitor("initial", **{**defaults, **options})


def with_and_without(tmp_path, *, watch=None, **options):
    watched = fit([watch or monitor()], tmp_path / "a", **options)
    alone = fit([], tmp_path / "b", **options)
    assert watched.global_step == alone.global_step > 0
    return weights(watched), weights(alone)


@pytest.mark.parametrize("name", FLAVORS)
def test_dropout_and_batchnorm_in_both_flavors(tmp_path, name):
    watch = monitor(heatmap_every_n_evaluations=1)
    assert same(*with_and_without(tmp_path, pl=flavor(name), watch=watch))


def test_the_comparison_can_fail(tmp_path):
    class Meddler(flavor().Callback):
        def on_train_batch_end(self, *args):
            torch.rand(1)

    assert not same(*with_and_without(tmp_path, watch=Meddler()))


def test_gradient_accumulation(tmp_path):
    assert same(*with_and_without(tmp_path, accumulate_grad_batches=2))


def test_manual_optimization_with_two_optimizers(tmp_path):
    watch = monitor(every_n_train_steps=3)  # no multiple of the two steps that a batch makes

    def make(pl):
        return classifier(pl, projects.TwoOptimizers)

    assert same(*with_and_without(tmp_path, make=make, watch=watch, max_steps=12))
    assert [r["step"] for r in read_tags(watch.history_path)] == [0, 4, 6, 10, 12]


def test_weight_averaging(tmp_path):
    averaged = [
        weights(fit([EMAWeightAveraging(decay=0.9), *watch], tmp_path))
        for watch in ([monitor()], [])
    ]
    assert same(*averaged)


def test_true_half_precision(tmp_path):
    assert same(*with_and_without(tmp_path, precision="bf16-true"))


def test_mixed_precision(tmp_path):
    assert same(*with_and_without(tmp_path, precision="bf16-mixed"))


def test_shuffled_probe_loader_that_shares_the_training_generator(tmp_path):
    results = []
    for watched in (True, False):
        generator = torch.Generator().manual_seed(5)
        loader = projects.train_loader(generator=generator)
        watch = [monitor(probes=loader)] if watched else []
        results.append(weights(fit(watch, tmp_path, loader=loader)))
    assert same(*results)


def test_recorder(tmp_path):
    watch = RepresentationRecorder(
        probes=projects.probe_batches(), every_n_train_steps=2, on_error="raise"
    )
    assert same(*with_and_without(tmp_path, watch=watch))


def test_compiled_module(tmp_path):
    """Hooks do not run in compiled graphs, so probes run eagerly; training stays compiled."""

    def make(pl):
        module = classifier(pl)
        module.encoder = torch.compile(module.encoder, backend="eager")
        return module

    watched, alone = with_and_without(tmp_path, make=make)
    assert same(watched, alone)
    assert any("_orig_mod" in name for name in watched)


class Failing(nn.Module):
    """A part that breaks in evaluation, after it has touched everything it can."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if not self.training:
            self.calls += 1
            random.random()
            np.random.rand()
            torch.rand(3)
            raise torch.OutOfMemoryError("broken on purpose")
        return x


def test_an_exception_in_a_probe_forward_leaves_no_trace(tmp_path):
    def make(pl):
        module = classifier(pl)
        module.encoder.drop = nn.Sequential(nn.Dropout(0.2), Failing())
        module.encoder.norm.eval()  # modes may differ: a frozen part stays as it is
        return module

    def modes(trainer):
        return [part.training for part in trainer.lightning_module.modules()]

    watched = fit([monitor(on_error="warn")], tmp_path / "a", make=make)
    alone = fit([], tmp_path / "b", make=make)
    assert same(weights(watched), weights(alone))
    assert modes(watched) == modes(alone)
    for part in watched.lightning_module.modules():
        assert not part._forward_hooks


def test_making_a_monitor_draws_nothing():
    before = torch.get_rng_state()
    monitor(metrics=["cka", "knn_overlap_10", "procrustes_residual"])
    monitor(metrics=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_states_of_random_generators_are_as_found(tmp_path):
    states = []

    class Look(flavor().Callback):
        def on_train_batch_start(self, *args):
            states[-1].append(
                (
                    random.getstate(),
                    np.random.get_state()[1].tolist(),
                    torch.get_rng_state().tolist(),
                )
            )

    for watch in ([monitor(every_n_train_steps=1)], []):
        states.append([])
        fit([*watch, Look()], tmp_path)
    assert states[0] == states[1]


def test_probes_given_as_a_list_stay_the_users(tmp_path):
    batches = projects.probe_batches()
    before = copy.deepcopy(batches)
    fit([monitor(probes=batches)], tmp_path)
    assert all(
        torch.equal(a, b)
        for first, second in zip(batches, before, strict=True)
        for a, b in zip(first, second, strict=True)
    )
