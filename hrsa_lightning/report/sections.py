"""The sections of a report: the answer, pictures, tables, what was run."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hrsa_lightning.metrics.heatmaps import HEATMAPS
from hrsa_lightning.report.answer import answer_of, base_arm, number, numbers, score_differences
from hrsa_lightning.report.experiments import Experiment, Pair, Place
from hrsa_lightning.report.figures import (
    Styles,
    curves_gallery,
    layers_gallery,
    maps_gallery,
    metric_panel,
    spectra_gallery,
    styles,
)
from hrsa_lightning.report.page import (
    Answer,
    Block,
    Cell,
    Fold,
    Gallery,
    Heading,
    Panel,
    Swatch,
    Table,
    Text,
    note,
)
from hrsa_lightning.report.statistics import Spread, spread
from hrsa_lightning.report.verdict import SAME, Findings, Verdict, joined, side_of
from hrsa_lightning.similarity.metric_info import headline_metrics, info_of

__all__ = ["overview", "report_blocks"]

Row = list[str | Cell]

_MOST_DRAWN = 6
"""Answers have pictures, and monitors maps over layers, for so many experiments."""


def report_blocks(experiments: Sequence[Experiment], *, log_x: bool = False) -> list[Block]:
    """The whole report.

    Args:
        experiments: What `group_runs` made.
        log_x: Draw steps on a logarithmic axis.
    """
    blocks: list[Block] = []
    for index, experiment in enumerate(experiments):
        if len(experiments) > 1:
            blocks.append(Heading(experiment.label))
        sentences = answer_of(experiment)
        blocks += [Answer(sentences)] if sentences else [Text("Nothing was compared or scored.")]
        if index < _MOST_DRAWN:
            blocks += _picture(experiment, f"{index}_answer", log_x)
    if len(experiments) > 1:
        blocks += [Fold("Side by side", _side_by_side(experiments))]
    for index, experiment in enumerate(experiments):
        prefixes: list[str] = []
        for group in experiment.groups():
            name = group[:1].upper() + group[1:]
            name = name if len(experiments) == 1 else f"{experiment.label}: {name}"
            prefix = f"{index}_{re.sub(r'[^0-9A-Za-z]', '_', group)[:60]}"
            prefix += f"_{len(prefixes)}" if prefix in prefixes else ""
            prefixes.append(prefix)
            if experiment.is_retrieval(group):
                blocks.append(Heading(f"{name} on held-out pairs"))
                blocks += _retrieval(experiment, group, prefix, log_x)
            else:
                section = _Similarity(Findings(experiment, group), prefix, log_x)
                blocks.append(Heading(f"{name} at {section.place}"))
                blocks += [*section.figures(maps=index < _MOST_DRAWN), *section.tables()]
    blocks += [Heading("What was run"), *_what_was_run(experiments)]
    return _with_content(blocks)


def _with_content(blocks: Sequence[Block]) -> list[Block]:
    """Without galleries that show nothing, and without folds of nothing."""
    found: list[Block] = []
    for block in blocks:
        kept = block
        if isinstance(kept, Fold):
            kept = Fold(kept.title, _with_content(kept.blocks))
        is_empty = (isinstance(kept, Gallery) and not kept.panels) or (
            isinstance(kept, Fold) and not kept.blocks
        )
        found += [] if is_empty else [kept]
    return found


def _cell(found: Spread, *, digits: int = 3, signed: bool = False) -> Cell:
    """Mean ± standard deviation; the latter where it shows at so many digits."""
    if not found.num_values:
        return Cell("–", math.nan)
    text = number(found.mean, digits)
    text = f"+{text}" if signed and not text.startswith("-") else text
    if found.std >= 0.5 * 10**-digits:
        text += f" ± {found.std:.{digits}f}"
    return Cell(text, found.mean)


def _picture(experiment: Experiment, name: str, log_x: bool) -> list[Block]:
    """The answer drawn: a panel for each metric that it is given in, and one for the scores."""
    panels: list[Panel] = []
    legend: dict[str, Swatch] = {}

    def add(group: str, place: Place, metrics: Sequence[str], named: Mapping[Pair, str]) -> None:
        colors = styles(experiment, list(named))
        for metric in metrics:
            panel = metric_panel(
                experiment, group, colors, place, metric, group, log_x=log_x, distant=True
            )
            panels.extend([panel] if panel else [])
        if panels:
            legend.update((label, Swatch(label, *colors[pair])) for pair, label in named.items())

    groups = experiment.groups()
    compared = [Findings(experiment, g) for g in groups if not experiment.is_retrieval(g)]
    scored = [g for g in groups if experiment.is_retrieval(g)][:1]
    for findings in compared[:1]:
        metrics = findings.main_metrics[: 3 - len(scored)]
        shown = [*findings.pairs, *findings.controls] or findings.drifts
        add(findings.group, findings.place, metrics, _names(experiment, shown))
    for group in scored:
        arms = [key.pair for key in experiment.keys if key.group == group]
        add(group, Place(), experiment.metrics(group)[:1], _names(experiment, arms))
    words = note("picture", len(experiment.runs), any("1 −" in panel.title for panel in panels))
    gallery = Gallery(name, "The answer", panels, list(legend.values()), len(panels))
    return [gallery, words] if panels else []


def _names(experiment: Experiment, pairs: Sequence[Pair]) -> dict[Pair, str]:
    """Lines by their arm where all are compared with one model; controls are named as such."""
    alone = len({pair.reference for pair in pairs}) == 1
    seeds = {key.pair.arm for key in experiment.keys if experiment.is_seed_control(key.pair)}
    return {
        pair: (pair.arm if alone and pair.arm else str(pair))
        + (" (seed control)" if pair.arm in seeds else "")
        for pair in pairs
    }


class _Similarity:
    """The section on one monitor: curves, maps, what the run kept of alignments, tables.

    Args:
        findings: What the monitor found.
        prefix: Of the names of figures.
        log_x: Draw steps on a logarithmic axis.
    """

    def __init__(self, findings: Findings, prefix: str, log_x: bool) -> None:
        self.place = findings.place
        self._findings = findings
        self._experiment = findings.experiment
        self._prefix = prefix
        self._log_x = log_x
        self._between = [*findings.pairs, *findings.controls, *findings.void]
        self._styles = styles(self._experiment, [*self._between, *findings.drifts])

    def figures(self, *, maps: bool) -> list[Block]:
        """All pictures.

        Args:
            maps: Draw maps over layers.
        """
        metrics = [m for m in self._findings.metrics if info_of(m).sign]
        headline = headline_metrics(metrics)
        if self.place.layer not in self._findings.dominated and "cka" in headline:
            headline = [m for m in headline if m != "cka_standardized"]
        others = [m for m in self._findings.metrics if m not in headline]
        curves: list[Block] = [
            Heading("Curves", 3),
            note("curves"),
            self._curves(self._between, headline, "curves"),
            Fold("Curves of the other metrics", [self._curves(self._between, others, "more")]),
        ]
        drift: list[Block] = [
            Heading("Each arm against its own start", 3),
            note("drift"),
            self._curves(self._findings.drifts, headline, "drift"),
        ]
        return [
            *(curves if self._between else []),
            *(drift if self._findings.drifts else []),
            *self._layers(headline, maps=maps),
            *self._details(self._between or self._findings.drifts),
        ]

    def tables(self) -> list[Block]:
        """All numbers, folded."""
        num_runs = len(self._experiment.runs)
        table: list[Block] = [note("overview", num_runs), overview(self._findings, self._between)]
        drifts = overview(self._findings, self._findings.drifts)
        return [
            Fold("Every metric before and after", [*table, *self._undefined()]),
            Fold("Realignment in numbers", self._derived()),
            *(
                [Fold("Each arm against its own start, in numbers", [drifts])]
                if drifts.rows
                else []
            ),
        ]

    def _curves(self, pairs: Sequence[Pair], metrics: Sequence[str], end: str) -> Gallery:
        return curves_gallery(
            self._experiment,
            self._findings.group,
            {pair: self._styles[pair] for pair in pairs},
            self.place,
            metrics,
            name=f"{self._prefix}_{end}",
            title=f"{self._findings.group} at {self.place}, by optimizer step",
            log_x=self._log_x,
        )

    def _layers(self, headline: Sequence[str], *, maps: bool) -> list[Block]:
        places = self._experiment.places(self._findings.group)
        places.sort(key=Place("output").__eq__)  # the output comes last
        if len(places) < 2:
            return []
        if not maps:
            words = f"Maps over layers are drawn for the first {_MOST_DRAWN} experiments only."
            return [Text(words, is_note=True)]
        main = self._findings.main_metrics
        drawn, others = (
            layers_gallery(
                self._experiment,
                self._findings.group,
                [*self._findings.pairs, *self._findings.controls] or self._findings.drifts,
                places,
                metrics,
                name=f"{self._prefix}_{end}",
                title=f"{self._findings.group}, layers over optimizer steps",
            )
            for end, metrics in (
                ("layers", main),
                ("more_layers", [m for m in headline if m not in main]),
            )
        )
        more = Fold("Layer by layer over steps, other metrics", [others])
        return [Heading("Layer by layer over steps", 3), note("layers"), drawn, more]

    def _details(self, pairs: Sequence[Pair]) -> list[Block]:
        colors: Styles = {pair: self._styles[pair] for pair in pairs}
        group = self._findings.group
        found = []
        for kind in HEATMAPS:
            name = f"{self._prefix}_maps" + ("" if kind == "cka" else f"_{kind}")
            maps = maps_gallery(self._experiment, group, pairs, kind, name=name)
            if maps.panels or kind == "cka":
                heading = f"Every layer against every layer ({info_of(kind).title})"
                found.append((heading, "maps", maps))
        for kind, heading in (
            ("singular_values", "Spectrum behind O*"),
            ("row_entropy", "Row entropy of O*"),
        ):
            gallery = spectra_gallery(
                self._experiment,
                group,
                colors,
                self.place.layer,
                kind,
                name=f"{self._prefix}_{kind}",
                title=f"{heading[0].lower()}{heading[1:]} at {self.place}",
            )
            found.append((heading, kind, gallery))
        blocks: list[Block] = []
        for heading, kind, gallery in found:
            if gallery.panels:
                blocks += [Heading(heading, 3), note(kind), gallery]
        absent = [f"{h[0].lower()}{h[1:]}" for h, _, gallery in found if not gallery.panels]
        if absent:
            blocks.append(Text(f"Not kept by these runs: {'; '.join(absent)}.", is_note=True))
        return blocks

    def _undefined(self) -> list[Block]:
        """What was left out of tables and curves because no evaluation has a value."""
        keys = [
            key
            for key in self._experiment.keys
            if (key.group, key.place) == (self._findings.group, self.place) and key.pair.reference
        ]
        empty = [key for key in keys if self._experiment.curve(key) is None]
        if not empty:
            return []
        names = ", ".join(dict.fromkeys(info_of(key.metric).title for key in empty))
        words = f"{len(empty)} of {len(keys)} values at {self.place} are undefined at every "
        return [Text(f"{words}evaluation and left out: {names}.", is_note=True)]

    def _derived(self) -> list[Block]:
        blocks: list[Block] = []
        for pair in self._findings.pairs:
            verdicts = [v for v in self._findings.verdicts(pair) if v.info.sign]
            if not verdicts:
                continue
            header = ["", "gain", "half-life (steps)", "between", "recovered", "gap closed"]
            header += ["by the pair", "by the control", "p", "at the end"]
            rows = [_derived_row(v) for v in verdicts]
            blocks.append(Table(f"{pair}: derived quantities", header, rows))
            withheld = [v.info.title for v in verdicts if v.is_withheld and math.isfinite(v.noise)]
            blocks += [note("withheld", joined(withheld))] if withheld else []
            blocks += [Text(f"{pair}: {words}") for words in _reversible_words(verdicts)]
        return [note("derived"), *blocks] if blocks else []


def overview(findings: Findings, pairs: Sequence[Pair]) -> Table:
    """Every metric of some comparisons at the place of verdicts, before and after."""
    found = {pair: findings.curves(pair) for pair in pairs}
    found = {pair: curves for pair, curves in found.items() if curves}
    starts = all(pair in findings.drifts for pair in pairs)
    metrics = [m for m in findings.metrics if any(m in curves for curves in found.values())]
    names = {"chance": "chance", "null_95": "95 % of permuted", "identity": "itself"}
    rows: list[Row] = []
    for metric in metrics:
        info = info_of(metric)
        row: Row = [info.title]
        for curves in found.values():
            if metric not in curves:
                row.append("")
                continue
            before, after = (spread(ends) for ends in (curves[metric].first, curves[metric].last))
            ends = numbers([before.mean, after.mean], info)
            text = ends[1] if starts else " → ".join(ends)
            text += f" ± {after.std:.3f}" if after.std >= 5e-4 else ""
            row.append(Cell(text, after.mean))
        known = [curves[metric] for curves in found.values() if metric in curves]
        for name in names:
            level = spread([curve.last_level(name) for curve in known]).mean
            at_theory = name == "identity" and level in (0, 1)
            row.append(Cell("", math.nan) if at_theory else Cell(number(level), level))
        rows.append(row)
    header = ["", *map(str, found), *names.values()]
    columns = [i for i in range(len(header)) if i <= len(found) or any(_says(r[i]) for r in rows)]
    what = "at the end" if starts else "before → after"
    return Table(
        f"{findings.group} at {findings.place}, {what}",
        [header[i] for i in columns],
        [[row[i] for i in columns] for row in rows],
    )


def _says(cell: str | Cell) -> bool:
    return not isinstance(cell, str) and math.isfinite(cell.value) and bool(cell.text)


def _derived_row(v: Verdict) -> Row:
    low, high = v.bracket
    p_value = v.curve.last_level("p_value")
    return [
        v.info.title,
        _cell(v.gain, signed=True),
        _cell(v.half_life, digits=1),
        f"{low:g} to {high:g}" if math.isfinite(low) else "–",
        *(_cell(ratio, digits=2) for ratio in (v.recovered, *v.closed)),
        Cell(number(p_value), p_value),
        v.words,
    ]


def _reversible_words(verdicts: Sequence[Verdict]) -> list[str]:
    """Global geometry and basis (CKA, Procrustes) against local geometry (k-NN)."""
    words = []
    for kinds, what in (
        (("global", "basis"), "global geometry and basis (CKA, Procrustes)"),
        (("local",), "local geometry (k-NN)"),
    ):
        share = spread([v.recovered.mean for v in verdicts if v.info.kind in kinds])
        if share.num_values and share.mean > 0:
            words.append(
                f"in {what}, {share.mean:.2f} of the first distance was reversible and "
                f"{1 - share.mean:.2f} was not"
            )
        elif share.num_values:
            words.append(
                f"in {what} nothing was taken back: the distance from identity ended "
                f"{1 - share.mean:.1f} times as large as it began"
            )
    return ["; ".join(words) + "."] if words else []


def _retrieval(experiment: Experiment, group: str, prefix: str, log_x: bool) -> list[Block]:
    findings = Findings(experiment, group)
    arms = list(dict.fromkeys(key.pair for key in experiment.keys if key.group == group))
    gallery = curves_gallery(
        experiment,
        group,
        styles(experiment, arms),
        Place(),
        findings.metrics,
        name=f"{prefix}_curves",
        title=f"{group} on held-out pairs, by optimizer step",
        log_x=log_x,
    )
    tables = [overview(findings, arms), *_score_differences(findings, arms)]
    return [gallery, Fold("Every score before and after", tables)]


def _score_differences(findings: Findings, arms: Sequence[Pair]) -> list[Block]:
    """Final scores of every arm against the arm that the others are compared with."""
    base = base_arm(findings.experiment, arms)
    others = [arm for arm in arms if arm != base]
    if base is None or not others:
        return []
    several = len(findings.experiment.runs) > 1
    curves = {arm: findings.curves(arm) for arm in arms}
    rows: list[Row] = []
    for metric in findings.metrics:
        known = {arm: each[metric] for arm, each in curves.items() if metric in each}
        found = score_differences(known, base) if base in known else {}
        apart = [str(arm) for arm, each in found.items() if side_of(each) != SAME]
        words = f"{joined(apart)} differs" if apart else "none distinguishable"
        cells = [_cell(found[arm], signed=True) if arm in found else "" for arm in others]
        rows.append([info_of(metric).title, *cells, *([words] if several else [])])
    header = ["after training", *(f"{arm} minus {base}" for arm in others)]
    header += ["at 95 %"] if several else []
    return [Table(f"Do the arms' scores differ from those of {base}?", header, rows)]


def _side_by_side(experiments: Sequence[Experiment]) -> list[Block]:
    """Gains of every pair, one column per experiment."""
    gains: dict[tuple[Pair, str], dict[int, Spread]] = {}
    for index, experiment in enumerate(experiments):
        for group in experiment.groups():
            findings = Findings(experiment, group)
            chosen = headline_metrics([m for m in findings.metrics if info_of(m).sign])
            for pair in findings.pairs:
                for v in findings.verdicts(pair):
                    if v.key.metric in chosen:
                        gains.setdefault((pair, v.key.metric), {})[index] = v.gain
    if not gains:
        return [Text("The experiments have no pair of arms to lay side by side.", is_note=True)]
    rows: list[Row] = [
        [
            f"{pair}: {info_of(metric).title}",
            *(_cell(found[i], signed=True) if i in found else "" for i in range(len(experiments))),
        ]
        for (pair, metric), found in gains.items()
    ]
    header = ["realignment gain", *(experiment.label for experiment in experiments)]
    return [Table("Similarity after minus before, more alike is positive", header, rows)]


def _what_was_run(experiments: Sequence[Experiment]) -> list[Block]:
    columns = [_description(experiment) for experiment in experiments]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "not known") for column in columns)] for name in names]
    header = ["", *(experiment.label for experiment in experiments)]
    blocks: list[Block] = [Table("Recipes, data, versions", header, rows)]
    for experiment in experiments:
        notes = [*experiment.notes, *_run_notes(experiment)]
        blocks += [Text(f"{experiment.label}: {each}.", is_note=True) for each in notes]
    return [*blocks, _cost(experiments), note("cost")]


def _run_notes(experiment: Experiment) -> list[str]:
    notes = dict.fromkeys(each for run in experiment.runs for each in run.notes)
    return [
        each
        if all(each in run.notes for run in experiment.runs)
        else f"{', '.join(run.label for run in experiment.runs if each in run.notes)}: {each}"
        for each in notes
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
