"""What one monitor of an experiment found: before and after, beside chance and controls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

from hrsa_lightning.report.experiments import Curve, Experiment, Key, Pair, Place
from hrsa_lightning.report.statistics import (
    ClosedGap,
    Spread,
    closed_gap,
    half_life,
    realignment_gain,
    recovered_share,
    spread,
)
from hrsa_lightning.similarity.metric_info import MetricInfo, info_of, main_metrics

__all__ = ["FARTHER", "NEARER", "SAME", "Findings", "Verdict", "gains_of", "side_of"]

NEARER, FARTHER, SAME = "nearer", "farther", "same"

_NOTHING = 1e-6
"""Smaller differences of one run are rounding."""


@dataclass(frozen=True)
class Verdict:
    """One metric of one pair.

    Attributes:
        key: Which.
        info: What is known of the metric.
        curve: Its values.
        before: At the first evaluation, over runs.
        after: At the last.
        gain: Similarity after minus before, over runs.
        controls: Curves of the controls with the pair's reference, seed controls first.
        relations: Where the pair ends beside each control: nearer, farther or same.
        drift: Its gain beside that of the seed control: `farther` where it moved apart by more.
            Empty without a seed control.
        half_life: Steps to half of the change.
        bracket: Evaluations between which the half lies, over all runs.
        recovered: Reversible part.
        closed: Share of the gap to the seed control that is closed, and its two parts.
        noise: Distance at which two seeds of the reference end; NaN without a seed control.
        is_withheld: The distance that shares would be of is within `noise`, or missing.
    """

    key: Key
    info: MetricInfo
    curve: Curve
    before: Spread
    after: Spread
    gain: Spread
    controls: Mapping[Pair, Curve]
    relations: Mapping[Pair, str]
    drift: str
    half_life: Spread
    bracket: tuple[float, float]
    recovered: Spread
    closed: tuple[Spread, Spread, Spread]
    noise: float
    is_withheld: bool

    @property
    def moved(self) -> str:
        """`nearer`, `farther` or `same`, beyond the spread over runs; of one run, as it went."""
        return side_of(self.gain)

    @property
    def course(self) -> str:
        """Where the pair went: `together`, `apart`, `beyond` or `within` what seeds do, `same`.

        Several runs tell a direction by their interval, one run only beyond its seed control.
        """
        if self.moved == SAME:
            return "same"
        if self.gain.num_values == 1 and abs(self.gain.mean) <= self.noise:
            return "within"
        if self.moved == NEARER:
            return "together"
        return "apart" if not self.drift else "beyond" if self.drift == FARTHER else "within"

    @property
    def is_chance(self) -> bool:
        """Whether the end cannot be told from unrelated representations."""
        if self.curve.last_level("p_value") >= 0.05:
            return True
        ends = (self.after.low, self.after.high)
        if self.after.num_values < 2 and self.curve.band is not None:
            ends = tuple(float(end[-1]) for end in self.curve.band)  # type: ignore[assignment]
        return ends[0] <= self.curve.last_level("chance") <= ends[1]

    @property
    def words(self) -> str:
        """What the numbers support, in one phrase."""
        said = [
            f"{phrase} {joined([pair.arm for pair in found])}"
            for side, phrase in (
                (NEARER, "nearer than"),
                (FARTHER, "farther apart than"),
                (SAME, "not distinguishable from"),
            )
            if (found := [pair for pair, relation in self.relations.items() if relation == side])
        ]
        return "; ".join([*said, *(["not distinguishable from chance"] if self.is_chance else [])])


class Findings:
    """What one monitor of an experiment found.

    Attributes:
        experiment: Whose.
        group: Name of the monitor.
        place: Where verdicts are given.
        metrics: Metrics of comparisons, or scores.
        pairs: Comparisons that may be a finding; the only one of a single model, whatever it is
            compared with.
        controls: Comparisons that are none, seed controls first.
        drifts: Comparisons of arms with their own start.
        void: Seed controls that are none, since the two never differed.
    """

    def __init__(self, experiment: Experiment, group: str) -> None:
        self.experiment = experiment
        self.group = group
        self.place = experiment.verdict_place(group)
        self.metrics = experiment.metrics(group)
        keys = [key for key in experiment.keys if key.group == group and key.pair.reference]
        compared = list(dict.fromkeys(key.pair for key in keys))
        self.drifts = [
            pair
            for pair in compared
            if pair.reference == "initial" and (pair.arm or len(compared) > 1)
        ]
        others = [pair for pair in compared if pair not in self.drifts]
        seeds = [pair for pair in others if experiment.is_seed_control(pair)]
        self.void = [pair for pair in seeds if self._is_identical(pair)]
        self._seeds = [pair for pair in seeds if pair not in self.void]
        moved = {*experiment.displacement}
        others = [pair for pair in others if pair not in seeds]
        self.controls = [*self._seeds, *(pair for pair in others if moved & {*pair})]
        self.pairs = [pair for pair in others if not moved & {*pair}]

    @property
    def num_seeds(self) -> int:
        """Number of seed controls."""
        return len(self._seeds)

    @cached_property
    def dominated(self) -> dict[str, float]:
        """Layers at which one dimension carries most of the variance, and how much it carries."""
        found: dict[str, float] = {}
        for key in self.experiment.keys:
            if (key.group, key.metric) == (self.group, "variance_share_dimension"):
                curve = self.experiment.curve(key)
                share = spread(curve.last).mean if curve else 0.0
                if share > 0.5:
                    found[key.place.layer] = max(share, found.get(key.place.layer, 0.0))
        return found

    @cached_property
    def main_metrics(self) -> list[str]:
        """Those that the answer is given in."""
        return main_metrics(self.metrics, is_dominated=self.place.layer in self.dominated)

    def curves(self, pair: Pair, place: Place | None = None) -> dict[str, Curve]:
        """Defined curves of a pair by metric."""
        keys = [Key(self.group, metric, pair, place or self.place) for metric in self.metrics]
        found = {key.metric: self.experiment.curve(key) for key in keys}
        return {metric: curve for metric, curve in found.items() if curve is not None}

    def main_verdicts(self, pair: Pair) -> list[Verdict]:
        """Verdicts of the metrics that the answer is given in."""
        return [v for v in self.verdicts(pair) if v.key.metric in self.main_metrics]

    def verdicts(self, pair: Pair) -> list[Verdict]:
        """Every metric of a pair, beside the controls that share its reference."""
        beside = [each for each in self.controls if each.reference == pair.reference != ""]
        theirs = {each: self.curves(each) for each in beside if each != pair}
        return [
            self._verdict(
                Key(self.group, metric, pair, self.place),
                curve,
                {each: found[metric] for each, found in theirs.items() if metric in found},
            )
            for metric, curve in self.curves(pair).items()
        ]

    def _verdict(self, key: Key, curve: Curve, controls: Mapping[Pair, Curve]) -> Verdict:
        info = info_of(key.metric)
        ends = _ends(curve, info)
        seed = next((controls[each] for each in self._seeds if each in controls), None)
        theirs = _ends(seed, info) if seed else []
        measured = curve.last_level("identity")
        itself = info.similarity(info.identity if math.isnan(measured) else measured)
        noise = spread([itself - last for _, last in theirs]).mean
        distance = spread([itself - first for first, _ in ends]).mean
        # Without a seed control nothing says what is noise, and shares stand as they are.
        is_withheld = not info.sign or math.isnan(itself) or distance <= noise
        shares = [] if is_withheld else [recovered_share(*own, itself) for own in ends]
        gaps = zip(ends, theirs, strict=True) if theirs and not is_withheld else ()
        closed = [closed_gap(*own, *other) for own, other in gaps]
        halves = [
            half_life(curve.steps.tolist(), [info.similarity(v) for v in row])
            for row in curve.values.tolist()
        ]
        reached = [half for half in halves if math.isfinite(half.step)]
        drift = [
            realignment_gain(*own) - realignment_gain(*other)
            for own, other in zip(ends, theirs, strict=bool(theirs))
        ]
        return Verdict(
            key,
            info,
            curve,
            spread(curve.first),
            spread(curve.last),
            spread(gains_of(curve, info)),
            controls,
            {each: _relation(ends, _ends(other, info)) for each, other in controls.items()},
            side_of(spread(drift)) if drift else "",
            spread([half.step for half in halves]),
            (
                min((half.low for half in reached), default=math.nan),
                max((half.high for half in reached), default=math.nan),
            ),
            spread(shares),
            _by_part(closed),
            noise,
            is_withheld,
        )

    def _is_identical(self, pair: Pair) -> bool:
        """Whether every metric always had the value of a model compared with itself."""
        found = [
            abs(curve.values - identity) <= _NOTHING
            for metric, curve in self.curves(pair).items()
            if math.isfinite(identity := info_of(metric).identity)
        ]
        return bool(found) and all(bool(same.all()) for same in found)


def gains_of(curve: Curve, info: MetricInfo) -> list[float]:
    """Realignment gain of each run."""
    return [realignment_gain(*own) for own in _ends(curve, info)]


def side_of(found: Spread) -> str:
    """The side of 0 on which a difference of similarities lies: its 95 % interval, or one value."""
    if found.num_values == 1:
        low = high = found.mean if abs(found.mean) > _NOTHING else 0.0
    else:
        low, high = found.low, found.high
    return NEARER if low > 0 else FARTHER if high < 0 else SAME


def joined(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> joined(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _ends(curve: Curve, info: MetricInfo) -> list[tuple[float, float]]:
    """Similarity of each run before and after."""
    return [
        (info.similarity(first), info.similarity(last))
        for first, last in zip(curve.first, curve.last, strict=True)
    ]


def _relation(ends: Sequence[tuple[float, float]], controls: Sequence[tuple[float, float]]) -> str:
    """Side on which the pair ends, from differences within each run, which shares its draws."""
    return side_of(
        spread([own - other for (_, own), (_, other) in zip(ends, controls, strict=True)])
    )


def _by_part(closed: Sequence[ClosedGap]) -> tuple[Spread, Spread, Spread]:
    total, by_pair, by_control = zip(*closed, strict=True) if closed else repeat((), 3)
    return spread(total), spread(by_pair), spread(by_control)
