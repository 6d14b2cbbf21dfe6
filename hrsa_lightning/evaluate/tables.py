"""Scores of arms over seeds, differences between arms, and the tables that show both."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.evaluate.arms import EvaluatedArm
from hrsa_lightning.evaluate.scores import TaskScores
from hrsa_lightning.evaluate.statistics import bootstrap_interval, paired_p_value

Results = dict[str, list[TaskScores]]
"""Scores of every task, by the name of the model."""

_PLURALS = {"task": "tasks", "query": "queries", "subset": "subsets"}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with its standard deviation (n - 1; NaN for one seed)."""

    mean: float
    std: float
    num_seeds: int

    def __str__(self) -> str:
        shown = f"{self.mean:.4f}"
        return shown if math.isnan(self.std) else f"{shown} ± {self.std:.4f}"


@dataclass(frozen=True)
class Difference:
    """An arm's scores less the baseline's.

    Attributes:
        arm: Name of the arm.
        baseline: Name of the other.
        mean: Mean difference over the pairs.
        low: Lower end of its 95 % bootstrap interval over the pairs.
        high: Upper end.
        p: Of the sign-flip test over the pairs, see `paired_p_value`.
        num_pairs: How many pairs there are.
        unit: What is paired: "task", "query" or "subset".
        control: Only chance makes the two different: one backbone, one recipe, another seed. It
            shows how large a difference is that means nothing.
    """

    arm: str
    baseline: str
    mean: float
    low: float
    high: float
    p: float
    num_pairs: int
    unit: str
    control: bool


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and standard deviation.

    Example:
        >>> print(mean_over_seeds([0.5, 0.7]), "|", mean_over_seeds([0.5]))
        0.6000 ± 0.1414 | 0.5000
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Mean(float(np.mean(values)), std, len(values))


def task_means(arm: EvaluatedArm, results: Results) -> dict[str, Mean]:
    """The main score of each task over the arm's seeds, and their mean as "mean of tasks"."""
    per_seed = [[scores.score for scores in results[model.name]] for model in arm.models]
    names = [scores.task for scores in results[arm.models[0].name]]
    columns = zip(*per_seed, strict=True)
    means = {name: mean_over_seeds(values) for name, values in zip(names, columns, strict=True)}
    if len(names) > 1:
        means["mean of tasks"] = mean_over_seeds([float(np.mean(seed)) for seed in per_seed])
    return means


def paired_units(arm: EvaluatedArm, results: Results) -> tuple[NDArray[np.float64], str]:
    """What a test pairs: tasks if there are several, else the one task's queries or subsets.

    Returns:
        One value per unit, averaged over the seeds, and what a unit is.
    """
    runs = [results[model.name] for model in arm.models]
    if len(runs[0]) > 1:
        return np.mean([[scores.score for scores in run] for run in runs], axis=0), "task"
    return np.mean([run[0].units for run in runs], axis=0), runs[0][0].unit


def difference(
    arm: EvaluatedArm, baseline: EvaluatedArm, results: Results, name: str | None = None
) -> Difference:
    """Compare two arms on the same tasks; `name` stands for the arm's own."""
    values, unit = paired_units(arm, results)
    others, _ = paired_units(baseline, results)
    paired = values - others
    low, high = bootstrap_interval(paired)
    return Difference(
        arm=name or arm.name,
        baseline=baseline.name,
        mean=float(paired.mean()),
        low=low,
        high=high,
        p=paired_p_value(paired),
        num_pairs=len(paired),
        unit=unit,
        control=arm.is_control_of(baseline) or name is not None,
    )


def all_differences(
    arms: Sequence[EvaluatedArm], baseline: EvaluatedArm, results: Results
) -> list[Difference]:
    """Every arm against the baseline, then the null effect: the baseline's own seeds."""
    rows = [difference(arm, baseline, results) for arm in arms if arm is not baseline]
    first, *others = baseline.models
    for model in others:
        one = EvaluatedArm(first.name, (first,), None)
        other = EvaluatedArm(model.name, (model,), None)
        rows.append(difference(other, one, results, name=model.name))
    return sorted(rows, key=lambda row: row.control)


def score_lines(arms: Sequence[EvaluatedArm], results: Results) -> list[str]:
    """A table with one row per task and one column per arm, in Markdown."""
    means = [task_means(arm, results) for arm in arms]
    heads = [
        f"{arm.name} ({len(arm.models)} seeds)" if len(arm.models) > 1 else arm.name for arm in arms
    ]
    mains = {scores.task: scores.main for scores in results[arms[0].models[0].name]}
    rows = [
        [f"{task} ({mains[task]})" if task in mains else task, *(str(mean[task]) for mean in means)]
        for task in means[0]
    ]
    return _markdown([["task", *heads], *rows])


def metric_lines(arms: Sequence[EvaluatedArm], results: Results) -> list[str]:
    """All metrics of the tasks that are scored query by query, with intervals, in Markdown."""
    lines: list[str] = []
    for place, first in enumerate(results[arms[0].models[0].name]):
        if first.unit != "query":
            continue
        rows = [[first.task, *first.metrics, f"{first.main} 95 % interval over queries"]]
        for arm in arms:
            runs = [results[model.name][place] for model in arm.models]
            means = [str(mean_over_seeds([run.metrics[m] for run in runs])) for m in first.metrics]
            low, high = bootstrap_interval(np.mean([run.units for run in runs], axis=0))
            rows.append([arm.name, *means, f"{low:.4f} to {high:.4f}"])
        if first.chance:
            rows.append(["chance", *(f"{first.chance[m]:.4f}" for m in first.metrics), ""])
        lines += ["", *_markdown(rows)] if lines else _markdown(rows)
    return lines


def difference_lines(rows: Sequence[Difference]) -> list[str]:
    """A table of differences, in Markdown."""
    if not rows:
        return []
    head = ["arm less baseline", "difference", "95 % interval", "p", "pairs", "note"]
    body = [
        [
            f"{row.arm} - {row.baseline}",
            f"{row.mean:+.4f}",
            *_certainty(row),
            f"{row.num_pairs} {row.unit if row.num_pairs == 1 else _PLURALS[row.unit]}",
            "null effect: same backbone, another seed" if row.control else "",
        ]
        for row in rows
    ]
    return _markdown([head, *body])


def _certainty(row: Difference) -> tuple[str, str]:
    """Interval and p-value; one pair has none."""
    if row.num_pairs < 2:
        return "", ""
    return f"{row.low:+.4f} to {row.high:+.4f}", f"{row.p:.3g}"


def as_json(
    arms: Sequence[EvaluatedArm], results: Results, differences: Sequence[Difference]
) -> dict[str, Any]:
    """Everything in the tables, and every model's own scores, as plain data."""
    return {
        "arms": {
            arm.name: {
                "models": [model.name for model in arm.models],
                "tasks": {task: _finite(asdict(m)) for task, m in task_means(arm, results).items()},
            }
            for arm in arms
        },
        "models": {
            name: {scores.task: _finite(scores.metrics) for scores in tasks}
            for name, tasks in results.items()
        },
        "differences": [_finite(asdict(row)) for row in differences],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN is no JSON."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
