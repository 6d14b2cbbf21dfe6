"""The case study's training: what it trains on, and that a stopped run goes on exactly."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from smollm2 import accuracy, backbones, problems, study, tables, training

from hrsa_lightning.config import load_config
from hrsa_lightning.config.build import build_callbacks
from hrsa_lightning.similarity.history import Evaluation, append_record
from hrsa_lightning.similarity.measurement import MEAN_OVER_LAYERS, OUTPUT, Measurement

BASE = Path(__file__).resolve().parents[2] / "hrsa_lightning" / "assets" / "tiny" / "base"
RLVR = replace(training.RLVR, num_prompts=2, num_generations=4, max_steps=3, checkpoint_every=1)
SFT = replace(
    training.SFT, num_prompts=2, num_generations=1, rows_per_pass=1, max_steps=3, checkpoint_every=1
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("")
    return tmp_path


def _adapters(work: Path, name: str) -> dict:
    return load_file(work / f"{name}.training" / "final" / "adapter_model.safetensors")


def test_worked_traces_end_in_the_right_answer() -> None:
    drawn = problems.draw_problems(random.Random(0), 200, held_out=False)
    for problem in drawn:
        assert problems.is_correct(problem.answer, problem.trace)
        for step in problem.steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right)
        assert problem.steps[-1].endswith(f"= {problem.answer}")
    held_out = {problem.question for problem in problems.held_out_problems(200)}
    assert len(held_out) == 200
    assert not held_out & {problem.question for problem in drawn}


def test_a_stopped_run_goes_on_to_the_same_adapters(work: Path, monkeypatch) -> None:
    # The tiny base answers nothing right; half of all answers count, so that there is a gradient.
    monkeypatch.setattr(training, "is_correct", lambda answer, text: len(text) % 2 == 0)
    training.train_rlvr(work, RLVR)
    whole = _adapters(work, "rlvr")
    shutil.rmtree(work / "rlvr.training")
    training.train_rlvr(work, replace(RLVR, max_steps=1))
    assert any((whole[key] != value).any() for key, value in _adapters(work, "rlvr").items())
    training.train_rlvr(work, RLVR)
    again = _adapters(work, "rlvr")
    assert all((whole[key] == again[key]).all() for key in whole)
    record = json.loads((work / "rlvr" / "training.json").read_text())
    assert record["steps"] == 3

    training.train_sft(work, SFT)
    losses = (work / "sft.training" / "log.jsonl").read_text().splitlines()
    tokens = [json.loads(line)["tokens"] for line in losses]
    assert sum(tokens[:-1]) < record["tokens"]


def test_accuracies_go_on_after_the_last_batch(work: Path, monkeypatch) -> None:
    monkeypatch.setattr(accuracy, "NUM_PROBLEMS", 4)
    monkeypatch.setattr(accuracy, "_BATCH_SIZE", 2)
    accuracy.evaluate(work, ["base"])
    path = work / "accuracy.base.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:2]))
    accuracy.evaluate(work, ["base"])
    assert path.read_text() == whole


def test_shipped_adapters_are_small_and_name_no_folder() -> None:
    for folder in backbones.SHIPPED.iterdir():
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        assert all(path.stat().st_size < 5e6 for path in folder.iterdir())
        assert not json.loads((folder / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]


def test_the_study_is_a_recipe_that_train_takes() -> None:
    config = load_config("smollm2-135m", list(study.MEASURED))
    build_callbacks(config)
    assert list(config.callbacks["similarity"]["metrics"]) == list(tables.METRICS)


def test_the_table_has_every_run_before_and_after(tmp_path: Path, capsys) -> None:
    for seed, after in ((1, 0.5), (2, 0.75)):
        run = tmp_path / "runs" / f"seed_{seed}" / "name" / "time"
        run.mkdir(parents=True)
        (run / "summary.json").write_text("{}")
        for step, value in ((0, 0.25), (100, after)):
            found = [
                Measurement(metric, value, 0.0, "", arm, tables.REFERENCE, layer, null_95=0.125)
                for metric in tables.METRICS
                for arm in tables.ARMS
                for layer in (OUTPUT, MEAN_OVER_LAYERS)
            ]
            found = [m._replace(low=value - 0.1, high=value + 0.1) for m in found]
            ranked = [
                Measurement(tables.RETRIEVAL, value, 0.01, arm=arm)
                for arm in (tables.REFERENCE, *tables.ARMS)
            ]
            for name, measured in (("similarity", found), ("retrieval", ranked)):
                append_record(run / f"{name}.jsonl", Evaluation(step, measured))
    tables.write_tables(tmp_path)
    written = (tmp_path / "tables.md").read_text()
    assert capsys.readouterr().out.strip() == written.strip()
    cell = "0.250 ± 0.100 → 0.500 / 0.750 ± 0.100"
    assert written.count(cell) == 2 * len(tables.METRICS) * len(tables.ARMS)
    assert written.count("| 0.250 → 0.500 / 0.750 |") == 3  # cells between share a bar
