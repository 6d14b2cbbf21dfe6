"""Runs that differ only in their seeds, as one experiment with a spread."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hrsa_lightning.report.facts import BAND_SUFFIXES, metric_order
from hrsa_lightning.report.reading import Array, Run

__all__ = ["Curve", "Experiment", "Key", "group_runs"]

_SEED_KEYS = ("seed", "output_dir", "resume")
_DIAGNOSTICS = "variance_share"


class Key(NamedTuple):
    """What a value is of.

    Attributes:
        group: Name of the monitor, with that of the probe set where there are several.
        metric: Such as `cka`.
        comparison: Such as `rlvr_vs_base`, or an arm; empty where there is only one.
        where: Such as `layer_3`, `output` or `held_out`.
    """

    group: str
    metric: str
    comparison: str
    where: str


@dataclass(frozen=True)
class Curve:
    """One value over the steps of several runs.

    Attributes:
        steps: (points,), every step at which some run was evaluated, within the common range.
        values: (runs, points), interpolated between evaluations where the steps of runs differ.
    """

    steps: Array
    values: Array

    @property
    def first(self) -> list[float]:
        """Value of each run at its first evaluation."""
        return [float(value) for value in self.values[:, 0]]

    @property
    def last(self) -> list[float]:
        """Value of each run at its last evaluation."""
        return [float(value) for value in self.values[:, -1]]


@dataclass(frozen=True)
class Experiment:
    """Runs of one recipe that differ in their seeds only.

    Attributes:
        label: Name of the recipe, with what sets it apart from the others.
        runs: Their order is that of all lists over runs.
        displacement: Arms that are displacement controls.
        seed_controls: Comparisons that are seed controls.
        notes: What was left out, and why.
    """

    label: str
    runs: Sequence[Run]
    displacement: Sequence[str] = ()
    seed_controls: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)

    @cached_property
    def keys(self) -> list[Key]:
        """Every value that any run has, metrics in the paper's order, bands left out."""
        found = dict.fromkeys(
            key for run in self.runs for history in run.histories.values() for key in _keys(history)
        )
        return sorted(found, key=lambda key: (key.group, metric_order(key.metric)))

    @cached_property
    def floors(self) -> dict[Key, float]:
        """Chance levels; they depend on sample count and width only."""
        return {
            parse_tag(tag): floor
            for run in self.runs
            for history in run.histories.values()
            for tag, floor in history.floors.items()
        }

    @cached_property
    def _columns(self) -> list[dict[Key, tuple[str, int]]]:
        return [
            {
                parse_tag(tag): (name, column)
                for name, history in run.histories.items()
                for tag, column in history.tags.items()
            }
            for run in self.runs
        ]

    def curve(self, key: Key) -> Curve | None:
        """A value over steps, one row per run; a run that lacks it gives NaN."""
        series: list[tuple[Array, Array] | None] = []
        for run, columns in zip(self.runs, self._columns, strict=True):
            if key not in columns:
                series.append(None)
                continue
            name, column = columns[key]
            history = run.histories[name]
            values = history.values[:, column]
            series.append((history.steps, values))
        there = [pair for pair in series if pair is not None]
        if not there:
            return None
        steps = _common_steps([pair[0] for pair in there])
        rows = [
            np.full(len(steps), np.nan) if pair is None else _at(steps, *pair) for pair in series
        ]
        return Curve(steps, np.stack(rows))

    def arms(self) -> Mapping[str, Any]:
        """The recipe's arms; empty where there is no recipe."""
        arms: Mapping[str, Any] = self.runs[0].config.get("arms", {})
        return arms


def parse_tag(tag: str) -> Key:
    """A tag as a key; diagnostics of one arm carry its name as the comparison."""
    # Here, because it loads torch: what is wrong with a folder is answered before.
    from hrsa_lightning.representations.history import split_tag

    key = Key(*split_tag(tag))
    if key.metric.startswith(_DIAGNOSTICS) and not key.comparison and "/" in key.where:
        arm, _, where = key.where.partition("/")
        return key._replace(comparison=arm, where=where)
    return key


def group_runs(
    runs: Sequence[Run],
    *,
    displacement: Sequence[str] = (),
    seed_controls: Sequence[str] = (),
    replicates: bool = False,
) -> list[Experiment]:
    """Put runs together whose recipes differ in seeds only.

    Of runs with the same recipe and seed, which repeat each other, the last is kept. Runs that did
    not get as far as the others of their experiment are left out. Runs without a recipe stand
    alone.

    Args:
        runs: In any order.
        displacement: Arms that are displacement controls; besides these, arms whose backbone lies
            in a folder named `controls`.
        seed_controls: Comparisons that are seed controls; besides these, comparisons of two arms
            with one backbone.
        replicates: Take all runs as one experiment, whatever their recipes say.
    """
    together: dict[str, list[Run]] = {}
    for index, run in enumerate(runs):
        identity = json.dumps(_identity(run.config), sort_keys=True, default=str)
        key = "" if replicates else identity if run.config else f"#{index}"
        together.setdefault(key, []).append(run)
    groups = list(together.values())
    labels = _labels([group[0] for group in groups])
    experiments = []
    for group, label in zip(groups, labels, strict=True):
        kept, notes = _comparable(group)
        arms = kept[0].config.get("arms", {})
        moved = [name for name, arm in arms.items() if _is_displaced(arm)]
        same = [
            f"{left}_vs_{right}"
            for left in arms
            for right in arms
            if left != right and _backbone(arms[left]) == _backbone(arms[right])
        ]
        experiments.append(
            Experiment(label, kept, [*moved, *displacement], [*same, *seed_controls], notes)
        )
    return experiments


def _keys(history: Any) -> list[Key]:
    keys = [parse_tag(tag) for tag in history.tags]
    return [key for key in keys if key.where and not key.metric.endswith(BAND_SUFFIXES)]


def _common_steps(steps: Sequence[Array]) -> Array:
    """All steps of all runs, within the range that every run covers."""
    low, high = max(each[0] for each in steps), min(each[-1] for each in steps)
    union = np.unique(np.concatenate(list(steps)))
    within = union[(union >= low) & (union <= high)]
    return within if len(within) else steps[0][:1]


def _at(steps: Array, own: Array, values: Array) -> Array:
    """Values at other steps: as they are where the steps are the same, else interpolated."""
    if len(steps) == len(own) and bool((steps == own).all()):
        return values
    return np.interp(steps, own, values)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without its seeds; that an arm has a seed of its own is part of it."""
    kept = {key: value for key, value in config.items() if key not in _SEED_KEYS}
    kept["arms"] = {
        name: {**arm, "seed": arm.get("seed") is not None}
        for name, arm in config.get("arms", {}).items()
    }
    return kept


def _comparable(group: Sequence[Run]) -> tuple[list[Run], list[str]]:
    notes = []
    by_seed: dict[Any, Run] = {}
    for index, run in enumerate(group):
        key = index if run.seed is None else f"seed {run.seed}"
        if key in by_seed:
            notes.append(f"{by_seed[key].label} is left out: {run.label} has the same {key}")
        by_seed[key] = run
    farthest = max(run.last_step for run in by_seed.values())
    kept = []
    for run in by_seed.values():
        if run.last_step < farthest:
            notes.append(
                f"{run.label} is left out: it ends at step {run.last_step:g}, others of its "
                f"experiment at {farthest:g}"
            )
        else:
            kept.append(run)
    return kept, notes


def _labels(runs: Sequence[Run]) -> list[str]:
    """Recipe names; where several recipes share one, with the keys in which they differ."""
    names = [str(run.config.get("name") or run.label) for run in runs]
    flat = [_flat(_identity(run.config)) for run in runs]
    labels = []
    for name, own in zip(names, flat, strict=True):
        rivals = [
            other for other_name, other in zip(names, flat, strict=True) if other_name == name
        ]
        differing = sorted(
            key
            for key in set().union(*rivals)
            if len({json.dumps(other.get(key), default=str) for other in rivals}) > 1
        )
        words = [f"{key}={own.get(key)}" for key in differing[:3]]
        words += ["…"] if len(differing) > 3 else []
        labels.append(f"{name} ({', '.join(words)})" if words else name)
    for index, label in enumerate(labels):
        if labels.count(label) > 1:
            labels[index] = f"{label} [{runs[index].label}]"
    return labels


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _backbone(arm: Mapping[str, Any]) -> tuple[Any, Any]:
    return arm.get("backbone"), arm.get("revision")


def _is_displaced(arm: Mapping[str, Any]) -> bool:
    return "controls" in str(arm.get("backbone", "")).replace("\\", "/").split("/")[:-1]
