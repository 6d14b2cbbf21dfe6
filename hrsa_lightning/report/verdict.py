"""Before and after, beside chance and controls, and what may be said of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hrsa_lightning.report.experiments import Curve, Experiment, Key, Pair, Place
from hrsa_lightning.report.statistics import (
    Spread,
    closed_gap,
    half_life,
    realignment_gain,
    recovered_share,
    spread,
)
from hrsa_lightning.similarity.metric_info import MetricInfo, info_of

__all__ = ["Derived", "Verdict", "derive", "gains_of", "pair_words", "pairs_of", "verdicts_of"]

SAME, NEARER, FARTHER, UNKNOWN = "same", "nearer", "farther", "unknown"


@dataclass(frozen=True)
class Verdict:
    """One metric of one pair.

    Attributes:
        key: Which.
        info: What is known of the metric.
        before: At the first evaluation, over runs.
        after: At the last.
        change: Similarity after minus before, over runs.
        chance: Chance level; NaN where unknown.
        identity: Value of the reference and itself on the same samples; NaN where unknown.
        p_value: Share of permuted pairings as much alike at the end; NaN where unknown.
        band: 95 % band of the last value over probes, of a single run; NaN where not measured.
        controls: Last values of each control, seed controls first.
        relations: How the pair stands to each control: nearer, farther, same or unknown.
    """

    key: Key
    info: MetricInfo
    before: Spread
    after: Spread
    change: Spread
    chance: float
    identity: float
    p_value: float
    band: tuple[float, float]
    controls: Mapping[Pair, Spread]
    relations: Mapping[Pair, str]

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
            f"{phrase} {_listed([pair.arm for pair in found])}"
            for side, phrase in (
                (NEARER, "nearer than"),
                (FARTHER, "farther apart than"),
                (SAME, "not distinguishable from"),
            )
            if (found := [pair for pair, relation in self.relations.items() if relation == side])
        ]
        if not self.relations:
            said.append("no control in this run")
        several = self.after.num_values > 1
        low, high = (self.after.low, self.after.high) if several else self.band
        if low <= self.chance <= high:
            said.append("not distinguishable from chance")
        if not several and self.relations:
            said.append("one seed, no interval")
        return "; ".join(said) or "undefined"


@dataclass(frozen=True)
class Derived:
    """Derived quantities of one metric of one pair, over runs; see `docs/method.md`.

    Attributes:
        key: Which.
        info: What is known of the metric.
        gain: Realignment gain.
        half_life: Steps to half of the change.
        bracket: Evaluations between which the half lies, over all runs.
        recovered: Reversible part.
        closed: Share of the gap to the seed control that is closed.
        by_pair: The part of it that the pair's own movement closed.
        by_control: The part that the control's movement closed.
    """

    key: Key
    info: MetricInfo
    gain: Spread
    half_life: Spread
    bracket: tuple[float, float]
    recovered: Spread
    closed: Spread
    by_pair: Spread
    by_control: Spread


def pairs_of(experiment: Experiment, group: str) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Comparisons of a monitor: pairs, controls (seed controls first), drifts from the start.

    The only comparison of a single model is a pair, whatever it is compared with.
    """
    compared = list(
        dict.fromkeys(
            key.pair for key in experiment.keys if key.group == group and key.pair.reference
        )
    )
    drifts = [
        pair for pair in compared if pair.reference == "initial" and (pair.arm or len(compared) > 1)
    ]
    seeds = [pair for pair in compared if experiment.is_seed_control(pair)]
    moved = [
        pair
        for pair in compared
        if pair not in [*drifts, *seeds] and set(pair) & set(experiment.displacement)
    ]
    pairs = [pair for pair in compared if pair not in [*drifts, *seeds, *moved]]
    return pairs, [*seeds, *moved], drifts


def verdicts_of(
    experiment: Experiment, group: str, pair: Pair, place: Place, controls: Sequence[Pair]
) -> list[Verdict]:
    """Every metric of a pair at one place, beside the controls that share its reference."""
    found = []
    for key, info, curve in _curves(experiment, group, pair, place):
        others = {
            control: other
            for control in _controls_for(pair, controls)
            if (other := experiment.curve(key._replace(pair=control))) is not None
        }
        band = (math.nan, math.nan)
        if curve.band is not None:
            band = (float(curve.band[0, -1]), float(curve.band[1, -1]))
        found.append(
            Verdict(
                key,
                info,
                spread(curve.first),
                spread(curve.last),
                spread(gains_of(curve, info)),
                experiment.chance.get(key, math.nan),
                experiment.level("identity", key),
                experiment.level("p_value", key),
                band,
                {control: spread(other.last) for control, other in others.items()},
                {control: _relation(curve, other, info) for control, other in others.items()},
            )
        )
    return found


def derive(
    experiment: Experiment, group: str, pair: Pair, place: Place, controls: Sequence[Pair]
) -> list[Derived]:
    """Derived quantities of every metric of a pair that says something about likeness."""
    seeds = [each for each in _controls_for(pair, controls) if experiment.is_seed_control(each)]
    found = []
    for key, info, curve in _curves(experiment, group, pair, place):
        if not info.sign:
            continue
        identity = experiment.level("identity", key)
        itself = info.self_similarity if math.isnan(identity) else info.similarity(identity)
        control = experiment.curve(key._replace(pair=seeds[0])) if seeds else None
        halves = [
            half_life(curve.steps.tolist(), [info.similarity(v) for v in row])
            for row in curve.values.tolist()
        ]
        reached = [half for half in halves if math.isfinite(half.step)]
        ends = [
            (info.similarity(first), info.similarity(last))
            for first, last in zip(curve.first, curve.last, strict=True)
        ]
        theirs = zip(control.first, control.last, strict=True) if control else ()
        gaps = [
            closed_gap(*own, *map(info.similarity, other))
            for own, other in zip(ends, theirs, strict=control is not None)
        ]
        found.append(
            Derived(
                key,
                info,
                spread(gains_of(curve, info)),
                spread([half.step for half in halves]),
                (
                    min((half.low for half in reached), default=math.nan),
                    max((half.high for half in reached), default=math.nan),
                ),
                spread([recovered_share(*own, itself) for own in ends]),
                *(spread([gap[part] for gap in gaps]) for part in range(3)),
            )
        )
    return found


def pair_words(verdicts: Sequence[Verdict], num_runs: int) -> list[str]:
    """What all metrics of a pair support, in plain sentences."""
    judged = [v for v in verdicts if v.info.sign and v.after.num_values]
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
    controls = list(dict.fromkeys(pair for v in judged for pair in v.relations))
    for control in controls:
        sides = [v.relations[control] for v in judged if control in v.relations]
        alike = "equal" if num_runs == 1 else "not distinguishable"
        sentences.append(
            f"Compared with {control.arm} it ends nearer in {sides.count(NEARER)}, farther "
            f"apart in {sides.count(FARTHER)}, {alike} in {sides.count(SAME)}."
        )
    if not controls:
        sentences.append("No control shares its reference, so nothing can be said beyond chance.")
    return sentences


def _curves(
    experiment: Experiment, group: str, pair: Pair, place: Place
) -> list[tuple[Key, MetricInfo, Curve]]:
    keys = [
        key for key in experiment.keys if (key.group, key.pair, key.place) == (group, pair, place)
    ]
    found = [(key, info_of(key.metric), experiment.curve(key)) for key in keys]
    return [(key, info, curve) for key, info, curve in found if curve and curve.is_defined]


def _controls_for(pair: Pair, controls: Sequence[Pair]) -> list[Pair]:
    """Controls with the pair's reference."""
    return [each for each in controls if each.reference == pair.reference and each != pair]


def gains_of(curve: Curve, info: MetricInfo) -> list[float]:
    """Realignment gain of each run."""
    return [
        realignment_gain(info.similarity(first), info.similarity(last))
        for first, last in zip(curve.first, curve.last, strict=True)
    ]


def _relation(curve: Curve, control: Curve, info: MetricInfo) -> str:
    """Side on which the pair ends, from differences within each run, which shares its draws."""
    differences = [
        info.similarity(own) - info.similarity(other)
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


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
