"""The numbers behind heatmaps and spectra, which the report draws."""

import math

import pytest
import torch
from torch import nn

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.callbacks.figures import Figures
from hrsa_lightning.errors import ConfigError, HRSAWarning
from hrsa_lightning.functional import (
    dimension_correlation_heatmap,
    linear_cka_heatmap,
    orthogonal_procrustes,
)
from hrsa_lightning.report.experiments import read_run
from hrsa_lightning.similarity.history import details_path, read_details
from tests.callbacks import projects
from tests.callbacks.projects import flavor


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing is slow, and tested elsewhere."""
    monkeypatch.setattr(Figures, "publish", lambda *args: None)
    monkeypatch.setattr(Figures, "finish", lambda *args: None)


def monitor(**options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["first", "output"],
        "every_n_train_steps": 2,
        "metrics": ["cka", "inverse_row_entropy"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 2,
    }
    return SimilarityMonitor("initial", **{**defaults, **options})


def details(watch, kind=None):
    path = details_path(watch.history_path)
    records = read_details(path) if path.exists() else []
    return [record for record in records if kind in (None, record.kind)]


def steps(watch, kind):
    return [record.step for record in details(watch, kind)]


def narrowing(pl):
    """Every layer is narrower than the one before, so that rotations are unique."""

    class Narrowing(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    return Narrowing()


def widening(pl):
    """More features at the output than its layers have dimensions."""
    module = narrowing(pl)
    module.second = nn.Linear(5, 8)
    return module


def fit(callbacks, folder, **options):
    return projects.fit(callbacks, folder, **{"make": narrowing, **options})


@torch.no_grad()
def states(module):
    first = module.first(projects.INPUTS)
    return {"first": first, "output": module.second(torch.tanh(first))}


def test_records_hold_what_the_functions_give(tmp_path):
    pl = flavor()
    pl.seed_everything(3, verbose=False)
    start = states(narrowing(pl))
    watch = monitor()
    now = states(fit([watch], tmp_path).lightning_module)

    record = details(watch, "cka")[-1]
    assert record[:2] == (6, "cka")
    assert (record.monitor, record.probes) == ("similarity", "")
    assert (record.arm, record.reference) == ("", "initial")
    assert record.rows == record.columns == list(start)
    expected = linear_cka_heatmap(list(now.values()), list(start.values()))
    torch.testing.assert_close(torch.tensor(record.values).double(), expected, atol=1e-5, rtol=0)

    x, y = now["output"], start["output"]
    result = orthogonal_procrustes(x, y, "in_sample", return_rotation=True)
    shares = result.rotation.square()
    rows = (-(shares * shares.log()).sum(1) / math.log(3)).sort().values
    found = record_of(watch, "row_entropy").values
    assert len(found) == 101
    three = torch.tensor([found[percentile] for percentile in (0, 50, 100)]).double()
    torch.testing.assert_close(three, rows, atol=1e-5, rtol=0)
    values = record_of(watch, "singular_values").values
    assert values == sorted(values, reverse=True)
    sizes = [torch.linalg.vector_norm((m - m.mean(0)).double()) for m in (x, y)]
    cosine = sum(values) * (len(x) - 1) / (sizes[0] * sizes[1])
    assert cosine.item() == pytest.approx(result.global_cosine.item(), rel=1e-4)


def record_of(watch, kind):
    record = details(watch, kind)[-1]
    assert record.layer == "output"
    return record


def test_they_are_there_at_the_first_and_the_last_evaluation_and_the_rhythm(tmp_path):
    watch = monitor(probes={"a": projects.probe_batches(), "b": projects.probe_batches()[::-1]})
    fit([watch], tmp_path)
    for kind in ("cka", "singular_values", "row_entropy"):
        assert steps(watch, kind) == [0, 0, 4, 4, 6, 6]
    assert {record.probes for record in details(watch)} == {"a", "b"}
    found = read_run(watch.folder)
    assert [*found.details] == details(watch)
    assert list(found.seconds) == ["similarity"]


def even(pl):
    """Layers of one width, whose equal dimensions can be compared."""
    module = narrowing(pl)
    module.second = nn.Linear(5, 5)
    return module


def test_maps_that_were_asked_for(tmp_path):
    kinds = ["cka_standardized", "dimension_correlation"]
    watch = monitor(metrics=["cka"], heatmaps=kinds)
    pl = flavor()
    pl.seed_everything(3, verbose=False)
    start = states(even(pl))
    now = states(fit([watch], tmp_path, make=even).lightning_module)
    assert [record.kind for record in details(watch)] == kinds * 3
    sides = [list(now.values()), list(start.values())]
    for kind, expected in (
        ("cka_standardized", linear_cka_heatmap(*sides, standardize=True)),
        ("dimension_correlation", dimension_correlation_heatmap(*sides)),
    ):
        found = torch.tensor(details(watch, kind)[-1].values).double()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"heatmaps: expected a list of some of cka, .*'knn'"):
        monitor(heatmaps=["knn"])


def test_what_was_not_asked_for_is_not_computed(tmp_path):
    plain = monitor(metrics=["cka"])
    fit([plain], tmp_path / "a")
    assert {record.kind for record in details(plain)} == {"cka"}
    single = monitor(layers=["first"])
    fit([single], tmp_path / "b", max_steps=2)
    assert {record.kind for record in details(single)} == {"singular_values", "row_entropy"}
    assert {record.layer for record in details(single)} == {"first"}
    none = monitor(heatmap_every_n_evaluations=0)
    fit([none], tmp_path / "c", max_steps=2)
    assert details(none) == []


def test_a_rotation_that_is_not_unique_has_no_row_entropy(tmp_path):
    watch = monitor()
    with pytest.warns(HRSAWarning, match="unique"):
        fit([watch], tmp_path, max_steps=1, make=widening)
    assert {record.kind for record in details(watch)} == {"cka", "singular_values"}
    assert len(details(watch, "singular_values")[0].values) == 5, "as many as are settled"


def test_what_is_not_finite_is_null(tmp_path):
    def forward(module, batch):
        return module(batch[0]) / 0

    watch = monitor(forward=forward)
    with pytest.warns(HRSAWarning, match="not finite"):
        fit([watch], tmp_path, max_steps=1)
    assert {record.kind for record in details(watch)} == {"cka"}
    assert "null" in details_path(watch.history_path).read_text()
    grid = details(watch)[0].values
    assert all(math.isnan(value) for value in grid[1])
    assert grid[0][0] == pytest.approx(1)


def test_the_budget_keeps_the_first_and_the_last(tmp_path):
    watch = monitor(every_n_train_steps=1, max_overhead=0.001, heatmap_every_n_evaluations=1)
    with pytest.warns(HRSAWarning, match="max_overhead"):
        fit([watch], tmp_path, max_steps=8)
    assert steps(watch, "cka") == [0, 8]


def test_no_doubles_after_a_kill(tmp_path):
    pl = flavor()

    class KilledError(Exception):
        pass

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 11:
                raise KilledError

    def run(watch, *callbacks, **options):
        save = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=6, filename="{step}")
        logger = pl.loggers.CSVLogger(tmp_path)
        options |= {"logger": logger, "enable_checkpointing": True, "max_steps": 14}
        fit([watch, *callbacks, save], tmp_path, **options)

    killed, resumed = monitor(), monitor()
    with pytest.raises(KilledError):
        run(killed, Kill())
    assert steps(killed, "cka") == [0, 4, 8], "the last only at the end of a fit"
    run(resumed, ckpt_path=tmp_path / "step=6.ckpt")
    assert resumed.folder != killed.folder, "the logger made a new version"
    for kind in ("cka", "row_entropy"):
        assert steps(resumed, kind) == [0, 4, 8, 12, 14]
    assert details(resumed)[:2] == details(killed)[:2]


def test_a_second_fit_begins_anew(tmp_path):
    watch = monitor(history=tmp_path / "own.jsonl")
    fit([watch], tmp_path)
    with pytest.warns(HRSAWarning, match=r"own\.jsonl is of another run; that of this one: "):
        fit([watch], tmp_path, max_steps=2)
    assert steps(watch, "cka") == [0, 2]
    assert watch.history_path.name == "own-v1.jsonl", "the first fit keeps its history"
