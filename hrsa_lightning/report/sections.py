"""The sections of a report, from experiments to blocks."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hrsa_lightning.report.experiments import Experiment, Key, Pair, Place
from hrsa_lightning.report.figures import (
    Styles,
    curves_gallery,
    headline_metrics,
    layers_gallery,
    maps_gallery,
    spectra_gallery,
    styles,
)
from hrsa_lightning.report.page import Block, Cell, Gallery, Heading, Table, Text
from hrsa_lightning.report.statistics import LEAST_CHANGE, Spread, spread
from hrsa_lightning.report.verdict import Verdict, derive, pair_words, pairs_of, verdicts_of
from hrsa_lightning.similarity.measurement import listed
from hrsa_lightning.similarity.metric_info import info_of

__all__ = ["report_blocks"]

Row = list[str | Cell]

_MOST_MAPPED = 6
"""Maps over layers are drawn for so many experiments."""

# What each table or gallery shows, and how to read it.
_VERDICTS = (
    "Before and after are the first and the last evaluation. Chance is what unrelated "
    "representations of this many samples and dimensions give; itself, what the reference and "
    "itself give; p, the share of permuted pairings as much alike at the end. Controls show how "
    "far models end apart whose backbones are the same, or were only displaced: what does not "
    "differ from them is not about the backbones."
)
_ONE_RUN = (
    "One run: there is no spread over seeds, so no statement beyond the seed control is possible, "
    "and none beyond this one draw of it."
)
_INTERVALS = (
    "± is one standard deviation over seeds. Words rest on 95 % t intervals of differences within "
    "runs, not corrected for the number of rows: of 20 rows without any difference, one is "
    "expected to show one."
)
_CONTROLS = (
    "The same numbers for pairs that are no finding: two seeds of one backbone, or a backbone that "
    "was only displaced."
)
_DERIVED = (
    "Gain is similarity after minus before. Half-life is the step at which half of the change was "
    "reached, between the two evaluations named. Recovered is the share of the first distance from "
    "identity that training took back (negative: moved further apart). Gap closed is the share of "
    "the first gap to the seed control that is gone, because the pair moved together or because "
    f"two seeds moved apart. Changes and gaps below {LEAST_CHANGE} give no ratio (–). "
    "docs/method.md has the formulas."
)
_DRIFT = "How alike each arm still is to itself before training; no arm is compared with another."
_LAYERS = (
    "Each row is a layer, the first at the bottom; each column is an evaluation. Bright is alike. "
    "All maps of one metric share their colors."
)
_MAPS = (
    "Rows are the layers of the first model, columns those of the second, at the first, middle and "
    "last step that was kept. On the diagonal each layer meets its counterpart; bright blocks are "
    "layers that do the same. Shown are maps of one run, for an average would blur them."
)
_SINGULAR_VALUES = (
    "How strongly the data ask for each direction of the rotation O*, of one run. Where the curve "
    "has fallen far, noise decides the direction. The panels have scales of their own."
)
_ROW_ENTROPY = (
    "Each feature's row of O*, from the purest to the most mixed, of one run: 0 where it became "
    "one feature of the other model, 1 where it is spread over all. The panels have scales of "
    "their own."
)
_SCORES = (
    "Differences of the last scores. Equal scores of unlike representations are a null effect."
)
_COST = "The share is of the time of the fit, from its start to its end."


def report_blocks(experiments: Sequence[Experiment], *, log_x: bool = False) -> list[Block]:
    """The whole report.

    Args:
        experiments: What `group_runs` made.
        log_x: Draw steps on a logarithmic axis.
    """
    blocks: list[Block] = [Heading("What was run"), *_what_was_run(experiments)]
    if len(experiments) > 1:
        blocks += [Heading("Side by side"), *_side_by_side(experiments)]
    for number, experiment in enumerate(experiments):
        prefixes: list[str] = []
        for group in experiment.groups():
            name = group[:1].upper() + group[1:]
            name = name if len(experiments) == 1 else f"{experiment.label}: {name}"
            prefix = f"{number}_{re.sub(r'[^0-9A-Za-z]', '_', group)[:60]}"
            prefix += f"_{len(prefixes)}" if prefix in prefixes else ""
            prefixes.append(prefix)
            if experiment.is_retrieval(group):
                blocks.append(Heading(f"{name} on held-out pairs"))
                blocks += _retrieval(experiment, group, prefix, log_x)
            else:
                section = _Similarity(experiment, group, prefix, log_x)
                blocks.append(Heading(f"{name} at {section.place}"))
                blocks += [*section.tables(), *section.figures(maps=number < _MOST_MAPPED)]
    blocks += [Heading("Cost of monitoring"), _note(_COST), _cost(experiments)]
    return [block for block in blocks if not (isinstance(block, Gallery) and not block.panels)]


def _note(text: str) -> Text:
    return Text(text, is_note=True)


def _cell(found: Spread, *, digits: int = 3, signed: bool = False) -> Cell:
    """Mean ± standard deviation; the latter where it shows at so many digits."""
    if not found.num_values:
        return Cell("–", math.nan)
    # Adding zero after rounding takes the sign off a zero.
    text = f"{round(found.mean, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    if found.std >= 0.5 * 10**-digits:
        text += f" ± {found.std:.{digits}f}"
    return Cell(text, found.mean)


def _band_words(experiment: Experiment) -> Text:
    """What lines, bands and dashes mean."""
    count = len(experiment.runs)
    if count > 1:
        return _note(f"Mean over {count} seeds; bands are one standard deviation. Dashed: chance.")
    return _note(
        "One seed; bands, where drawn, are its own uncertainty over probes. Dashed: chance."
    )


def _what_was_run(experiments: Sequence[Experiment]) -> list[Block]:
    columns = [_description(experiment) for experiment in experiments]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "not known") for column in columns)] for name in names]
    header = ["", *(experiment.label for experiment in experiments)]
    blocks: list[Block] = [Table("Recipes, data, versions", header, rows)]
    for experiment in experiments:
        notes = [*experiment.notes, *_run_notes(experiment)]
        blocks += [_note(f"{experiment.label}: {note}.") for note in notes]
    return blocks


def _run_notes(experiment: Experiment) -> list[str]:
    notes = dict.fromkeys(note for run in experiment.runs for note in run.notes)
    return [
        note
        if all(note in run.notes for run in experiment.runs)
        else f"{', '.join(run.label for run in experiment.runs if note in run.notes)}: {note}"
        for note in notes
    ]


def _description(experiment: Experiment) -> dict[str, str]:
    run = experiment.runs[0]
    config, environment = run.config, run.environment
    found = {"runs": ", ".join(each.label for each in experiment.runs)}
    if config:
        trainer, data = config.get("trainer", {}), config.get("data", {})
        arms = [f"{name}: {arm.get('backbone')}" for name, arm in experiment.arms().items()]
        found |= {
            "recipe": str(config.get("name")),
            "description": str(config.get("description", "")),
            "arms": "; ".join(arms),
            "training pairs": ", ".join(map(str, data.get("train", []))),
            "seeds": ", ".join(str(each.seed) for each in experiment.runs),
            "batch size": str(data.get("batch_size")),
            "learning rate": str(config.get("optimizer", {}).get("lr")),
            "temperature": str(config.get("loss", {}).get("temperature")),
            "LoRA rank": str(config.get("model", {}).get("lora", {}).get("r", "full")),
            "precision": str(trainer.get("precision")),
        }
    found["steps"] = f"{run.last_step:g}"
    if environment:
        commits = dict.fromkeys(_commit(each.environment.get("git")) for each in experiment.runs)
        packages = environment.get("packages", {})
        machine = [f"{environment.get('threads')} threads", *map(str, environment.get("gpus", []))]
        found |= {
            "versions": ", ".join(f"{name} {ver}" for name, ver in packages.items() if ver),
            "git": ", ".join(commits),
            "machine": ", ".join(machine),
            "platform": f"Python {environment.get('python')}, {environment.get('platform')}",
        }
    seconds = [each.summary["seconds"] for each in experiment.runs if "seconds" in each.summary]
    if seconds:
        found["seconds"] = ", ".join(f"{value:.0f}" for value in seconds)
    return found


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "no checkout"
    return str(git.get("commit", ""))[:12] + (" with local changes" if git.get("dirty") else "")


class _Similarity:
    """The section on one monitor: verdicts, controls, derived quantities, drift, figures.

    Args:
        experiment: Whose.
        group: Name of the monitor.
        prefix: Of the names of figures.
        log_x: Draw steps on a logarithmic axis.
    """

    def __init__(self, experiment: Experiment, group: str, prefix: str, log_x: bool) -> None:
        self.place = experiment.verdict_place(group)
        self._experiment = experiment
        self._group = group
        self._prefix = prefix
        self._log_x = log_x
        self._pairs, self._controls, self._drifts = pairs_of(experiment, group)
        self._metrics = experiment.metrics(group)
        self._styles = styles(experiment, [*self._pairs, *self._controls, *self._drifts])

    def tables(self) -> list[Block]:
        """What was measured at one place, before and after training."""
        blocks: list[Block] = []
        num_runs = len(self._experiment.runs)
        if num_runs == 1:
            blocks.append(_note(_ONE_RUN))
        if self._pairs:
            blocks.append(_note(_VERDICTS))
        if self._pairs and num_runs > 1:
            blocks.append(_note(_INTERVALS))
        for pair in self._pairs:
            verdicts = self._verdicts(pair, self._controls)
            if verdicts:
                blocks.append(Heading(str(pair), 3))
                blocks += [Text(sentence) for sentence in pair_words(verdicts, num_runs)]
                blocks.append(_verdict_table(pair, verdicts))
        blocks += [*self._controls_table(), *self._derived(), *self._drift_table()]
        return [*self._dominated(), *blocks, *self._undefined()]

    def _dominated(self) -> list[Block]:
        """Layers at which the largest dimension carries most of the variance."""
        found: dict[str, float] = {}
        for key in self._experiment.keys:
            if (key.group, key.metric) == (self._group, "variance_share_dimension"):
                share = _cell(spread(self._experiment.curve(key).last)).value  # type: ignore[union-attr]
                if share > 0.5:
                    found[key.place.layer] = max(share, found.get(key.place.layer, 0.0))
        if not found:
            return []
        words = f"{listed(found)}: one dimension carries up to {max(found.values()):.0%} of the "
        return [
            Text(f"{words}variance, and CKA and Procrustes are about it; read cka_standardized.")
        ]

    def _undefined(self) -> list[Block]:
        """What was left out of tables and curves because no evaluation has a value."""
        keys = [key for key in self._experiment.keys if key.group == self._group]
        here = [key for key in keys if key.place == self.place and key.pair.reference]
        empty = [key for key in here if not getattr(self._experiment.curve(key), "is_defined", 0)]
        if not empty:
            return []
        names = dict.fromkeys(info_of(key.metric).title for key in empty)
        words = (
            f"{len(empty)} of {len(here)} values at {self.place} are undefined at every evaluation"
        )
        return [_note(f"{words} and left out: {', '.join(names)}.")]

    def figures(self, *, maps: bool) -> list[Block]:
        """Curves, maps over layers, and what the run kept of alignments.

        Args:
            maps: Draw maps over layers.
        """
        headline = headline_metrics([m for m in self._metrics if info_of(m).sign])
        between = [*self._pairs, *self._controls]
        blocks = [
            *self._curves(
                "Curves", between, self._metrics, "curves",
                f"{self._group} at {self.place}, by optimizer step",
            ),
            *self._curves(
                "Curves of each arm against its own start", self._drifts, headline, "drift",
                f"drift from the start at {self.place}",
            ),
        ]  # fmt: skip
        places = self._experiment.places(self._group)
        places.sort(key=Place("output").__eq__)  # the output comes last
        if len(places) > 1 and maps:
            seeds = [each for each in self._controls if self._experiment.is_seed_control(each)]
            gallery = layers_gallery(
                self._experiment,
                self._group,
                [*self._pairs, *seeds] or self._drifts,
                places,
                headline,
                name=f"{self._prefix}_layers",
                title=f"{self._group}, layers over optimizer steps",
            )
            blocks += [Heading("Layer by layer over steps", 3), _note(_LAYERS), gallery]
        elif len(places) > 1:
            words = f"Maps over layers are drawn for the first {_MOST_MAPPED} experiments only."
            blocks.append(_note(words))
        return [*blocks, *self._details(between or self._drifts)]

    def _verdicts(self, pair: Pair, controls: Sequence[Pair]) -> list[Verdict]:
        return verdicts_of(self._experiment, self._group, pair, self.place, controls)

    def _by_metric(self, pairs: Sequence[Pair]) -> tuple[list[str], list[dict[str, Verdict]]]:
        """Verdicts of each pair by metric, and all metrics that any of them has."""
        columns = [{v.key.metric: v for v in self._verdicts(pair, [])} for pair in pairs]
        return [m for m in self._metrics if any(m in column for column in columns)], columns

    def _controls_table(self) -> list[Block]:
        if not self._controls:
            return []
        metrics, columns = self._by_metric(self._controls)
        header = [""]
        for pair in self._controls:
            header += [f"{pair} before", "after"]
        rows: list[Row] = []
        for metric in metrics:
            row: Row = [info_of(metric).title]
            for verdicts in columns:
                v = verdicts.get(metric)
                row += [_cell(v.before), _cell(v.after)] if v else ["", ""]
            rows.append(row)
        table = Table("Controls before and after training", header, rows)
        return [Heading("Controls", 3), _note(_CONTROLS), table]

    def _drift_table(self) -> list[Block]:
        if not self._drifts:
            return []
        metrics, columns = self._by_metric(self._drifts)
        rows: list[Row] = [
            [info_of(m).title, *(_cell(c[m].after) if m in c else "" for c in columns)]
            for m in metrics
        ]
        header = ["", *(pair.arm or "live" for pair in self._drifts)]
        caption = "Each arm against its own start, at the end of training"
        return [Heading("Drift from the start", 3), _note(_DRIFT), Table(caption, header, rows)]

    def _derived(self) -> list[Block]:
        header = ["", "gain", "half-life (steps)", "between", "recovered"]
        header += ["gap closed", "by the pair", "by the control"]
        blocks: list[Block] = []
        for pair in self._pairs:
            rows: list[Row] = []
            shares: dict[bool, list[float]] = {True: [], False: []}
            found = derive(self._experiment, self._group, pair, self.place, self._controls)
            for d in found:
                low, high = d.bracket
                between = f"{low:g} to {high:g}" if math.isfinite(low) else "–"
                row: Row = [d.info.title, _cell(d.gain, signed=True)]
                row += [_cell(d.half_life, digits=1), between]
                ratios = (d.recovered, d.closed, d.by_pair, d.by_control)
                rows.append([*row, *(_cell(ratio, digits=2) for ratio in ratios)])
                if d.info.kind and math.isfinite(d.recovered.mean):
                    shares[d.info.kind == "local"].append(d.recovered.mean)
            if rows:
                blocks.append(Table(f"{pair}: derived quantities", header, rows))
                blocks += [Text(f"{pair}: {words}") for words in _reversible_words(shares)]
        return [Heading("Realignment in numbers", 3), _note(_DERIVED), *blocks] if blocks else []

    def _curves(
        self, heading: str, pairs: Sequence[Pair], metrics: Sequence[str], end: str, title: str
    ) -> list[Block]:
        if not pairs:
            return []
        gallery = curves_gallery(
            self._experiment,
            self._group,
            {pair: self._styles[pair] for pair in pairs},
            self.place,
            metrics,
            name=f"{self._prefix}_{end}",
            title=title,
            log_x=self._log_x,
        )
        return [Heading(heading, 3), _band_words(self._experiment), gallery]

    def _details(self, pairs: Sequence[Pair]) -> list[Block]:
        colors: Styles = {pair: self._styles[pair] for pair in pairs}
        name = f"{self._prefix}_maps"
        maps = maps_gallery(
            self._experiment, self._group, pairs, name=name, title="linear CKA, debiased"
        )
        found = [("Every layer against every layer (linear CKA)", _MAPS, maps)]
        for kind, heading, words in (
            ("singular_values", "Spectrum behind O*", _SINGULAR_VALUES),
            ("row_entropy", "Row entropy of O*", _ROW_ENTROPY),
        ):
            gallery = spectra_gallery(
                self._experiment,
                self._group,
                colors,
                self.place.layer,
                kind,
                name=f"{self._prefix}_{kind}",
                title=f"{heading[0].lower()}{heading[1:]} at {self.place}",
            )
            found.append((heading, words, gallery))
        blocks: list[Block] = []
        absent = []
        for heading, words, gallery in found:
            if gallery.panels:
                blocks += [Heading(heading, 3), _note(words), gallery]
            else:
                absent.append(heading[0].lower() + heading[1:])
        if absent:
            blocks.append(_note(f"Not kept by these runs: {'; '.join(absent)}."))
        return blocks


def _verdict_table(pair: Pair, verdicts: Sequence[Verdict]) -> Table:
    controls = list(dict.fromkeys(control for v in verdicts for control in v.controls))
    levels = [
        (name, [math.nan if name == "itself" and x in (0, 1) else x for x in values])
        for name, values in (
            ("chance", [v.chance for v in verdicts]),
            ("itself", [v.identity for v in verdicts]),
            ("p", [v.p_value for v in verdicts]),
        )
    ]
    levels = [each for each in levels if each[0] == "chance" or not np.isnan(each[1]).all()]
    names = [name for name, _ in levels]
    header = ["", "before", "after", *names, *(f"after, {each}" for each in controls), "reading"]
    rows: list[Row] = []
    for index, v in enumerate(verdicts):
        own = [values[index] for _, values in levels]
        cells = ["–" if math.isnan(level) else Cell(f"{level:.3f}", level) for level in own]
        others = [_cell(v.controls[each]) if each in v.controls else "" for each in controls]
        words = v.words if v.info.sign else ""
        rows.append([v.info.title, _cell(v.before), _after(v), *cells, *others, words])
    return Table(f"{pair}: before and after training", header, rows)


def _after(verdict: Verdict) -> Cell:
    shown = _cell(verdict.after)
    low, high = verdict.band
    if verdict.after.num_values == 1 and math.isfinite(low) and math.isfinite(high):
        return Cell(f"{shown.text} [{low:.3f}, {high:.3f}]", shown.value)
    return shown


def _reversible_words(shares: Mapping[bool, Sequence[float]]) -> list[str]:
    """Global geometry and basis (CKA, Procrustes) against local geometry (k-NN).

    Args:
        shares: Recovered shares, by whether the metric is local.
    """
    words = []
    for is_local, what in (
        (False, "global geometry and basis (CKA, Procrustes)"),
        (True, "local geometry (k-NN)"),
    ):
        share = spread(shares[is_local])
        if not share.num_values:
            continue
        if share.mean > 0:
            words.append(
                f"in {what}, {share.mean:.2f} of the first distance was reversible and "
                f"{1 - share.mean:.2f} was not"
            )
        else:
            words.append(
                f"in {what} nothing was taken back: the distance from identity ended "
                f"{1 - share.mean:.1f} times as large as it began"
            )
    return ["; ".join(words) + "."] if words else []


def _retrieval(experiment: Experiment, group: str, prefix: str, log_x: bool) -> list[Block]:
    arms = list(dict.fromkeys(key.pair for key in experiment.keys if key.group == group))
    metrics = experiment.metrics(group)
    header = [""]
    for metric in metrics:
        header += [f"{info_of(metric).title} before", "after"]
    rows: list[Row] = []
    for arm in arms:
        row: Row = [str(arm)]
        for metric in metrics:
            curve = experiment.curve(Key(group, metric, arm, Place()))
            cells = [_cell(spread(v)) for v in (curve.first, curve.last)] if curve else ["", ""]
            row += cells
        rows.append(row)
    gallery = curves_gallery(
        experiment,
        group,
        styles(experiment, arms),
        Place(),
        metrics,
        name=f"{prefix}_curves",
        title=f"{group} on held-out pairs, by optimizer step",
        log_x=log_x,
    )
    table = Table("Held-out retrieval before and after training", header, rows)
    differences = _score_differences(experiment, group, arms, metrics)
    return [table, *differences, _band_words(experiment), gallery]


def _score_differences(
    experiment: Experiment, group: str, arms: Sequence[Pair], metrics: Sequence[str]
) -> list[Block]:
    """Final scores of every arm against the arm that the others are compared with."""
    references = dict.fromkeys(Pair(key.pair.reference) for key in experiment.keys)
    base = next((arm for arm in references if arm in arms), None)
    others = [arm for arm in arms if arm != base]
    if base is None or not others:
        return []
    rows: list[Row] = []
    for metric in metrics:
        curves = {arm: experiment.curve(Key(group, metric, arm, Place())) for arm in arms}
        own = curves[base]
        found = {
            arm: spread([a - b for a, b in zip(curve.last, own.last, strict=True)])
            for arm in others
            if own is not None and (curve := curves[arm]) is not None
        }
        apart = [str(arm) for arm, each in found.items() if each.low > 0 or each.high < 0]
        words = f"{', '.join(apart)} differs" if apart else "none distinguishable"
        cells = [_cell(found[arm], signed=True) if arm in found else "" for arm in others]
        one = len(experiment.runs) == 1
        rows.append([info_of(metric).title, *cells, "one seed, no interval" if one else words])
    header = ["after training", *(f"{arm} minus {base}" for arm in others), "reading"]
    return [
        _note(_SCORES),
        Table(f"Do the arms' scores differ from those of {base}?", header, rows),
    ]


def _side_by_side(experiments: Sequence[Experiment]) -> list[Block]:
    """Gains of every pair, one column per experiment."""
    gains: dict[tuple[Pair, str], dict[int, Spread]] = {}
    for index, experiment in enumerate(experiments):
        for group in experiment.groups():
            place = experiment.verdict_place(group)
            pairs = [] if experiment.is_retrieval(group) else pairs_of(experiment, group)[0]
            for pair in pairs:
                verdicts = verdicts_of(experiment, group, pair, place, [])
                chosen = headline_metrics([v.key.metric for v in verdicts if v.info.sign])
                for v in verdicts:
                    if v.key.metric in chosen:
                        gains.setdefault((pair, v.key.metric), {})[index] = v.change
    if not gains:
        return [_note("The experiments have no pair of arms to lay side by side.")]
    columns = range(len(experiments))
    rows: list[Row] = [
        [
            f"{pair}: {info_of(metric).title}",
            *(_cell(found[i], signed=True) if i in found else "" for i in columns),
        ]
        for (pair, metric), found in gains.items()
    ]
    header = ["realignment gain", *(experiment.label for experiment in experiments)]
    return [Table("Similarity after minus before, more alike is positive", header, rows)]


def _cost(experiments: Iterable[Experiment]) -> Table:
    rows: list[Row] = []
    for experiment in experiments:
        for name in dict.fromkeys(name for run in experiment.runs for name in run.histories):
            runs = [run for run in experiment.runs if name in run.histories]
            seconds = [run.histories[name].seconds for run in runs]
            defined = [each[~np.isnan(each)] for each in seconds]
            totals = [float(each.sum()) for each in defined]
            shares = [
                total / run.summary["seconds"]
                for total, run in zip(totals, runs, strict=True)
                if run.summary.get("seconds")
            ]
            per = spread([float(value) for each in defined for value in each])
            count = Cell(f"{len(seconds[0]):d}", float(len(seconds[0])))
            cells = [_cell(s, digits=2) for s in (per, spread(totals), spread(shares))]
            rows.append([f"{experiment.label}: {name}", count, *cells])
    header = ["monitor", "evaluations", "seconds each", "seconds in all", "share of the run"]
    return Table("What monitoring took, figures not included", header, rows)
