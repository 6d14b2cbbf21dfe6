"""The answer of an experiment in sentences: who moved where, beside which control, how sure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hrsa_lightning.report.experiments import Curve, Experiment, Pair
from hrsa_lightning.report.statistics import Spread, spread
from hrsa_lightning.report.verdict import (
    FARTHER,
    NEARER,
    SAME,
    Findings,
    Verdict,
    findings_of,
    side_of,
)
from hrsa_lightning.similarity.measurement import listed
from hrsa_lightning.similarity.metric_info import KINDS, MetricInfo, info_of

_NEAR = 0.005
"""Distances from identity below this are shown to their second digit."""
_MOST_DIGITS = 6
_COURSES = {
    "together": "moved together",
    "apart": "moved apart",
    "beyond": "moved further apart than two seeds of {} do",
    "less": "moved apart, though no further than two seeds of {} do",
    "within": "moved neither together nor apart by more than a change of seed does",
    "same": "did not measurably move",
}


class Sentence(NamedTuple):
    """One statement.

    Attributes:
        lead: What is found.
        rest: The end of the sentence.
        numbers: What it rests on.
    """

    lead: str
    rest: str
    numbers: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.lead}{self.rest} {'; '.join(self.numbers)}".rstrip()


def question(experiment: Experiment) -> str:
    """What the answer answers, and from how many runs."""
    runs = experiment.runs
    seeds = ", ".join(str(run.seed) for run in runs if run.seed is not None)
    what = f"{len(runs)} runs" if len(runs) > 1 else "one run"
    what += f" of {runs[0].last_step:g} steps"
    what += f", seed{'s' * (len(runs) > 1)} {seeds}" if seeds else ""
    pairs = [pair for each in findings_of(experiment) for pair in each.pairs if pair.arm]
    if not pairs:
        return f"How far does training move the representations? From {what}."
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    others = joined(list(dict.fromkeys(_its(pair.reference) for pair in pairs)))
    verb = "Do" if arms[1:] else "Does"
    return f"{verb} {joined(arms)} realign with {others}? From {what}."


def answer_of(experiment: Experiment) -> list[Sentence]:
    """Every pair of every monitor, the scores, the controls, and how sure all that is."""
    found = findings_of(experiment)
    monitors = [each for each in found if not each.is_retrieval]
    said, beside = [], []
    for findings in monitors:
        name = f"{findings.group}: " if len(monitors) > 1 else ""
        pairs = [_pair_sentence(findings, pair) for pair in findings.pairs]
        said += [
            each._replace(lead=name + each.lead)
            for each in (*_realignment_sentence(findings), *pairs)
        ]
        others = [
            *(_control_sentence(findings, pair) for pair in findings.controls),
            *(_void_sentence(pair) for pair in findings.void),
            *_drift_sentence(findings),
            *_dominated_sentence(findings),
        ]
        beside += [each._replace(lead=name + each.lead) for each in others]
    for findings in found[len(monitors) :]:
        said += _score_sentence(findings)
    if not said and not beside:
        return []
    return [*said, _certainty(experiment, monitors), *beside]


def _realignment_sentence(findings: Findings) -> list[Sentence]:
    """Whether training brought any model together with another."""
    found = {
        pair: findings.verdicts(pair, findings.main_metrics)
        for pair in findings.pairs
        if pair.arm and pair.reference != "initial"
    }
    if not any(found.values()):
        return []
    subject = "Realignment (training brings two models together) was"
    seen = {pair: [v for v in each if v.course == "together"] for pair, each in found.items()}
    if not any(seen.values()):
        noise = "by more than a change of seed explains" if findings.seeds else "measurably"
        return [Sentence(f"{subject} not seen", f": no pair came nearer {noise}.")]
    parts = [
        f"{pair}{f' ({_kinds(those)})' if len(those) < len(found[pair]) else ''}"
        for pair, those in seen.items()
        if those
    ]
    others = joined([str(pair) for pair, those in seen.items() if not those])
    return [Sentence(f"{subject} seen", f": {joined(parts)}{others and f'; not {others}'}.")]


def _pair_sentence(findings: Findings, pair: Pair) -> Sentence:
    """How far the pair moved, and where it ends beside the controls."""
    verdicts = findings.verdicts(pair, findings.main_metrics)
    subject = f"{pair.arm or 'the model'} and {_its(pair.reference)}"
    if not verdicts:
        return Sentence(f"{subject} cannot be compared", ": no metric is defined at any step.")
    by_course: dict[str, list[Verdict]] = {}
    for v in sorted(verdicts, key=lambda v: list(_COURSES).index(v.course)):
        by_course.setdefault(v.course, []).append(v)
    courses = [
        _COURSES[course].format(pair.reference)
        + (f" in {_kinds(those)}" if len(by_course) > 1 else "")
        for course, those in by_course.items()
    ]
    ends = [_beside(findings, control, verdicts) for control in verdicts[0].relations]
    beside = f"; they end {joined(ends)}." if ends else "."
    return Sentence(f"{subject} {joined(courses)}", beside, [_move(v) for v in verdicts])


def _its(reference: str) -> str:
    return "its own start" if reference == "initial" else reference


def _kinds(verdicts: Iterable[Verdict]) -> str:
    return joined([KINDS.get(v.info.kind, v.info.title) for v in verdicts])


def _move(v: Verdict) -> str:
    """Such as `linear CKA 0.9969 → 0.9990 (+0.0015 to +0.0027)`."""
    ends = numbers([v.before.mean, v.after.mean], v.info)
    words = f"{v.info.short()} {ends[0]} → {ends[1]}"
    if v.gain.num_values > 1:
        low, high = sorted(v.info.similarity(end) for end in (v.gain.low, v.gain.high))
        return words + _interval(low, high, digits=len(ends[0].partition(".")[2]))
    if v.curve.band is not None and not math.isnan(v.curve.band[0][-1]):
        band = numbers([float(end[-1]) for end in v.curve.band], v.info)
        return f"{words} [{', '.join(band)}]"
    return words


def _interval(low: float, high: float, digits: int = 3) -> str:
    return f" ({low:+.{digits}f} to {high:+.{digits}f})".replace("-", "−")


def _beside(findings: Findings, control: Pair, verdicts: Sequence[Verdict]) -> str:
    sides: dict[str, list[Verdict]] = {}
    for v in verdicts:
        if control in v.relations:
            sides.setdefault(v.relations[control], []).append(v)
    name = "the seed control" if findings.seeds == [control] else control.arm
    short = {NEARER: "nearer", FARTHER: "farther apart", SAME: "as near"}
    words = [f"{short[side]} {'as' if side == SAME else 'than'} {name}" for side in sides]
    if len(sides) == 1:
        count = verdicts[0].gain.num_values
        unsure = f", as far as {count} seeds tell" if SAME in sides and count > 1 else ""
        return words[0] + unsure
    # the second time, the name goes without saying
    words = [words[0], *(short[side] for side in list(sides)[1:])]
    return joined([f"{w} in {_kinds(v)}" for w, v in zip(words, sides.values(), strict=True)])


def _control_sentence(findings: Findings, pair: Pair) -> Sentence:
    verdicts = findings.verdicts(pair, findings.main_metrics)
    ends = [f"{v.info.short()} {numbers([v.after.mean], v.info)[0]}" for v in verdicts]
    if pair not in findings.seeds:
        words = f": {pair.arm}, only displaced, ends beside {pair.reference} at"
        return Sentence("Displacement control", words, ends)
    varied = findings.experiment.varied_by_seed(pair)
    drawn = f"its own {joined(varied)}" if varied else "another seed"
    words = f": {pair.arm} is {pair.reference} with {drawn}; this alone drives the two apart, to"
    return Sentence("Seed control", words, ends)


def _void_sentence(pair: Pair) -> Sentence:
    words = ": the two never differed, so nothing here says what a seed alone does."
    return Sentence(f"{pair.arm} is no control of {pair.reference}", words)


def _drift_sentence(findings: Findings) -> list[Sentence]:
    """How far training took the arms, for scale."""
    found = []
    for metric in findings.main_metrics:
        curves = [findings.curve(metric, pair) for pair in findings.drifts]
        ends = [spread(curve.last).mean for curve in curves if curve]
        if ends:
            low, high = numbers([min(ends), max(ends)], info_of(metric))
            found.append(f"{info_of(metric).short()} {low if low == high else f'{low} to {high}'}")
    arms = joined([pair.arm or "the model" for pair in findings.drifts])
    words = f": training takes {arms} away from {'their' if ' and ' in arms else 'its'} start, to"
    return [Sentence("For scale", words, found)] if found else []


def _dominated_sentence(findings: Findings) -> list[Sentence]:
    found = findings.dominated
    words = (
        f": at {listed(found)}, one carries up to {max(found.values(), default=0):.0%} of the "
        "variance, and CKA and Procrustes are about it; read cka_standardized."
    )
    return [Sentence("One dimension dominates", words)] if found else []


def _score_sentence(findings: Findings) -> list[Sentence]:
    """Whether the arms' retrieval differs: the null effect, or none."""
    metric = next((m for m in findings.metrics if m.startswith("mrr@")), findings.metrics[0])
    found = {arm: findings.curve(metric, arm) for arm in findings.arms}
    curves = {arm: curve for arm, curve in found.items() if curve}
    if not curves:
        return []
    title, scores = info_of(metric).title, []
    base = base_of(findings, list(curves))
    differences = score_differences(curves, base) if base else {}
    for arm, curve in curves.items():
        before, after = (number(spread(ends).mean) for ends in (curve.first, curve.last))
        change = differences.get(arm)
        interval = _interval(change.low, change.high) if change and change.num_values > 1 else ""
        scores.append(f"{arm} {before} → {after}{interval}")
    if base is None or not differences:
        return [Sentence("Retrieval", f": {title} before and after training", scores)]
    lead, rest = _null_effect(findings.experiment, differences, base)
    return [Sentence(f"Retrieval {lead}", f"{rest}: {title}, at best 1", scores)]


def _null_effect(
    experiment: Experiment, differences: Mapping[Pair, Spread], base: Pair
) -> tuple[str, str]:
    """What differences of scores support: with several seeds a test, with one only sizes."""
    controls = {arm for arm in differences if experiment.is_seed_control(Pair(arm.arm, base.arm))}
    arms = {arm: each for arm, each in differences.items() if arm not in controls}
    if len(experiment.runs) > 1:
        apart = [str(arm) for arm, each in arms.items() if side_of(each) != SAME]
        alike = [str(arm) for arm in arms if str(arm) not in apart]
        said = [f"of {joined(apart)} differs from {base}"] if apart else []
        said += [f"of {joined(alike)} does not measurably differ from {base}"] if alike else []
        return joined(said), " (differences in brackets)"
    largest = max((abs(each.mean) for each in arms.values()), default=0.0)
    noise = max((abs(differences[arm].mean) for arm in controls), default=math.nan)
    beside = "" if math.isnan(noise) else f", the seed control by {noise:.3f}"
    return f"differs from that of {base} by at most {largest:.3f}", beside


def base_of(findings: Findings, arms: Sequence[Pair]) -> Pair | None:
    """The arm that the others are compared with."""
    references = dict.fromkeys(Pair(key.pair.reference) for key in findings.experiment.keys)
    return next((arm for arm in references if arm in arms), None)


def score_differences(curves: Mapping[Pair, Curve], base: Pair) -> dict[Pair, Spread]:
    """Final scores of every arm less those of the base, run by run."""
    theirs = curves[base].last
    return {
        arm: spread([own - other for own, other in zip(curve.last, theirs, strict=True)])
        for arm, curve in curves.items()
        if arm != base
    }


def _certainty(experiment: Experiment, monitors: Sequence[Findings]) -> Sentence:
    """What the words above rest on; said once."""
    count = len(experiment.runs)
    words = ": one seed, so no interval. This is what one run shows; another seed may differ."
    if count > 1:
        words = (
            f": {count} seeds. Ranges of changes and differences are 95 % t intervals, taken "
            "within runs and not corrected for their number."
        )
    verdicts = [
        v
        for each in monitors
        for pair in each.pairs
        for v in each.verdicts(pair, each.main_metrics)
    ]
    if any(v.curve.band for v in verdicts):
        words += " Square brackets are 95 % bands over probes."
    compared = [v for v in verdicts if v.key.pair.reference != "initial"]
    lacking = dict.fromkeys(str(v.key.pair) for v in compared if not v.drift)
    if lacking:
        words += f" No seed control stands beside {joined(list(lacking))}: nothing tells a move "
        words += "from what a seed alone does."
    unlike = [f"{v.key.pair} ({v.info.short()})" for v in verdicts if v.is_chance]
    if unlike:
        words += f" Not to be told from chance: {joined(unlike)}."
    levels = [v.curve.last_level("p_value") for v in verdicts]
    known = list(filter(math.isfinite, levels))
    if known and not unlike:
        words += (
            f" Every pair is more alike than permuted pairings (p\u00a0≤\u00a0{max(known):.3f})."
        )
    return Sentence("How sure", words)


def number(value: float, digits: int = 3) -> str:
    """A number as it is shown; adding zero after rounding takes the sign off a zero."""
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def numbers(values: Sequence[float], info: MetricInfo) -> list[str]:
    """Values with three digits, or with so many that distances from identity show two.

    Example:
        >>> numbers([0.9969, 0.99903], info_of("cka"))
        ['0.99690', '0.99903']
        >>> numbers([0.5, 0.75], info_of("cka"))
        ['0.500', '0.750']
    """
    distances = [abs(info.identity - v) for v in values]
    near = [d for d in distances if 10**-_MOST_DIGITS < d < _NEAR]
    digits = min(_MOST_DIGITS, 1 - math.floor(math.log10(min(near)))) if near else 3
    return [number(value, digits) for value in values]


def joined(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> joined(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
