"""Before and after, beside chance and controls, and what may be said of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hrsa_lightning.report.facts import Fact, fact_of
from hrsa_lightning.report.grouping import Curve, Experiment, Key
from hrsa_lightning.report.statistics import (
    Spread,
    closed_gap,
    half_life,
    realignment_gain,
    recovered_share,
    spread,
)

__all__ = ["Derived", "Verdict", "derive", "pair_words", "pairs_of", "verdicts_of"]

INITIAL = "_vs_initial"
SAME, NEARER, FARTHER, UNKNOWN = "same", "nearer", "farther", "unknown"


@dataclass(frozen=True)
class Verdict:
    """One metric of one pair.

    Attributes:
        key: Which.
        fact: What is known of the metric.
        before: At the first evaluation, over runs.
        after: At the last.
        change: Similarity after minus before, over runs.
        floor: Chance level; NaN where unknown.
        band: 95 % band of the last value over probes, of a single run; NaN where not measured.
        controls: Last values of each control, seed controls first.
        relations: How the pair stands to each control: nearer, farther, same or unknown.
    """

    key: Key
    fact: Fact
    before: Spread
    after: Spread
    change: Spread
    floor: float
    band: tuple[float, float]
    controls: Mapping[str, Spread]
    relations: Mapping[str, str]

    @property
    def moved(self) -> str:
        """`nearer`, `farther` or `same`, beyond the spread over runs; `unknown` for one run."""
        return _side(self.change)

    @property
    def words(self) -> str:
        """What the numbers support, in one phrase."""
        if not self.after.num_values:
            return "undefined"
        said = [
            f"{phrase} {_listed([_control_name(name) for name in names])}"
            for side, phrase in (
                (NEARER, "nearer than"),
                (FARTHER, "farther apart than"),
                (SAME, "not distinguishable from"),
            )
            if (names := [name for name, relation in self.relations.items() if relation == side])
        ]
        if not self.relations:
            said.append("no control in this run")
        if self._at_chance():
            said.append("not distinguishable from chance")
        if self.after.num_values == 1 and self.relations:
            said.append("one seed, no interval")
        return "; ".join(said) or "undefined"

    def _at_chance(self) -> bool:
        low, high = (
            (self.after.low, self.after.high)
            if self.after.num_values > 1
            else (self.band[0], self.band[1])
        )
        return low <= self.floor <= high


@dataclass(frozen=True)
class Derived:
    """Derived quantities of one metric of one pair, over runs; see `docs/method.md`.

    Attributes:
        key: Which.
        fact: What is known of the metric.
        gain: Realignment gain.
        half_life: Steps to half of the change.
        bracket: Evaluations between which the half lies, over all runs.
        recovered: Reversible part.
        closed: Share of the gap to the seed control that is closed.
        by_pair: The part of it that the pair's own movement closed.
        by_control: The part that the control's movement closed.
    """

    key: Key
    fact: Fact
    gain: Spread
    half_life: Spread
    bracket: tuple[float, float]
    recovered: Spread
    closed: Spread
    by_pair: Spread
    by_control: Spread


def pairs_of(experiment: Experiment, group: str) -> tuple[list[str], list[str], list[str]]:
    """Comparisons of a monitor: pairs, controls (seed controls first), drifts from the start."""
    everything = list(
        dict.fromkeys(
            key.comparison
            for key in experiment.keys
            if key.group == group and ("_vs_" in key.comparison or not key.comparison)
        )
    )
    drifts = [name for name in everything if name.endswith(INITIAL)]
    seeds = [name for name in everything if name in experiment.seed_controls]
    moved = [
        name
        for name in everything
        if name not in [*drifts, *seeds] and set(name.split("_vs_")) & set(experiment.displacement)
    ]
    pairs = [name for name in everything if name not in [*drifts, *seeds, *moved]]
    return pairs, [*seeds, *moved], drifts


def verdicts_of(
    experiment: Experiment, group: str, pair: str, where: str, controls: Sequence[str]
) -> list[Verdict]:
    """Every metric of a pair at one place, beside the controls that share its reference."""
    fitting = _controls_for(pair, controls)
    found = []
    for key in experiment.keys:
        if (key.group, key.comparison, key.where) != (group, pair, where):
            continue
        curve = experiment.curve(key)
        if curve is None:
            continue
        fact = fact_of(key.metric)
        others = {
            name: other
            for name in fitting
            if (other := experiment.curve(key._replace(comparison=name))) is not None
        }
        found.append(
            Verdict(
                key,
                fact,
                spread(curve.first),
                spread(curve.last),
                spread(_gains(curve, fact)),
                experiment.floors.get(key, math.nan),
                _band(experiment, key),
                {name: spread(other.last) for name, other in others.items()},
                {name: _relation(curve, other, fact) for name, other in others.items()},
            )
        )
    return found


def derive(
    experiment: Experiment, group: str, pair: str, where: str, controls: Sequence[str]
) -> list[Derived]:
    """Derived quantities of every metric of a pair that says something about likeness."""
    seeds = [name for name in _controls_for(pair, controls) if name in experiment.seed_controls]
    found = []
    for key in experiment.keys:
        fact = fact_of(key.metric)
        if (key.group, key.comparison, key.where) != (group, pair, where) or not fact.sign:
            continue
        curve = experiment.curve(key)
        if curve is None:
            continue
        control = experiment.curve(key._replace(comparison=seeds[0])) if seeds else None
        halves = [
            half_life(curve.steps.tolist(), [fact.similarity(v) for v in row])
            for row in curve.values.tolist()
        ]
        reached = [half for half in halves if math.isfinite(half.step)]
        gaps = [
            closed_gap(*(fact.similarity(value) for value in values))
            for values in (
                zip(curve.first, curve.last, control.first, control.last, strict=True)
                if control
                else ()
            )
        ]
        ends = zip(curve.first, curve.last, strict=True)
        found.append(
            Derived(
                key,
                fact,
                spread(_gains(curve, fact)),
                spread([half.step for half in halves]),
                (
                    min((half.low for half in reached), default=math.nan),
                    max((half.high for half in reached), default=math.nan),
                ),
                spread(
                    [
                        recovered_share(
                            fact.similarity(first), fact.similarity(last), fact.self_similarity
                        )
                        for first, last in ends
                    ]
                ),
                *(spread([gap[part] for gap in gaps]) for part in range(3)),
            )
        )
    return found


def pair_words(verdicts: Sequence[Verdict], num_runs: int) -> list[str]:
    """What all metrics of a pair together support, in plain sentences."""
    judged = [v for v in verdicts if v.fact.sign and v.after.num_values]
    if not judged:
        return ["No metric is defined here."]
    sentences = []
    if num_runs == 1:
        rose = sum(v.change.mean > 0 for v in judged)
        sentences.append(
            f"One seed: similarity rose in {rose} and fell in "
            f"{sum(v.change.mean < 0 for v in judged)} of {len(judged)} metrics. Whether another "
            "seed would show the same cannot be said from one."
        )
    else:
        sides = [v.moved for v in judged]
        sentences.append(
            f"Over {num_runs} seeds the pair moved together in {sides.count(NEARER)} of "
            f"{len(judged)} metrics and apart in {sides.count(FARTHER)}; in {sides.count(SAME)} "
            f"the change cannot be told from none with {num_runs} seeds."
        )
    controls = list(dict.fromkeys(name for v in judged for name in v.relations))
    for name in controls:
        sides = [v.relations[name] for v in judged if name in v.relations]
        alike = "equal" if num_runs == 1 else "not distinguishable"
        sentences.append(
            f"Compared with {_control_name(name)} it ends nearer in {sides.count(NEARER)}, farther "
            f"apart in {sides.count(FARTHER)}, {alike} in {sides.count(SAME)}."
        )
    if not controls:
        sentences.append("No control shares its reference, so nothing can be said beyond chance.")
    return sentences


def _controls_for(pair: str, controls: Sequence[str]) -> list[str]:
    """Controls with the pair's reference; any control where the pair has none by name."""
    reference = pair.partition("_vs_")[2]
    return [name for name in controls if name.partition("_vs_")[2] == reference and name != pair]


def _gains(curve: Curve, fact: Fact) -> list[float]:
    return [
        realignment_gain(fact.similarity(first), fact.similarity(last))
        for first, last in zip(curve.first, curve.last, strict=True)
    ]


def _relation(curve: Curve, control: Curve, fact: Fact) -> str:
    """Side on which the pair ends, from differences within each run, which shares its draws."""
    differences = [
        fact.similarity(own) - fact.similarity(other)
        for own, other in zip(curve.last, control.last, strict=True)
    ]
    found = spread(differences)
    if found.num_values != 1:
        return _side(found)
    return SAME if found.mean == 0 else NEARER if found.mean > 0 else FARTHER


def _side(found: Spread) -> str:
    if found.num_values < 2:
        return UNKNOWN
    if found.low > 0:
        return NEARER
    return FARTHER if found.high < 0 else SAME


def _band(experiment: Experiment, key: Key) -> tuple[float, float]:
    ends = []
    for suffix in ("_low", "_high"):
        curve = experiment.curve(key._replace(metric=key.metric + suffix))
        ends.append(curve.last[0] if curve is not None and len(curve.values) == 1 else math.nan)
    return ends[0], ends[1]


def _control_name(comparison: str) -> str:
    return comparison.partition("_vs_")[0]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
