import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.evaluate import tables
from hrsa_lightning.evaluate.scoring import TaskScores
from hrsa_lightning.evaluate.tables import EvaluatedArm, find_arm, group_models
from hrsa_lightning.io.files import read_json, write_json
from hrsa_lightning.runs.encoder import ModelReference
from hrsa_lightning.runs.resolve import Source


def _arm(name, *models, origin="x"):
    references = tuple(ModelReference(Source(model, Path(model), model)) for model in models)
    return EvaluatedArm(name, references, origin)


def _scores(task, *units, unit="query"):
    score = sum(units) / len(units)
    return TaskScores(task, "ndcg@10", {"ndcg@10": score, "mrr@10": score / 2}, units, unit)


BASE, RLVR = _arm("base", "b1", "b2"), _arm("rlvr", "r1", "r2", origin="y")
ONE_TASK = {
    "b1": [_scores("t", 0.0, 0.2, 0.4)],
    "b2": [_scores("t", 0.2, 0.4, 0.6)],
    "r1": [_scores("t", 0.1, 0.4, 0.4)],
    "r2": [_scores("t", 0.3, 0.6, 0.9)],
}


def test_seeds_give_mean_and_deviation():
    mean = tables.task_means(BASE, ONE_TASK)["t"]
    assert (mean.mean, mean.num_seeds) == (pytest.approx(0.3), 2)
    assert mean.std == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert math.isnan(tables.mean_over_seeds([0.5]).std)


def test_one_task_is_paired_over_its_queries():
    row = tables.difference(RLVR, BASE, ONE_TASK)
    assert (row.num_pairs, row.unit, row.control) == (3, "query", False)
    assert row.mean == pytest.approx(np.mean([0.1, 0.2, 0.15]))
    assert row.p == 0.25  # all of three pairs are above: 2 of 8 sign patterns
    assert 0.1 <= row.low < row.mean < row.high <= 0.2


def test_several_tasks_are_paired_over_tasks():
    results = {
        name: [*scores, *(_scores(f"u{n}", 0.1 * n, unit="subset") for n in range(3))]
        for name, scores in ONE_TASK.items()
    }
    results["r1"][1] = _scores("u0", 0.5, 0.7, unit="subset")
    row = tables.difference(RLVR, BASE, results)
    assert (row.num_pairs, row.unit) == (4, "task")
    assert row.mean == pytest.approx((0.15 + 0.3) / 4)
    means = tables.task_means(RLVR, results)
    assert list(means) == ["t", "u0", "u1", "u2", "mean of tasks"]
    assert means["mean of tasks"].mean == pytest.approx((0.45 + 0.3 + 0.1 + 0.2) / 4)


def test_null_effect_is_told_apart():
    control = _arm("base_seed2", "c1", "c2")
    results = {**ONE_TASK, "c1": ONE_TASK["b2"], "c2": ONE_TASK["b1"]}
    rows = tables.all_differences([BASE, control, RLVR], BASE, results)
    assert [(row.arm, row.baseline, row.control) for row in rows] == [
        ("rlvr", "base", False),
        ("base_seed2", "base", True),
        ("b2", "b1", True),
    ]
    assert rows[1].mean == pytest.approx(0)
    assert rows[2].mean == pytest.approx(0.2)
    lines = tables.difference_lines(rows)
    assert [line.count("null effect") for line in lines] == [0, 0, 0, 1, 1]
    assert "3 queries" in lines[2]


def test_tables_are_markdown_and_json(tmp_path):
    lines = tables.score_lines([BASE, RLVR], ONE_TASK)
    assert "base (2 seeds)" in lines[0]
    assert "t (ndcg@10)" in lines[2]
    assert f"0.3000 ± {2**0.5 / 10:.4f}" in lines[2]
    assert len({len(line) for line in lines}) == 1
    assert "mrr@10" in tables.metric_lines([BASE, RLVR], ONE_TASK)[0]
    subsets = {name: [_scores("t", 0.1, unit="subset")] for name in ONE_TASK}
    assert tables.metric_lines([BASE], subsets) == []
    content = tables.as_json([BASE], subsets, tables.all_differences([BASE], BASE, subsets))
    write_json(tmp_path / "results.json", content)
    assert read_json(tmp_path / "results.json")["differences"][0]["p"] is None


def test_runs_that_differ_in_seeds_only_are_one_arm(runs):
    from hrsa_lightning.runs.encoder import find_models

    models = [model for run in runs for model in find_models(str(run))]
    arms = group_models(models)
    assert [(arm.name, len(arm.models)) for arm in arms] == [
        ("base", 2),
        ("rlvr", 2),
        ("base_seed2", 2),
    ]
    assert arms[2].is_control_of(arms[0])
    assert not arms[1].is_control_of(arms[0])
    assert not arms[0].is_control_of(arms[0])
    with pytest.raises(ConfigError, match="given twice"):
        group_models([*models, models[0]])
    with pytest.raises(ConfigError, match=r"no arm 'rlvrr'. Did you mean 'rlvr'\?"):
        find_arm("rlvrr", arms)


def test_runs_of_different_recipes_are_different_arms(runs, tmp_path):
    from hrsa_lightning.runs.encoder import find_models

    other = tmp_path / "other"
    other.mkdir()
    text = (runs[1] / "config.yaml").read_text().replace("lr: 0.002", "lr: 0.001")
    (other / "config.yaml").write_text(text)
    (other / "adapters").symlink_to(runs[1] / "adapters")
    models = [model for run in (runs[0], other) for model in find_models(f"{run}:base")]
    arms = group_models(models)
    assert [arm.name for arm in arms] == [f"{runs[0]}:base", f"{other}:base"]
    assert not arms[1].is_control_of(arms[0])


def test_steps_of_a_run_are_no_seeds(runs):
    from hrsa_lightning.runs.encoder import find_models

    (last,) = find_models(f"{runs[0]}:base")
    steps = [
        replace(
            last,
            source=replace(
                last.source,
                spec=f"{checkpoint}:base",
                arm=replace(last.source.arm, checkpoint=checkpoint),
            ),
        )
        for checkpoint in (runs[0] / "checkpoints" / "step_000005", runs[1] / "step_000005")
    ]
    arms = group_models([last, *steps])
    assert [[model.name for model in arm.models] for arm in arms] == [
        [last.name], [step.name for step in steps]
    ]  # fmt: skip
    assert not arms[1].is_control_of(arms[0])
