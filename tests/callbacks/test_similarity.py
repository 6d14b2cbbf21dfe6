"""What the monitor measures and where its values go."""

import csv
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import RepresentationRecorder, SimilarityMonitor
from hrsa_lightning.errors import ConfigError, DataError, HRSAWarning
from hrsa_lightning.functional import linear_cka
from hrsa_lightning.similarity import read_history
from tests.callbacks import projects
from tests.callbacks.projects import FLAVORS, INPUTS, classifier, fit, flavor
from tests.histories import read_tags

LAYERS = ["encoder.layers.*", "output"]


def monitor(reference="initial", **options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": LAYERS,
        "every_n_train_steps": 2,
        "metrics": ["cka"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 0,
    }
    return SimilarityMonitor(reference, **{**defaults, **options})


def history(watch):
    return read_tags(watch.history_path)


def steps(watch):
    return [record["step"] for record in history(watch)]


@torch.no_grad()
def output_of(module):
    module.eval()
    return module(INPUTS)


def test_values_are_those_of_the_start_against_now(tmp_path):
    torch.manual_seed(3)
    pl = flavor()
    pl.seed_everything(3, verbose=False)
    start = output_of(classifier(pl))
    watch = monitor()
    trainer = fit([watch], tmp_path)
    now = output_of(trainer.lightning_module)
    last = history(watch)[-1]["values"]
    expected = linear_cka(now, start).item()
    assert last["similarity/cka/output"] == pytest.approx(expected, abs=1e-5)
    assert 0 < expected < 0.999
    assert history(watch)[0]["values"]["similarity/cka/output"] == pytest.approx(1.0)
    assert steps(watch) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("options", "calibrated"),
    [({}, [0, 6]), ({"every_n_train_steps": 4}, [0, 6]), ({"null": 0}, [])],
)
def test_the_first_and_the_last_evaluation_have_a_null(tmp_path, options, calibrated):
    watch = monitor(**options)
    fit([watch], tmp_path)
    found = [m for m in read_history(watch.history_path) if m.metric == "cka"]
    assert [m.step for m in found if m.p_value is not None and m.layer == "output"] == calibrated
    assert {m.step for m in found if m.identity == 1} == {0, 6}
    assert all(m.null_95 < m.value for m in found if m.null_95 is not None)


@pytest.mark.parametrize("name", FLAVORS)
def test_the_whole_monitor_in_both_flavors(tmp_path, name):
    pl = flavor(name)
    watch = monitor(
        metrics=["cka", "knn_overlap_10", "probe_transfer_accuracy"],
        probes={"a": projects.probe_batches(), "b": projects.probe_batches()[::-1]},
        label_key=1,
        by_label=True,
        heatmap_every_n_evaluations=1,
    )
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    trainer = fit([watch], tmp_path, pl=pl, logger=logger, max_steps=1)
    tags = set(history(watch)[-1]["values"])
    assert "similarity.a/cka/output" in tags
    assert "similarity.b/knn_overlap_10/layer_1" in tags
    assert {"similarity.a/cka/output/0", "similarity.a/cka/output/2"} <= tags
    assert "similarity.a/probe_transfer_accuracy/layer_0" in tags
    assert "similarity.a/variance_share_dimension/layer_0" in tags
    assert set(trainer.callback_metrics) >= tags
    pictures = {path.name for path in watch.folder.glob("*.png")}
    ends = ("", "_distance", "_heatmap")
    assert pictures == {f"similarity.{s}{end}.png" for s in "ab" for end in ends}


def arms_module(pl):
    class Paired(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.arms = nn.ModuleDict(
                {name: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)) for name in ("x", "y", "z")}
            )

        def training_step(self, batch, batch_idx):
            return sum(arm(batch[0]).square().mean() for arm in self.arms.values())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Paired()


def test_arms_are_compared_with_each_other_and_their_start(tmp_path):
    watch = monitor(("initial", "arm:x"), arms="arms", layers=["?", "output"])
    trainer = fit([watch], tmp_path, make=arms_module)
    values = history(watch)[-1]["values"]
    comparisons = {tag.split("/")[2] for tag in values if tag.startswith("similarity/cka/")}
    assert comparisons == {"y_vs_x", "z_vs_x", "x_vs_initial", "y_vs_initial", "z_vs_initial"}
    arms = trainer.lightning_module.arms
    expected = linear_cka(output_of(arms["y"]), output_of(arms["x"])).item()
    assert values["similarity/cka/y_vs_x/output"] == pytest.approx(expected, abs=1e-5)
    assert values["similarity/cka/y_vs_initial/0"] < 1.0


def test_all_pairs_of_arms(tmp_path):
    watch = monitor("pairs", arms="arms", layers=["output"])
    fit([watch], tmp_path, make=arms_module)
    names = {t.split("/")[2] for t in history(watch)[0]["values"] if "/cka/" in t}
    assert names == {"y_vs_x", "z_vs_x", "z_vs_y"}


def test_one_forward_pass_per_arm_serves_all_comparisons(tmp_path):
    calls = []

    def forward(module, batch):
        calls.append(module)
        return module(batch[0])

    watch = monitor(("initial", "pairs"), arms="arms", layers=["output"], forward=forward)
    fit([watch], tmp_path, make=arms_module, max_steps=2)
    assert len(calls) == 2 * 3 * len(projects.probe_batches())


def test_other_callbacks_can_monitor_the_values(tmp_path):
    pl = flavor()
    stop = pl.callbacks.EarlyStopping(
        "similarity/cka/output",
        mode="min",
        stopping_threshold=0.9999,
        check_on_train_epoch_end=True,
    )
    best = pl.callbacks.ModelCheckpoint(
        tmp_path, monitor="similarity/cka/layer_0", mode="min", every_n_train_steps=2
    )
    trainer = fit([monitor(), stop, best], tmp_path, max_steps=100, enable_checkpointing=True)
    assert trainer.global_step == 6, "stopped after the first epoch"
    assert best.best_model_score == trainer.callback_metrics["similarity/cka/layer_0"]


def test_every_logger_gets_every_value_at_its_step(tmp_path):
    pl = flavor()
    loggers = [
        pl.loggers.CSVLogger(tmp_path, name="csv"),
        pl.loggers.CSVLogger(tmp_path, name="two"),
    ]
    watch = monitor(every_n_train_steps=3)
    fit([watch], tmp_path, logger=loggers)
    loggers[1].save()
    with Path(loggers[1].experiment.metrics_file_path).open() as file:
        found = {
            int(row["step"]): float(row["similarity/cka/output"])
            for row in csv.DictReader(file)
            if row["similarity/cka/output"]
        }
    expected = {r["step"]: r["values"]["similarity/cka/output"] for r in history(watch)}
    assert found == pytest.approx(expected)
    assert list(found) == [0, 3, 6]


def test_the_progress_bar_shows_the_headline(tmp_path):
    trainer = fit([monitor()], tmp_path)
    assert list(trainer.progress_bar_metrics) == ["cka"]


def test_epochs(tmp_path):
    watch = monitor(every_n_train_steps=None, every_n_epochs=1)
    fit([watch], tmp_path, max_steps=18)
    assert steps(watch) == [0, 6, 12, 18]


def test_several_monitors_at_once(tmp_path):
    first = monitor(name="similarity")
    second = monitor(name="other", layers=["head"], every_n_train_steps=3)
    recorder = RepresentationRecorder(probes=INPUTS, on_error="raise")
    trainer = fit([first, second, recorder], tmp_path)
    assert steps(first) == [0, 2, 4, 6]
    assert steps(second) == [0, 3, 6]
    assert second.history_path.name == "other.jsonl"
    assert {"similarity/cka/output", "other/cka/head"} <= set(trainer.callback_metrics)


def test_a_callback_can_serve_two_fits(tmp_path):
    watch = monitor()
    fit([watch], tmp_path / "a", seed=3)
    first = history(watch)
    fit([watch], tmp_path / "b", seed=4)
    assert steps(watch) == [0, 2, 4, 6]
    assert history(watch)[0]["values"]["similarity/cka/output"] == pytest.approx(1.0)
    assert history(watch)[-1]["values"] != first[-1]["values"]


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"limit_train_batches": 1, "max_epochs": 2},
        {"barebones": True},
    ],
)
def test_modes_of_the_trainer(tmp_path, options):
    if "barebones" in options:
        options = {**options, "logger": None}
    watch = monitor()
    trainer = fit([watch], tmp_path, max_steps=2, **options)
    assert "similarity/cka/output" in trainer.callback_metrics
    if "fast_dev_run" in options:
        assert list(tmp_path.iterdir()) == [], "a trial run writes nothing"


def test_validation_and_sanity_checking_go_beside_it(tmp_path):
    probes = TensorDataset(INPUTS, projects.TARGETS)

    def make(pl):
        module = classifier(pl)
        type(module).validation_step = lambda self, batch, i: self.log("val", self.loss(batch))
        type(module).val_dataloader = lambda self: DataLoader(probes, batch_size=8)
        return module

    watch = monitor(probes="val_dataloader")
    trainer = fit([watch], tmp_path, make=make, num_sanity_val_steps=2, max_steps=12)
    assert steps(watch) == [0, 2, 4, 6, 8, 10, 12]
    assert {"val", "similarity/cka/output"} <= set(trainer.callback_metrics)


def test_representations_that_are_not_finite_are_nan_with_one_warning_that_says_where(tmp_path):
    def forward(module, batch):
        out = module(batch[0])
        return out / 0 if module.trainer.global_step >= 2 else out

    watch = monitor(forward=forward)
    with pytest.warns(HRSAWarning, match=r"not finite.*\(at output, step 2\)") as caught:
        trainer = fit([watch], tmp_path)
    assert len([w for w in caught if "finite" in str(w.message)]) == 1
    assert trainer.global_step == 6
    values = history(watch)[-1]["values"]
    assert math.isnan(values["similarity/cka/output"])
    assert not math.isnan(values["similarity/cka/layer_0"])


def test_a_failing_evaluation_warns_and_training_goes_on(tmp_path):
    def forward(module, batch):
        if module.trainer.global_step == 4:
            raise RuntimeError("out of luck")
        return module(batch[0])

    watch = monitor(forward=forward, on_error="warn")
    with pytest.warns(
        HRSAWarning, match=r"no values, training goes on.*out of luck.*first at step 4"
    ):
        trainer = fit([watch], tmp_path)
    assert trainer.global_step == 6
    assert steps(watch) == [0, 2, 6]
    with pytest.raises(DataError, match="out of luck"):
        fit([monitor(forward=forward, on_error="raise")], tmp_path)


def test_a_start_that_could_not_be_measured_is_not_replaced_by_a_later_state(tmp_path):
    def forward(module, batch):
        if module.trainer.global_step == 0:
            raise torch.OutOfMemoryError("too early")
        return module(batch[0])

    watch = monitor(forward=forward, on_error="warn")
    with pytest.warns(HRSAWarning) as caught:
        fit([watch], tmp_path)
    said = " ".join(str(warning.message) for warning in caught)
    assert "too early), first at step 0" in said
    assert "the evaluation before the first step failed" in said
    assert not any(tag.startswith("similarity/cka/") for r in history(watch) for tag in r["values"])


def test_chance_levels_are_recorded(tmp_path):
    watch = monitor(metrics=["cka", "knn_overlap_10"])
    fit([watch], tmp_path)
    records = history(watch)
    levels = [record["chance"]["similarity/knn_overlap_10/output"] for record in records]
    assert levels == pytest.approx([levels[0]] * 4)
    assert 0 < levels[0] < 0.3


def test_the_budget_spaces_evaluations_and_says_so(tmp_path):
    watch = monitor(every_n_train_steps=1, max_overhead=0.001, heatmap_every_n_evaluations=1)
    with pytest.warns(HRSAWarning, match="max_overhead") as caught:
        fit([watch], tmp_path, max_steps=20)
    said = [str(warning.message) for warning in caught]
    assert any("evaluations are put off" in text for text in said)
    assert any("no pictures" in text for text in said)
    assert not list(tmp_path.glob("*.png"))
    assert steps(watch) == [0, 20]
    assert all(record["values"]["similarity/seconds"] > 0 for record in history(watch))


def test_what_is_over_the_share_whatever_is_put_off_is_said(tmp_path):
    watch = monitor(max_overhead=0.001)
    with pytest.warns(HRSAWarning, match="max_overhead") as caught:
        fit([watch], tmp_path, max_steps=3)
    assert len([w for w in caught if "took more than" in str(w.message)]) == 1


def test_fsdp_of_the_first_kind_is_refused_at_setup():
    pl = flavor()
    trainer = SimpleNamespace(strategy=pl.strategies.FSDPStrategy())
    with pytest.raises(ConfigError, match="shard with ModelParallelStrategy"):
        monitor().setup(trainer, classifier(pl), "fit")


def test_options_of_capture_reach_it(tmp_path):
    watch = monitor(
        layers=["encoder.layers.0"],
        pooling=lambda activation, mask: activation[:, :2],
        limit_probe_batches=2,
        num_jackknife_groups=5,
    )
    trainer = fit([watch], tmp_path, max_steps=2)
    values = history(watch)[-1]["values"]
    assert {"cka", "cka_low", "cka_high"} <= {tag.split("/")[1] for tag in values}
    assert len(watch.evaluator.extractor.probes[""].order) == 2
    assert trainer.global_step == 2


def test_what_a_monitor_does_after_the_last_step_is_counted(tmp_path):
    class Slow(SimilarityMonitor):
        def conclude(self):
            time.sleep(0.02)

        def finish(self, trainer):
            self.before = self.budget.spent
            time.sleep(0.03)

    watch = Slow("initial", projects.probe_batches(), metrics=["cka"], on_error="raise")
    fit([watch], tmp_path, max_steps=1)
    assert watch.budget.spent >= watch.before + 0.05


def test_labeled_probes_and_a_reference_of_another_width(tmp_path):
    watch = monitor(
        nn.Sequential(nn.Linear(6, 4)),
        layers=["output"],
        metrics=None,
        label_key=1,
        by_label=True,
    )
    with pytest.warns(HRSAWarning) as caught:
        fit([watch], tmp_path, max_steps=1)
    tags = set(history(watch)[-1]["values"])
    assert {"similarity/cka/output", "similarity/cka/output/0"} <= tags
    assert not any("/probe_" in tag or "/dimension_" in tag for tag in tags)
    for name in ("probe_transfer", "dimension_correlation"):
        told = [w for w in caught if f"{name} needs equal widths" in str(w.message)]
        assert len(told) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": None}, "probes: expected the inputs"),
        ({"layers": []}, "layers: expected a list"),
        ({"layers": "output"}, "layers: expected a list"),
        ({"store": "tape"}, "store: expected"),
        ({"on_error": "ignore"}, "on_error: expected"),
        ({"every_n_train_steps": 0}, "every_n_train_steps"),
        ({"metrics": ["ckaa"]}, "no 'ckaa'"),
        ({"batch_size": 0}, "batch_size"),
        ({"pooling": "max"}, "pooling: expected none, mean, .* got 'max'"),
        ({"pooling": {"output": "max"}}, "pooling: expected"),
    ],
)
def test_mistakes_show_before_a_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        monitor(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["encoder.layer.*"]}, "nearest names: .*encoder.layers"),
        ({"arms": "heads"}, "'heads' to name an nn.ModuleDict"),
        ({"reference": "arm:x"}, "no arm 'x'"),
        ({"probes": ["text"]}, "texts need tokenizer="),
        ({"probes": []}, "at least one batch"),
        ({"probes": "val_dataloader"}, "got 'val_dataloader'; there is train_dataloader"),
    ],
)
def test_mistakes_show_at_the_start_of_a_fit_whatever_on_error_says(tmp_path, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        fit([monitor(**{"on_error": "warn", **options})], tmp_path)
