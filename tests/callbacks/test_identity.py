"""Whose files are whose: runs one after the other, at once, moved, and resumed from elsewhere."""

import csv
import importlib.util
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch.loggers import (
    CSVLogger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrsa_lightning.callbacks import RepresentationRecorder
from hrsa_lightning.errors import HRSAWarning
from hrsa_lightning.similarity import RepresentationTrace
from hrsa_lightning.similarity.history import read_evaluations
from tests.callbacks import projects
from tests.callbacks.projects import fit
from tests.callbacks.test_resume import monitor, recorder, run


class _Remote(Logger):
    """What W&B and MLflow have in common: an id that the experiment brings, and no `log_dir`."""

    runs = 0

    def __init__(self, save_dir, name):
        super().__init__()
        self._save_dir, self._name, self._id = save_dir, name, None
        self.logged = []

    @property
    def experiment(self):
        if self._id is None:
            type(self).runs += 1
            self._id = f"id{self.runs}"

    @property
    def save_dir(self):
        return self._save_dir

    @property
    def name(self):
        return self._name

    @property
    def version(self):
        return self._id

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


LOGGERS = {
    "TensorBoard": lambda folder: TensorBoardLogger(folder),
    "CSV": lambda folder: CSVLogger(folder),
    "CSV of one version": lambda folder: CSVLogger(folder, version="same"),
    "W&B, offline": lambda _: _Remote(".", "project"),
    "MLflow": lambda folder: _Remote(str(folder / "mlruns"), "0"),
    "TensorBoard and CSV": lambda folder: [TensorBoardLogger(folder), CSVLogger(folder)],
    "none": lambda _: False,
}
REAL = {
    "wandb": lambda folder: WandbLogger(save_dir=folder, project="project", offline=True),
    "mlflow": lambda folder: MLFlowLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db"),
    "wandb and mlflow": lambda folder: [REAL["wandb"](folder), REAL["mlflow"](folder)],
}
"""By the package that each needs: `pip install wandb mlflow`, `pytest -m slow` with this file."""


def _real(name):
    missing = any(importlib.util.find_spec(each) is None for each in name.split(" and "))
    skip = pytest.mark.skipif(missing, reason=f"{name} is not installed")
    return pytest.param(name, marks=[pytest.mark.slow, skip, pytest.mark.filterwarnings("ignore")])


def _finish():
    """End the run of W&B that new loggers of this process would go on with."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def _steps(watch):
    """Steps of a history, all of one run."""
    found = read_evaluations(watch.history_path)
    assert {e.run for e in found} == {watch.run}
    return [e.step for e in found]


@pytest.mark.parametrize("name", [*LOGGERS, *map(_real, REAL)])
@pytest.mark.filterwarnings("ignore:.*has files of another run", "ignore:.*exists and is not empty")
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_second_run_leaves_the_first_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watches = [monitor(every_n_train_steps=n) for n in (3, 2)]
    recorders = [recorder(every_n_train_steps=n) for n in (3, 2)]
    for watch, record in zip(watches, recorders, strict=True):
        fit([watch, record], tmp_path, logger=(LOGGERS | REAL)[name](tmp_path))
        _finish()
        assert record.folder == watch.folder
    assert [_steps(watch) for watch in watches] == [[0, 3, 6], [0, 2, 4, 6]]
    assert watches[0].folder != watches[1].folder
    assert watches[0].run != watches[1].run
    assert watches[0].folder.resolve() not in (tmp_path, tmp_path / "mlruns")
    for record, steps in zip(recorders, ([0, 3, 6], [0, 2, 4, 6]), strict=True):
        assert RepresentationTrace(record.folder / "trace").steps == steps


TAG = "similarity/cka/output"


def _values_of_wandb(folder):
    """The history in the log of a run that was offline: blocks of 32 KiB, records in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while log.stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)  # it is written by another process, after the end of the run
    content, position, parts = log.read_bytes(), 7, []
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            items = Record.FromString(b"".join(parts)).history.item
            yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            parts = []


def _values_in(logger):
    """Steps and values of `TAG` as a logger keeps them."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.flush()
        found = EventAccumulator(logger.log_dir).Reload().Scalars(TAG)
        return [(event.step, event.value) for event in found]
    if isinstance(logger, CSVLogger):
        with Path(logger.log_dir, "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get(TAG)]
        return [(int(row["step"]), float(row[TAG])) for row in rows]
    if isinstance(logger, WandbLogger):
        rows = [row for row in _values_of_wandb(Path(logger.save_dir)) if TAG in row]
        return [(row["trainer/global_step"], row[TAG]) for row in rows]
    if isinstance(logger, MLFlowLogger):
        found = logger.experiment.get_metric_history(logger.run_id, TAG)
        return [(metric.step, metric.value) for metric in found]
    return [(step, metrics[TAG]) for step, metrics in logger.logged if TAG in metrics]


def _pictures_in(logger):
    """Names of the heatmaps that a logger keeps, `None` for one that takes no pictures."""
    if isinstance(logger, TensorBoardLogger):
        tags = EventAccumulator(logger.log_dir).Reload().Tags()["images"]
    elif isinstance(logger, WandbLogger):
        media = Path(logger.save_dir).glob("wandb/offline-run-*/files/media/images/**/*.png")
        tags = [path.as_posix() for path in media]
    elif isinstance(logger, MLFlowLogger):
        tags = [found.path for found in logger.experiment.list_artifacts(logger.run_id)]
    else:
        return None
    return [tag for tag in tags if "heatmap" in tag]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("TensorBoard", "CSV"),
        ("CSV", "MLflow"),
        ("W&B, offline", "TensorBoard"),
        *(
            pytest.param(*pair, marks=_real(" and ".join({*pair} & {*REAL})).marks)
            for pair in (("wandb", "mlflow"), ("mlflow", "TensorBoard"), ("CSV", "wandb"))
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_two_loggers_at_once_have_the_values_and_share_a_folder(
    first, second, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    loggers = [(LOGGERS | REAL)[name](tmp_path) for name in (first, second)]
    watch = monitor(heatmap_every_n_evaluations=1)
    fit([watch], tmp_path, logger=loggers)
    _finish()
    history = read_evaluations(watch.history_path)
    values = [
        (e.step, m.value)
        for e in history
        for m in e.measurements
        if (m.metric, m.layer) == ("cka", "output")
    ]
    assert [step for step, _ in values] == [0, 3, 6]
    for logger in loggers:
        found = _values_in(logger)
        assert [step for step, _ in found] == [0, 3, 6], logger
        assert [v for _, v in found] == pytest.approx([v for _, v in values], rel=1e-5), logger
        assert _pictures_in(logger) != [], logger
    front = loggers[0]
    place = (front.save_dir or tmp_path, str(front.name), str(front.version))
    assert watch.folder == Path(getattr(front, "log_dir", None) or Path(*place))
    names = {path.name for path in watch.folder.iterdir()}
    assert {"run_id", "similarity.jsonl", "similarity.png", "similarity_heatmap.png"} <= names
    assert len([*tmp_path.rglob("similarity.jsonl")]) == 1


def test_a_run_without_logger_goes_on_in_its_folder(tmp_path):
    killed, resumed = monitor(), monitor()
    trainer = fit([killed], tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    fit([monitor()], tmp_path)
    fit([resumed], tmp_path, ckpt_path=tmp_path / "x.ckpt", max_steps=9)
    assert resumed.folder == killed.folder == tmp_path / "lightning_logs" / "version_0"
    assert _steps(resumed) == [0, 3, 6, 9]


def test_explicit_files_of_another_run_are_kept(tmp_path):
    paths = {"history": tmp_path / "own.jsonl"}
    first, second = monitor(**paths), monitor(**paths)
    traces = [recorder(tmp_path / "trace") for _ in range(2)]
    fit([first, traces[0]], tmp_path)
    with pytest.warns(HRSAWarning, match="of another run; that of this one") as caught:
        fit([second, traces[1]], tmp_path).save_checkpoint(tmp_path / "x.ckpt")
    assert len([w for w in caught if w.category is HRSAWarning]) == 2
    assert (_steps(first), _steps(second)) == ([0, 3, 6], [0, 3, 6])
    assert RepresentationTrace(tmp_path / "trace").steps == [0, 3, 6]
    assert RepresentationTrace(tmp_path / "trace-v1").steps == [0, 3, 6]
    third = monitor(**paths)
    later = {"ckpt_path": tmp_path / "x.ckpt", "max_steps": 9}
    with pytest.warns(HRSAWarning, match="of another run; that of this one"):
        fit([third, recorder(tmp_path / "trace")], tmp_path, **later)
    assert RepresentationTrace(tmp_path / "trace-v1").steps == [0, 3, 6, 9]
    assert third.history_path.name == "own-v1.jsonl"
    assert (_steps(first), _steps(third)) == ([0, 3, 6], [0, 3, 6, 9])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("store", ["cpu", "disk"])
@pytest.mark.parametrize("move", ["moved", "copied"])
def test_a_moved_run_goes_on_with_its_past(move, store, tmp_path):
    """The paths that the checkpoint holds are gone, or those of the original."""
    old, new = tmp_path / "old" / "project", tmp_path / "new"
    killed = run(old, stop_at=12, store=store, callbacks=[recorder()])
    (shutil.move if move == "moved" else shutil.copytree)(old, new)
    before = killed.history_path.read_bytes() if move == "copied" else None
    traced, path = recorder(), new / "saved/step=10.ckpt"
    resumed = run(new, ckpt_path=path, store=store, callbacks=[traced])
    assert _steps(resumed) == [0, 3, 6, 9, 12, 14]
    last = read_evaluations(resumed.history_path)[-1]
    assert any(m.reference == "initial" for m in last.measurements)
    assert new in resumed.history_path.parents
    if before is not None:
        assert killed.history_path.read_bytes() == before
    assert RepresentationTrace(traced.folder / "trace").steps == [0, 3, 6, 9, 12, 14]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_goes_on_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("here"), stop_at=12, store="disk")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = run(tmp_path / "here", ckpt_path=tmp_path / "here/saved/step=10.ckpt", store="disk")
    assert _steps(resumed) == [0, 3, 6, 9, 12, 14]


def test_a_history_that_is_gone_is_said(tmp_path):
    killed = run(tmp_path, stop_at=12)
    shutil.rmtree(killed.folder)
    with pytest.warns(HRSAWarning, match=r"the history begins at step 10: .* is gone"):
        resumed = run(tmp_path, ckpt_path=tmp_path / "saved/step=10.ckpt")
    assert _steps(resumed) == [12, 14]


_RUN = """
import sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import lightning.pytorch as pl
from tests.callbacks.projects import fit
from tests.callbacks.test_identity import LOGGERS, REAL
from tests.callbacks.test_resume import monitor
folder, every, name = sys.argv[1:]
class Slow(pl.Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.1)
logger = (LOGGERS | REAL)[name](Path(folder))
watch = monitor(every_n_train_steps=int(every))
print("ready", flush=True)
sys.stdin.readline()
fit([watch, Slow()], folder, max_steps=12, logger=logger)
print(watch.history_path)
"""


@pytest.mark.parametrize(
    "name",
    [
        *("CSV of one version", "none"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("TensorBoard", "CSV")),
        pytest.param("TensorBoard and CSV", marks=pytest.mark.slow),
        *map(_real, REAL),
    ],
)
def test_two_runs_at_once_do_not_mix(name, tmp_path):
    if "mlflow" in name:  # its database and experiment, which two cannot make at once
        _ = REAL["mlflow"](tmp_path).experiment
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(tmp_path), str(every), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for every in (2, 3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = []
    for process in processes:
        history = process.communicate(timeout=300)[0].strip().splitlines()[-1]
        evaluations = read_evaluations(history)
        assert len({e.run for e in evaluations}) == 1
        found.append([e.step for e in evaluations])
    assert found == [[0, 2, 4, 6, 8, 10, 12], [0, 3, 6, 9, 12]]


def test_other_callbacks_share_the_folder(tmp_path):
    record = RepresentationRecorder("trace", projects.INPUTS)
    watch = monitor()
    fit([watch, record], tmp_path, logger=CSVLogger(tmp_path))
    assert (watch.folder, watch.run) == (record.folder, record.run)
    assert (watch.folder / "run_id").read_text().strip() == watch.run
