"""What one monitor of an experiment found: before and after, beside chance and controls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hrsa_lightning.report.experiments import Curve, Experiment, Key, Pair, Place
from hrsa_lightning.report.statistics import (
    Spread,
    closed_gap,
    half_life,
    recovered_share,
    spread,
)
from hrsa_lightning.similarity.measurement import MEAN_OVER_LAYERS
from hrsa_lightning.similarity.metric_info import MetricInfo, info_of, main_metrics

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
        relations: Where the pair ends beside each control with its reference, seed controls first.
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
    relations: Mapping[Pair, str]
    drift: str
    half_life: Spread
    bracket: tuple[float, float]
    recovered: Spread
    closed: Sequence[Spread]
    noise: float
    is_withheld: bool

    @property
    def course(self) -> str:
        """Where the pair went: `together`, `apart`, or `same`.

        Beside a seed control, apart is `beyond` or `less` than what two seeds do. One run tells a
        direction only where it goes further than its seed control, and else is `within` that.
        """
        moved = side_of(self.gain)
        if moved == SAME:
            return "same"
        if self.gain.num_values == 1 and abs(self.gain.mean) <= self.noise:
            return "within"
        if moved == NEARER:
            return "together"
        return "apart" if not self.drift else "beyond" if self.drift == FARTHER else "less"

    @property
    def is_chance(self) -> bool:
        """Whether the end cannot be told from unrelated representations."""
        if self.curve.last_level("p_value") >= 0.05:
            return True
        low, high = self.after.low, self.after.high
        if self.after.num_values < 2 and self.curve.band is not None:
            low, high = (float(end[-1]) for end in self.curve.band)
        return low <= self.curve.last_level("chance") <= high


class Findings:
    """What one monitor of an experiment found.

    Attributes:
        experiment: Whose.
        group: Name of the monitor, with that of the probe set where there are several.
        metrics: Metrics of comparisons, and scores; diagnostics of single arms are not among them.
        places: Layers, the output last; labels of the probe set only where there is nothing else.
        place: Where verdicts are given: at the output, or else at the last layer.
        is_retrieval: Its values have no layers.
        arms: What is scored.
        pairs: Comparisons that may be a finding; the only one of a single model, whatever it is
            compared with.
        seeds: Seed controls.
        controls: All comparisons that are no finding, seed controls first.
        drifts: Comparisons of arms with their own start.
        void: Seed controls that are none, since the two never differed.
    """

    def __init__(self, experiment: Experiment, group: str) -> None:
        self.experiment = experiment
        self.group = group
        keys = [key for key in experiment.keys if key.group == group]
        shown = [key for key in keys if key.pair.reference or not key.place.layer]
        self.metrics = list(dict.fromkeys(key.metric for key in shown))
        places = dict.fromkeys(key.place for key in keys if key.place.layer != MEAN_OVER_LAYERS)
        self.places = [place for place in places if not place.label] or list(places)
        self.places.sort(key=Place("output").__eq__)
        self.place = self.places[-1]
        self.is_retrieval = not self.place.layer
        self.arms = list(dict.fromkeys(key.pair for key in keys if self.is_retrieval))
        compared = list(dict.fromkeys(key.pair for key in keys if key.pair.reference))
        self.drifts = [p for p in compared if p.reference == "initial" and (p.arm or compared[1:])]
        others = [pair for pair in compared if pair not in self.drifts]
        seeds = [pair for pair in others if experiment.is_seed_control(pair)]
        self.void = [pair for pair in seeds if self._is_identical(pair)]
        self.seeds = [pair for pair in seeds if pair not in self.void]
        moved = {*experiment.displacement}
        others = [pair for pair in others if pair not in seeds]
        self.controls = [*self.seeds, *(pair for pair in others if moved & {*pair})]
        self.pairs = [pair for pair in others if not moved & {*pair}]

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

    def curve(self, metric: str, pair: Pair, place: Place | None = None) -> Curve | None:
        """Values of a pair, at the place of verdicts or another; `None` where undefined."""
        return self.experiment.curve(Key(self.group, metric, pair, place or self.place))

    def verdicts(self, pair: Pair, metrics: Sequence[str] | None = None) -> list[Verdict]:
        """Every metric of a pair, or some, beside the controls that share its reference."""
        found = {m: self.curve(m, pair) for m in (self.metrics if metrics is None else metrics)}
        return [self._verdict(metric, pair, curve) for metric, curve in found.items() if curve]

    def _verdict(self, metric: str, pair: Pair, curve: Curve) -> Verdict:
        info = info_of(metric)
        ends = ends_of(curve, info)
        controls = {
            other: ends_of(theirs, info)
            for other in self.controls
            if other != pair
            and other.reference == pair.reference
            and (theirs := self.curve(metric, other))
        }
        seed = next((controls[other] for other in self.seeds if other in controls), [])
        measured = curve.last_level("identity")
        itself = info.similarity(info.identity if math.isnan(measured) else measured)
        noise = spread([itself - last for _, last in seed]).mean
        distance = spread([itself - first for first, _ in ends]).mean
        # Without a seed control nothing says what is noise, and shares stand as they are.
        is_withheld = not info.sign or math.isnan(itself) or distance <= noise
        both = list(zip(ends, seed, strict=True)) if seed else []
        gaps = [] if is_withheld else [closed_gap(*own, *theirs) for own, theirs in both]
        halves = [
            half_life(curve.steps.tolist(), [info.similarity(v) for v in row])
            for row in curve.values.tolist()
        ]
        reached = [half for half in halves if math.isfinite(half.step)]
        drift = spread([own[1] - own[0] - (theirs[1] - theirs[0]) for own, theirs in both])
        return Verdict(
            Key(self.group, metric, pair, self.place),
            info,
            curve,
            spread(curve.first),
            spread(curve.last),
            spread([last - first for first, last in ends]),
            {other: _side_of_ends(ends, theirs) for other, theirs in controls.items()},
            side_of(drift) if both else "",
            spread([half.step for half in halves]),
            (
                min((half.low for half in reached), default=math.nan),
                max((half.high for half in reached), default=math.nan),
            ),
            spread([] if is_withheld else [recovered_share(*own, itself) for own in ends]),
            [spread([gap[part] for gap in gaps]) for part in range(3)],
            noise,
            is_withheld,
        )

    def _is_identical(self, pair: Pair) -> bool:
        """Whether every metric always had the value of a model compared with itself."""
        found = {metric: self.curve(metric, pair) for metric in self.metrics}
        same = [
            abs(curve.values - identity) <= _NOTHING
            for metric, curve in found.items()
            if curve and math.isfinite(identity := info_of(metric).identity)
        ]
        return bool(same) and all(bool(each.all()) for each in same)


def findings_of(experiment: Experiment) -> list[Findings]:
    """All monitors, with probe sets apart; those of retrieval last."""
    groups = dict.fromkeys(key.group for key in experiment.keys)
    return sorted((Findings(experiment, g) for g in groups), key=lambda each: each.is_retrieval)


def ends_of(curve: Curve, info: MetricInfo) -> list[tuple[float, float]]:
    """Similarity of each run before and after."""
    return [
        (info.similarity(first), info.similarity(last))
        for first, last in zip(curve.first, curve.last, strict=True)
    ]


def side_of(found: Spread) -> str:
    """The side of 0 on which a difference of similarities lies: its 95 % interval, or one value."""
    low, high = found.low, found.high
    if found.num_values == 1:
        low = high = found.mean if abs(found.mean) > _NOTHING else 0.0
    return NEARER if low > 0 else FARTHER if high < 0 else SAME


def _side_of_ends(
    ends: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]
) -> str:
    """Side on which the pair ends, from differences within each run, which shares its draws."""
    return side_of(spread([own[1] - other[1] for own, other in zip(ends, others, strict=True)]))
