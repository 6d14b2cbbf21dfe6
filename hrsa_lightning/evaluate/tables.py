"""Arms over their seeds, differences between arms, and the tables that show both."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.cli import markdown_table
from hrsa_lightning.config import to_yaml
from hrsa_lightning.errors import ConfigError, nearest
from hrsa_lightning.evaluate.scoring import TaskScores
from hrsa_lightning.runs.encoder import ModelReference

Array = NDArray[np.float64]
Results = dict[str, list[TaskScores]]
"""Scores of every task, by the name of the model."""

_PLURALS = {"task": "tasks", "query": "queries", "subset": "subsets"}


@dataclass(frozen=True)
class EvaluatedArm:
    """Models that differ in their seeds only.

    Attributes:
        name: As tables call it.
        models: One per seed.
        origin: Equal for arms that start from the same backbone under the same recipe; None for
            what is no arm of a run.
    """

    name: str
    models: tuple[ModelReference, ...]
    origin: str | None

    def is_control_of(self, other: "EvaluatedArm") -> bool:
        """Whether only chance makes it different from `other`."""
        return self is not other and self.origin is not None and self.origin == other.origin


def group_models(models: Sequence[ModelReference]) -> list[EvaluatedArm]:
    """Group models into arms.

    Arms of several runs are seeds of one arm if they have the same name, come from the same step,
    and their recipes differ in seeds, and where things are written, only.

    Raises:
        ConfigError: A model is given twice.
    """
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"model {name} is given twice")
    groups: dict[tuple[str, str], list[ModelReference]] = {}
    for model in models:
        groups.setdefault((_recipe(model), model.arm or model.name), []).append(model)
    short = [_short_name(members[0]) for members in groups.values()]
    return [
        EvaluatedArm(
            name if short.count(name) == 1 else members[0].name, tuple(members), _origin(members[0])
        )
        for name, members in zip(short, groups.values(), strict=True)
    ]


def find_arm(name: str, arms: Sequence[EvaluatedArm]) -> EvaluatedArm:
    """The arm of this name.

    Raises:
        ConfigError: There is none.
    """
    for arm in arms:
        if arm.name == name:
            return arm
    known = [arm.name for arm in arms]
    raise ConfigError(
        f"baseline: no arm {name!r}.{nearest(name, known)} Those here: {', '.join(known)}."
    )


def _short_name(model: ModelReference) -> str:
    if model.arm is not None:
        return model.arm
    return Path(model.path).name if Path(model.path).is_dir() else model.path


def _recipe(model: ModelReference) -> str:
    """The recipe without what may differ between seeds, and how far it was followed."""
    arm = model.source.arm
    if arm is None:
        return ""
    config = copy.deepcopy(arm.config)
    config.seed, config.output_dir, config.resume = 0, "", True
    for settings in config.arms.values():
        settings.seed = None
    return f"step {arm.step}\n{to_yaml(config)}"


def _origin(model: ModelReference) -> str | None:
    if model.config is None or model.arm is None:
        return None
    arm = model.config.arms[model.arm]
    return f"{arm.backbone}@{arm.revision}\n{_recipe(model)}"


RESAMPLES = 10_000
_VALUES_AT_ONCE = 2**22


def bootstrap_interval(values: Sequence[float] | Array, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (95 %, 10,000 resamples).

    Returns:
        Lower and upper end; NaN for fewer than two values.

    Example:
        >>> low, high = bootstrap_interval([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
        >>> bool(low < 4 / 6 < high)
        True
    """
    from scipy import stats

    if len(values) < 2:
        return math.nan, math.nan
    batch = max(1, _VALUES_AT_ONCE // len(values))
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=seed, batch=batch
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_p_value(differences: Sequence[float] | Array, seed: int = 0) -> float:
    """Two-sided sign-flip permutation test: is the mean of paired differences zero?

    Under the hypothesis that the two of a pair are exchangeable, every difference may as well have
    the other sign. All sign patterns are counted where there are at most 10,000 of them (up to 13
    differences), else 10,000 random ones and the observed one.

    Returns:
        The p-value; NaN for fewer than two differences. With n differences it is at least
        2 / 2**n.

    Example:
        >>> paired_p_value([0.1, 0.2, 0.1, 0.3])
        0.125
    """
    from scipy import stats

    if len(differences) < 2:
        return math.nan
    found = stats.permutation_test(
        (differences,),
        np.sum,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=seed,
        batch=max(1, _VALUES_AT_ONCE // len(differences)),
    )
    return float(found.pvalue)


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
    return markdown_table([["task", *heads], *rows])


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
        lines += ["", *markdown_table(rows)] if lines else markdown_table(rows)
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
    return markdown_table([head, *body])


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
                "tasks": {task: asdict(m) for task, m in task_means(arm, results).items()},
            }
            for arm in arms
        },
        "models": {
            name: {scores.task: scores.metrics for scores in tasks}
            for name, tasks in results.items()
        },
        "differences": [asdict(row) for row in differences],
    }
