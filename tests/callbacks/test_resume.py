"""A run that is killed and goes on has the history of one that was not."""

import json
import warnings

import pytest
import torch

from hrsa_lightning.callbacks import RepresentationRecorder, SimilarityMonitor
from hrsa_lightning.errors import HRSAWarning
from hrsa_lightning.similarity import RepresentationTrace, SimilarityEvaluator
from hrsa_lightning.similarity.history import cut_history, details_path, read_evaluations
from tests.callbacks import projects
from tests.callbacks.projects import FLAVORS, fit, flavor
from tests.histories import read_tags


def monitor(**options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["encoder.layers.*", "output"],
        "every_n_train_steps": 3,
        "metrics": ["cka"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 0,
    }
    return SimilarityMonitor("initial", **{**defaults, **options})


def values(watch):
    drop = "similarity/seconds"
    return {
        record["step"]: {tag: v for tag, v in record["values"].items() if tag != drop}
        for record in read_tags(watch.history_path)
    }


def run(folder, *, pl=None, stop_at=None, ckpt_path=None, max_steps=14, callbacks=(), **options):
    """Data in order, no noise, checkpoints at ends of epochs: a plain loader resumes exactly."""
    pl = pl or flavor()
    watch = monitor(**options)

    class KilledError(Exception):
        pass

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == stop_at:
                raise KilledError

    def make(pl):
        module = projects.classifier(pl)
        module.encoder.drop.p = 0.0
        return module

    save = pl.callbacks.ModelCheckpoint(
        folder / "saved", every_n_train_steps=5, save_top_k=-1, filename="{step}"
    )
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(projects.INPUTS, projects.TARGETS), batch_size=10
    )
    try:
        fit(
            [watch, *callbacks, Kill(), save],
            folder,
            pl=pl,
            make=make,
            loader=loader,
            ckpt_path=ckpt_path,
            max_steps=max_steps,
            enable_checkpointing=True,
            logger=pl.loggers.CSVLogger(folder),
        )
    except KilledError:
        assert stop_at
    return watch


def assert_same_history(first, second):
    assert first.keys() == second.keys()
    for step in first:
        assert second[step] == pytest.approx(first[step], abs=1e-6)


@pytest.mark.parametrize("name", FLAVORS)
def test_no_gap_and_no_double(tmp_path, name):
    pl = flavor(name)
    whole = run(tmp_path / "whole", pl=pl)
    assert list(values(whole)) == [0, 3, 6, 9, 12, 14]
    killed = run(tmp_path / "killed", pl=pl, stop_at=12)
    assert list(values(killed)) == [0, 3, 6, 9, 12]
    resumed = run(tmp_path / "killed", pl=pl, ckpt_path=tmp_path / "killed/saved/step=10.ckpt")
    assert resumed.history_path != killed.history_path, "the logger made a new version"
    assert_same_history(values(whole), values(resumed))


def test_layer_maps_are_those_of_an_undisturbed_run(tmp_path):
    """Also where the run was killed after its last record and before its last pictures."""

    def left_behind(watch):
        details = details_path(watch.history_path)
        lines = [json.loads(line) for line in details.read_text().splitlines()]
        pictures = sorted(path.name for path in watch.folder.glob("*.png"))
        epochs = [evaluation.epoch for evaluation in read_evaluations(watch.history_path)]
        return [(line["step"], line["values"]) for line in lines], pictures, epochs

    options = {"heatmap_every_n_evaluations": 10, "max_steps": 15}
    whole = left_behind(run(tmp_path / "whole", **options))
    killed = run(tmp_path / "killed", stop_at=12, **options)
    assert [step for step, _ in left_behind(killed)[0]] == [0]
    path = tmp_path / "killed/saved/step=10.ckpt"
    ended = run(tmp_path / "killed", ckpt_path=path, **options)
    assert left_behind(ended) == whole
    cut_history(details_path(ended.history_path), details_path(ended.history_path), 14, ended.run)
    for picture in ended.folder.glob("*.png"):
        picture.unlink()
    path = tmp_path / "killed/saved/step=15.ckpt"
    with pytest.MonkeyPatch.context() as patch:  # as the train command does
        patch.setattr("lightning.pytorch.loops.fit_loop._FitLoop.skip", False)
        again = run(tmp_path / "killed", ckpt_path=path, **options)
    assert left_behind(again) == whole
    assert list(values(again)) == [0, 3, 6, 9, 12, 15]


def test_a_longer_run_goes_on_from_the_end(tmp_path):
    run(tmp_path, max_steps=10)
    longer = run(tmp_path, ckpt_path=tmp_path / "saved/step=10.ckpt")
    assert list(values(longer)) == [0, 3, 6, 9, 10, 12, 14]


def test_references_on_disk_stay_out_of_checkpoints(tmp_path):
    run(tmp_path, stop_at=12, store="disk")
    path = tmp_path / "saved/step=10.ckpt"
    state = torch.load(path, weights_only=False)["callbacks"]
    (own,) = [value for key, value in state.items() if "SimilarityMonitor" in key]
    assert isinstance(own["initial"], str)
    resumed = run(tmp_path, ckpt_path=path, store="disk")
    whole = run(tmp_path / "whole")
    assert_same_history(values(whole), values(resumed))


def test_a_start_that_is_gone_is_said(tmp_path):
    killed = run(tmp_path, stop_at=12, store="disk")
    for file in killed.folder.glob("*.safetensors"):
        file.unlink()
    with pytest.warns(HRSAWarning, match=r"comparisons with the start are left out: .* is gone"):
        run(tmp_path, ckpt_path=tmp_path / "saved/step=10.ckpt", store="disk")


def test_other_probes_after_a_restart_are_said(tmp_path):
    run(tmp_path, stop_at=12)
    with pytest.warns(HRSAWarning, match="the probes are not those of before"):
        run(
            tmp_path,
            ckpt_path=tmp_path / "saved/step=10.ckpt",
            probes=projects.probe_batches()[:3],
        )


def test_a_monitor_that_joins_later_starts_there(tmp_path):
    fit([], tmp_path).save_checkpoint(tmp_path / "x.ckpt")
    watch = monitor()
    said = "begins at step 6, since .* was written without it: 'initial' is the model of this step"
    with pytest.warns(HRSAWarning, match=said):
        fit([watch], tmp_path / "b", ckpt_path=tmp_path / "x.ckpt", max_steps=9)
    assert list(values(watch)) == [6, 9]
    assert values(watch)[6]["similarity/cka/output"] == pytest.approx(1.0)


def recorder(folder="trace", **options):
    defaults = {"probes": projects.INPUTS, "every_n_train_steps": 3, "on_error": "raise"}
    return RepresentationRecorder(folder, **{**defaults, **options})


@pytest.mark.parametrize("place", ["absolute", "in the run's folder"])
def test_a_recording_goes_on(tmp_path, place):
    target = tmp_path / "trace" if place == "absolute" else "trace"
    whole, killed, resumed = (recorder(target) for _ in range(3))
    if place != "absolute":
        run(tmp_path / "whole", callbacks=[whole])
    run(tmp_path, stop_at=12, callbacks=[killed])
    run(tmp_path, ckpt_path=tmp_path / "saved/step=10.ckpt", callbacks=[resumed])
    trace = RepresentationTrace(resumed.folder / target)
    assert trace.steps == [0, 3, 6, 9, 12, 14]
    if place != "absolute":
        assert resumed.folder != killed.folder, "the logger made a new version"
        assert RepresentationTrace(killed.folder / target).steps == [0, 3, 6, 9, 12], "untouched"
        expected = RepresentationTrace(whole.folder / target)
        for step in trace.steps:
            left, right = (found.at(step)[""][""]["output"] for found in (trace, expected))
            assert torch.allclose(left, right, atol=1e-6)


def test_a_recording_that_cannot_go_on_says_so(tmp_path):
    run(tmp_path, stop_at=12, callbacks=[recorder()])
    with pytest.warns(HRSAWarning, match="the trace begins at step 10: .* other probes"):
        run(
            tmp_path,
            ckpt_path=tmp_path / "saved/step=10.ckpt",
            callbacks=[recorder(probes=projects.INPUTS[:20])],
        )


def test_what_was_spent_goes_on(tmp_path):
    killed = run(tmp_path, stop_at=12)
    resumed = run(tmp_path, ckpt_path=tmp_path / "saved/step=10.ckpt", max_steps=11)
    spent = torch.load(tmp_path / "saved/step=10.ckpt", weights_only=False)["callbacks"]
    (own,) = [value for key, value in spent.items() if "SimilarityMonitor" in key]
    assert 0 < own["spent"] < killed.budget.spent
    assert resumed.budget.spent > own["spent"]
    assert resumed.budget.state()["train_steps"] == 11


def test_the_end_of_an_epoch_is_made_up_for(tmp_path):
    """The checkpoint is written after the epoch's last step, and the run killed before its end."""
    schedule = {"every_n_train_steps": None, "every_n_epochs": 1}
    whole = run(tmp_path / "whole", **schedule)
    assert list(values(whole)) == [0, 5, 10, 14]
    killed = run(tmp_path / "killed", stop_at=12, **schedule)
    cut_history(killed.history_path, killed.history_path, 9, killed.run)
    path = tmp_path / "killed/saved/step=10.ckpt"
    resumed = run(tmp_path / "killed", ckpt_path=path, **schedule)
    assert_same_history(values(whole), values(resumed))


@pytest.mark.parametrize("name", FLAVORS)
@pytest.mark.parametrize("average", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_the_last_values_are_of_the_weights_that_are_handed_over(tmp_path, average, name):
    pl = flavor(name)
    options = {"decay": 0.9} if average.startswith("EMA") else {"swa_lrs": 0.01}
    watch, plain = monitor(on_error="raise"), monitor()
    averages = getattr(pl.callbacks, average)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*SWA.*|.*Swapping scheduler.*|.*eval mode.*")
        trainer = fit(
            [watch, averages(**options)], tmp_path / "a", pl=pl, max_steps=12, max_epochs=2
        )
    fit([plain], tmp_path / "b", pl=pl, max_steps=12)
    assert list(values(watch)) == [0, 3, 6, 9, 12]
    start = fit([], tmp_path / "c", pl=pl, max_steps=0).lightning_module
    evaluator = SimilarityEvaluator(
        trainer.lightning_module,
        projects.probe_batches(),
        ["encoder.layers.*", "output"],
        reference=start,
        metrics=["cka"],
    )
    expected = {m.layer: m.value for m in evaluator.evaluate(12)}
    found = {m.layer: m.value for m in watch.latest}
    assert found == pytest.approx(expected, abs=1e-5)
    assert {m.layer: m.value for m in plain.latest} != pytest.approx(expected, abs=1e-3)


def test_a_search_that_makes_lightning_begin_anew_is_said(tmp_path):
    """The search restores what it saved, which was before the place in training was restored."""
    pl = flavor()

    def make(pl):
        module = projects.classifier(pl)
        module.lr = 0.02
        return module

    def search(steps, **options):
        watch, finder = monitor(), pl.callbacks.LearningRateFinder(num_training_steps=3)
        trainer = fit([watch, finder], tmp_path, make=make, max_steps=steps, **options)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        return watch

    first = search(6)
    with pytest.warns(HRSAWarning, match="begins at step 0 with the weights of a checkpoint"):
        second = search(9, ckpt_path=tmp_path / "x.ckpt")
    assert list(values(first)) == [0, 3, 6]
    assert list(values(second)) == [0, 3, 6, 9]
    assert {p.parent.name for p in tmp_path.rglob("*.jsonl")} == {"version_0", "version_1"}
