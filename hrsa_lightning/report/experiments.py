"""What runs left behind, and runs that differ only in their seeds as one experiment."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.config import flatten, read_yaml
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io.files import read_json
from hrsa_lightning.runs.directory import NEWEST, newest_run
from hrsa_lightning.runs.summary import read_controls
from hrsa_lightning.similarity.history import (
    DETAILS_SUFFIX,
    Detail,
    Evaluation,
    read_details,
    read_evaluations,
)
from hrsa_lightning.similarity.measurement import Series, comparison_name
from hrsa_lightning.similarity.metric_info import metric_order

Array = NDArray[np.float64]
FIELDS = ("value", "chance", "low", "high", "identity", "null_95", "p_value")
"""Numbers of a `Measurement` that a report shows."""

_SECTIONS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "config.yaml": {
        **dict.fromkeys(("arms", "arms.*", "data", "loss", "optimizer", "trainer"), dict),
        **{"data.train": list, "model": dict, "model.lora": dict},
    },
    "environment.json": {"packages": dict, "git": dict, "gpus": list},
    "summary.json": {"seconds": (int, float), "controls": list},
}
"""What a report takes apart, by file, and its type. Null stands for what is absent."""

_MOST_SECONDS = 1e10
_SEED_KEYS = ("seed", "output_dir", "resume")


class Pair(NamedTuple):
    """A live model and what it is compared with; for a property of one model, the model alone."""

    arm: str = ""
    reference: str = ""

    @property
    def name(self) -> str:
        """As files and options have it, such as `rlvr_vs_base`."""
        return comparison_name(self.arm, self.reference)

    def __str__(self) -> str:
        arm = self.arm or ("live" if self.reference else "model")
        return f"{arm} vs {self.reference}" if self.reference else arm


class Place(NamedTuple):
    """Where a value was measured; a property of the model as a whole has no layer."""

    layer: str = ""
    label: str = ""

    def __str__(self) -> str:
        return f"{self.layer}/{self.label}" if self.label else self.layer or "held_out"


class Key(NamedTuple):
    """What a value is of.

    Attributes:
        group: Name of the monitor, with that of the probe set where there are several.
        metric: Such as `cka`.
        pair: What was compared.
        place: Where.
    """

    group: str
    metric: str
    pair: Pair
    place: Place

    @classmethod
    def of(cls, monitor: str, series: Series) -> "Key":
        """The key of a monitor's series."""
        group = f"{monitor}.{series.probes}" if series.probes else monitor
        pair = Pair(series.arm, series.reference)
        return cls(group, series.metric, pair, Place(series.layer, series.label))


@dataclass(frozen=True)
class Run:
    """One folder.

    Attributes:
        folder: Where it is.
        config: The resolved recipe; empty where there is none.
        environment: Versions, git state, command line, hardware; empty where there is none.
        summary: Steps and seconds; empty for a run that did not finish.
        values: (evaluations, 1 + fields), step and `FIELDS` of every value; NaN where unknown.
        seconds: (evaluations, 2), step and duration, by the name of the file without its suffix.
        details: Layer-by-layer maps and spectra, in the order written.
        notes: What is missing or wrong, for the reader of the report.
        levels: HRSA levels of metrics that are not ours, by their keys.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[Key, Array] = field(default_factory=dict)
    seconds: Mapping[str, Array] = field(default_factory=dict)
    details: Sequence[Detail] = ()
    notes: Sequence[str] = ()
    levels: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name: the last two parts of the folder's path."""
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def seed(self) -> int | None:
        """The run's seed, where the recipe says one."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def last_step(self) -> float:
        """Latest step of any history."""
        return max(float(each[-1, 0]) for each in self.seconds.values())


@dataclass(frozen=True)
class Curve:
    """One value over the steps of several runs.

    Attributes:
        steps: (points,), every step at which some run was evaluated, within the common range.
        fields: (runs, points, fields), interpolated between evaluations where the steps of runs
            differ; in the order of `FIELDS`.
    """

    steps: Array
    fields: Array

    def of(self, name: str) -> Array:
        """(runs, points) of one field."""
        values: Array = self.fields[..., FIELDS.index(name)]
        return values

    @property
    def values(self) -> Array:
        """(runs, points), the values themselves."""
        return self.of("value")

    @property
    def first(self) -> list[float]:
        """Value of each run at its first evaluation."""
        return [float(value) for value in self.values[:, 0]]

    @property
    def last(self) -> list[float]:
        """Value of each run at its last evaluation."""
        return [float(value) for value in self.values[:, -1]]

    @property
    def band(self) -> tuple[Array, Array] | None:
        """Ends of the 95 % band over probes, for a single run that measured it."""
        low, high = self.of("low")[0], self.of("high")[0]
        return None if len(self.fields) > 1 or np.isnan(low).all() else (low, high)

    def last_level(self, name: str) -> float:
        """The last known value of a field, of p-values the largest of any run, else the mean."""
        known = [
            float(row[np.isfinite(row)][-1]) for row in self.of(name) if np.isfinite(row).any()
        ]
        if not known:
            return math.nan
        return max(known) if name == "p_value" else math.fsum(known) / len(known)


@dataclass(frozen=True)
class Experiment:
    """Runs of one recipe that differ in their seeds only.

    Attributes:
        label: Name of the recipe, with what sets it apart from the others.
        runs: Their order is that of all lists over runs.
        displacement: Arms that are displacement controls.
        seed_controls: Names of comparisons that are seed controls.
        notes: What was left out, and why.
    """

    label: str
    runs: Sequence[Run]
    displacement: Sequence[str] = ()
    seed_controls: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)
    _curves: dict[Key, Curve | None] = field(default_factory=dict, repr=False)

    @cached_property
    def keys(self) -> list[Key]:
        """Every value that any run has, metrics in the paper's order."""
        found = dict.fromkeys(key for run in self.runs for key in run.values)
        levels = {metric: level for run in self.runs for metric, level in run.levels.items()}
        return sorted(
            found,
            key=lambda key: (key.group, metric_order(key.metric, levels.get(key.metric, ""))),
        )

    def curve(self, key: Key) -> Curve | None:
        """A value over steps, one row per run; `None` where no run has it anywhere."""
        if key not in self._curves:
            self._curves[key] = self._read_curve(key)
        return self._curves[key]

    def _read_curve(self, key: Key) -> Curve | None:
        found = [run.values.get(key) for run in self.runs]
        there = [values for values in found if values is not None]
        if not any(np.isfinite(values[:, 1]).any() for values in there):
            return None
        steps = _common_steps([values[:, 0] for values in there])
        absent = np.full((len(steps), len(FIELDS)), np.nan)
        rows = [absent if values is None else _at(steps, values) for values in found]
        return Curve(steps, np.stack(rows))

    def arms(self) -> Mapping[str, Any]:
        """The recipe's arms; empty where there is no recipe."""
        arms: Mapping[str, Any] = self.runs[0].config.get("arms", {})
        return arms

    def is_seed_control(self, pair: Pair) -> bool:
        """Whether two seeds of one backbone are compared."""
        return pair.name in self.seed_controls

    @cached_property
    def seed_arms(self) -> set[str]:
        """Arms that are seed controls of another."""
        return {key.pair.arm for key in self.keys if self.is_seed_control(key.pair)}

    def varied_by_seed(self, pair: Pair) -> Sequence[str]:
        """What the seed of a seed control decided apart from its reference; empty where unknown."""
        controls = read_controls(self.runs[0].summary)
        return next((c.varied for c in controls if {c.arm, c.twin} == {*pair}), ())


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders that hold a history; a folder without one stands for all runs below it.

    `LAST` in a path is the newest complete run there.

    Raises:
        DataError: When a folder does not exist or there is no history in or below it.
    """
    found: list[Path] = []
    for path in folders:
        folder = newest_run(path) if NEWEST in path.parts else path
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected that of a run")
        own = [folder] if any(_history_files(folder)) else []
        below = [] if own else sorted({p.parent for p in _below(folder, "*.jsonl")})
        runs = own or [path for path in below if any(_history_files(path))]
        if not runs:
            raise DataError(
                f"{folder}: no history in or below it; expected a run's folder with "
                "similarity.jsonl or another file of a monitor"
            )
        found += runs
    return list(dict.fromkeys(found))


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    """Files up to three folders down: a walk through everything below may take minutes."""
    return (path for level in range(1, 4) for path in folder.glob("*/" * level + pattern))


def read_run(folder: Path) -> Run:
    """Read what a run left behind.

    Raises:
        DataError: When a history is malformed; with file and line.
    """
    notes: list[str] = []

    def read(name: str, missing: str) -> dict[str, Any]:
        if (folder / name).is_file():
            reader = read_yaml if name.endswith(".yaml") else read_json
            content = reader(folder / name)
            for section, kind in _SECTIONS[name].items():
                notes.extend(f"{name}: {n}" for n in _drop_odd(content, section, kind))
            return content
        notes.append(f"{name} is missing: {missing}")
        return {}

    values: dict[Key, Array] = {}
    seconds: dict[str, Array] = {}
    levels: dict[str, str] = {}
    for path in _history_files(folder):
        evaluations = _evaluations(path)
        if evaluations:
            values |= _by_key(evaluations, path.stem)
            levels |= {m.metric: m.level for m in evaluations[-1].measurements if m.level}
            seconds[path.stem] = np.array(
                [(each.step, each.seconds) for each in evaluations], float
            )
    if not seconds:
        raise DataError(f"{folder}: its histories hold no whole record")
    try:
        config = read("config.yaml", "recipe, seed and arms are unknown")
    except ConfigError as error:
        raise DataError(str(error)) from None
    environment = read("environment.json", "versions and git state are unknown")
    summary = read("summary.json", "the run is not one of the package's or is unfinished")
    try:
        read_controls(summary)
    except (KeyError, TypeError):
        del summary["controls"]
        notes.append("summary.json: controls has another form than a run's and is left out")
    paths = sorted(folder.glob(f"*{DETAILS_SUFFIX}"))
    details = [detail for path in paths for detail in read_details(path)]
    return Run(folder, config, environment, summary, values, seconds, details, notes, levels)


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
    groups: dict[str, list[Run]] = {}
    for index, run in enumerate(runs):
        identity = json.dumps(_identity(run.config), sort_keys=True, default=str)
        key = "" if replicates else identity if run.config else f"#{index}"
        groups.setdefault(key, []).append(run)
    labels = _labels([group[0] for group in groups.values()])
    experiments = []
    for group, label in zip(groups.values(), labels, strict=True):
        kept, notes = _comparable(group)
        arms = kept[0].config.get("arms", {})
        moved = [name for name, arm in arms.items() if _is_displaced(arm)]
        same = [
            comparison_name(left, right)
            for left in arms
            for right in arms
            if left != right and _backbone(arms[left]) == _backbone(arms[right])
        ]
        experiments.append(
            Experiment(label, kept, [*moved, *displacement], [*same, *seed_controls], notes)
        )
    return experiments


def _history_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.endswith(DETAILS_SUFFIX):
            continue
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b'{"step":'):
            yield path


def _drop_odd(content: dict[str, Any], section: str, kind: Any) -> list[str]:
    """Take out what has another type than the report needs, and say so."""
    first, _, rest = section.partition(".")
    if rest:
        inner = content.get(first, {})
        names = list(inner) if rest == "*" else [rest]
        return [f"{first}.{n}" for name in names for n in _drop_odd(inner, name, kind)]
    value = content.get(first)
    is_number = isinstance(value, (int, float))
    if isinstance(value, kind) and (not is_number or 0 <= value < _MOST_SECONDS):
        return []
    absent = content.pop(first, None) is None
    return [] if absent else [f"{first} has another form than a run's and is left out"]


def _evaluations(path: Path) -> list[Evaluation]:
    """Ascending, and of records that repeat a step the last."""
    ascending = sorted(read_evaluations(path), key=lambda evaluation: evaluation.step)
    return list({(each.step, each.monitor): each for each in ascending}.values())


def _by_key(evaluations: Sequence[Evaluation], name: str) -> dict[Key, Array]:
    found: dict[tuple[str, Series], list[tuple[float | None, ...]]] = {}
    for each in evaluations:
        for m in each.measurements:
            row = (m.step, m.value, m.chance, m.low, m.high, m.identity, m.null_95, m.p_value)
            found.setdefault((each.monitor or name, m.series), []).append(row)
    # `None` becomes NaN
    return {Key.of(*key): np.array(rows, dtype=np.float64) for key, rows in found.items()}


def mean_over_runs(values: Array) -> Array:
    """(points,), mean of (runs, points); NaN only where every run has NaN."""
    counts = np.isfinite(values).sum(0)
    totals: Array = np.nansum(values, axis=0)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def _common_steps(steps: Sequence[Array]) -> Array:
    """All steps of all runs, within the range that every run covers."""
    low, high = max(each[0] for each in steps), min(each[-1] for each in steps)
    union = np.unique(np.concatenate(list(steps)))
    within = union[(union >= low) & (union <= high)]
    return within if len(within) else steps[0][:1]


def _at(steps: Array, values: Array) -> Array:
    """Fields at other steps: as they are where the steps are the same, else interpolated."""
    own = values[:, 0]
    if len(steps) == len(own) and bool((steps == own).all()):
        return values[:, 1:]
    return np.stack([np.interp(steps, own, each) for each in values[:, 1:].T], axis=1)


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
    notes += [
        f"{run.label} is left out: it ends at step {run.last_step:g}, others of its "
        f"experiment at {farthest:g}"
        for run in by_seed.values()
        if run.last_step < farthest
    ]
    return [run for run in by_seed.values() if run.last_step == farthest], notes


def _labels(runs: Sequence[Run]) -> list[str]:
    """Recipe names; where several recipes share one, with the keys in which they differ."""
    names = [str(run.config.get("name") or run.label) for run in runs]
    flat = [dict(flatten(_identity(run.config))) for run in runs]
    labels: list[str] = []
    for name, own in zip(names, flat, strict=True):
        rivals = [other for also, other in zip(names, flat, strict=True) if also == name]
        keys = sorted(set().union(*rivals))
        differing = [key for key in keys if len({str(other.get(key)) for other in rivals}) > 1]
        words = [f"{key}={own.get(key)}" for key in differing[:3]]
        words += ["…"] if len(differing) > 3 else []
        labels.append(f"{name} ({', '.join(words)})" if words else name)
    return [
        f"{label} [{run.label}]" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _backbone(arm: Mapping[str, Any]) -> tuple[Any, Any]:
    return arm.get("backbone"), arm.get("revision")


def _is_displaced(arm: Mapping[str, Any]) -> bool:
    return "controls" in str(arm.get("backbone", "")).replace("\\", "/").split("/")[:-1]
