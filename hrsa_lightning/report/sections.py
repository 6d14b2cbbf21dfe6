"""The sections of a report: the answer, pictures, tables, what was run."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hrsa_lightning.report.answer import (
    answer_of,
    base_of,
    joined,
    number,
    numbers,
    score_differences,
)
from hrsa_lightning.report.experiments import Experiment, Pair, Place, Run
from hrsa_lightning.report.figures import Pictures, answer_picture
from hrsa_lightning.report.page import (
    Answer,
    Block,
    Cell,
    Fold,
    Gallery,
    Heading,
    Table,
    Text,
    note,
)
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
from hrsa_lightning.similarity.history import MAPS
from hrsa_lightning.similarity.measurement import MEAN_OVER_LAYERS
from hrsa_lightning.similarity.metric_info import headline_metrics, info_of

Row = list[str | Cell]

_MOST_DRAWN = 6
"""Answers have pictures, and monitors maps over layers, for so many experiments."""

_SIDES = {NEARER: "nearer", FARTHER: "farther", SAME: "not told apart"}
_LEVELS = {"chance": "chance", "null_95": "95 % of permuted", "identity": "itself"}
_SETTINGS = {
    "batch size": "data.batch_size",
    "learning rate": "optimizer.lr",
    "temperature": "loss.temperature",
    "LoRA rank": "model.lora.r",
    "precision": "trainer.precision",
}


def report_blocks(experiments: Sequence[Experiment], *, log_x: bool = False) -> list[Block]:
    """The whole report.

    Args:
        experiments: What `group_runs` made.
        log_x: Draw steps on a logarithmic axis.
    """
    found = [findings_of(experiment) for experiment in experiments]
    blocks: list[Block] = []
    for index, experiment in enumerate(experiments):
        blocks += [Heading(experiment.label)] if len(experiments) > 1 else []
        sentences = answer_of(experiment)
        blocks += [Answer(sentences)] if sentences else [Text("Nothing was compared or scored.")]
        if index < _MOST_DRAWN:
            gallery = answer_picture(found[index], f"{index}_answer", log_x)
            blocks += [gallery, note("picture", len(experiment.runs))] if gallery.panels else []
    if len(experiments) > 1:
        blocks.append(Fold("Side by side", _side_by_side(experiments, found)))
    for index, experiment in enumerate(experiments):
        prefixes: list[str] = []
        for findings in found[index]:
            group = findings.group
            name = group[:1].upper() + group[1:]
            name = name if len(experiments) == 1 else f"{experiment.label}: {name}"
            prefix = f"{index}_{re.sub(r'[^0-9A-Za-z]', '_', group)[:60]}"
            prefix += f"_{len(prefixes)}" if prefix in prefixes else ""
            prefixes.append(prefix)
            pictures = Pictures(findings, prefix, log_x)
            if findings.is_retrieval:
                gallery = pictures.curves(findings.arms, findings.metrics, "curves")
                tables = [overview(findings, findings.arms), *_score_table(findings)]
                blocks += [Heading(f"{name} on held-out pairs"), gallery]
                blocks.append(Fold("Every score before and after", tables))
            else:
                blocks.append(Heading(f"{name} at {findings.place}"))
                blocks += _pictures(findings, pictures, maps=index < _MOST_DRAWN)
                blocks += _tables(findings)
    blocks += [Heading("What was run"), *_what_was_run(experiments)]
    return _with_content(blocks)


def _with_content(blocks: Sequence[Block]) -> list[Block]:
    """Without galleries that show nothing, and without folds of nothing."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Fold):
            inner = _with_content(block.blocks)
            found += [Fold(block.title, inner)] if inner else []
        elif not isinstance(block, Gallery) or block.panels:
            found.append(block)
    return found


def _pictures(findings: Findings, pictures: Pictures, *, maps: bool) -> list[Block]:
    """Curves, maps over layers, and what the run kept of alignments."""
    headline = headline_metrics([m for m in findings.metrics if info_of(m).sign])
    if findings.place.layer not in findings.dominated and "cka" in headline:
        headline = [m for m in headline if m != "cka_standardized"]
    others = [m for m in findings.metrics if m not in headline]
    between = [*findings.pairs, *findings.controls, *findings.void]
    blocks: list[Block] = []
    if between:
        blocks += [Heading("Curves", 3), note("curves")]
        blocks.append(pictures.curves(between, headline, "curves"))
        more = pictures.curves(between, others, "more_curves")
        blocks.append(Fold("Curves of the other metrics", [more]))
        means = pictures.curves(between, headline, "means", Place(MEAN_OVER_LAYERS))
        blocks.append(Fold("Curves of means over the layers before the output", [means]))
    if findings.drifts:
        blocks += [Heading("Each arm against its own start", 3), note("drift")]
        blocks.append(pictures.curves(findings.drifts, headline, "drift"))
    if len(findings.places) > 1 and maps:
        main = findings.main_metrics
        shown = [*findings.pairs, *findings.controls] or findings.drifts
        layers = pictures.layers(shown, main, "layers")
        blocks += [Heading("Layer by layer over steps", 3), note("layers"), layers]
        rest = [metric for metric in headline if metric not in main]
        more = pictures.layers(shown, rest, "more_layers")
        blocks.append(Fold("Layer by layer over steps, other metrics", [more]))
    elif len(findings.places) > 1:
        words = f"Maps over layers are drawn for the first {_MOST_DRAWN} experiments only."
        blocks.append(Text(words, is_note=True))
    return [*blocks, *_details(findings, pictures, between or findings.drifts)]


def _details(findings: Findings, pictures: Pictures, pairs: Sequence[Pair]) -> list[Block]:
    """Layer-by-layer maps and spectra."""
    found = [
        (f"Every layer against every layer ({info_of(kind).title})", "maps", gallery)
        for kind in MAPS
        if (gallery := pictures.maps(pairs, kind)).panels or kind == "cka"
    ]
    for kind, heading in (
        ("singular_values", "Spectrum behind O*"),
        ("row_entropy", "Row entropy of O*"),
    ):
        found.append((heading, kind, pictures.spectra(pairs, kind, heading)))
    blocks: list[Block] = []
    for heading, kind, gallery in found:
        blocks += [Heading(heading, 3), note(kind), gallery] if gallery.panels else []
    absent = [f"{h[0].lower()}{h[1:]}" for h, _, gallery in found if not gallery.panels]
    words = f"Not kept by these runs: {'; '.join(absent)}."
    return [*blocks, *([Text(words, is_note=True)] if absent else [])]


def _tables(findings: Findings) -> list[Block]:
    """All numbers, folded."""
    between = [*findings.pairs, *findings.controls, *findings.void]
    table: list[Block] = [
        note("overview", len(findings.experiment.runs)),
        overview(findings, between),
    ]
    drifts = [overview(findings, findings.drifts)] if findings.drifts else []
    return [
        Fold("Every metric before and after", [*(table if between else []), *_undefined(findings)]),
        Fold("Realignment in numbers", _derived(findings)),
        Fold("Each arm against its own start, in numbers", drifts),
    ]


def _undefined(findings: Findings) -> list[Block]:
    """What was left out of tables and curves because no evaluation has a value."""
    keys = [
        key
        for key in findings.experiment.keys
        if (key.group, key.place) == (findings.group, findings.place) and key.pair.reference
    ]
    empty = [key for key in keys if findings.experiment.curve(key) is None]
    names = ", ".join(dict.fromkeys(info_of(key.metric).title for key in empty))
    words = f"{len(empty)} of {len(keys)} values at {findings.place} are undefined at every "
    return [Text(f"{words}evaluation and left out: {names}.", is_note=True)] if empty else []


def _derived(findings: Findings) -> list[Block]:
    """Gain, half-life and shares of every pair; columns that nothing is known of are left out."""
    blocks: list[Block] = []
    header = ["", "gain", "half-life (steps)", "between", "recovered", "gap closed"]
    header += ["by the pair", "by the control", "p", *(f"beside {c}" for c in findings.controls)]
    for pair in findings.pairs:
        verdicts = [v for v in findings.verdicts(pair) if v.info.sign]
        rows = [_derived_row(v, findings.controls) for v in verdicts]
        columns = [i for i in range(len(header)) if any(row[i] for row in rows)]
        if rows:
            names = [header[i] for i in columns]
            cells = [[row[i] or "–" for i in columns] for row in rows]
            blocks.append(Table(f"{pair}: derived quantities", names, cells))
        withheld = [v.info.title for v in verdicts if v.is_withheld and math.isfinite(v.noise)]
        blocks += [note("withheld", "; ".join(withheld))] if withheld else []
    return [note("derived"), *blocks] if blocks else []


def _derived_row(v: Verdict, controls: Sequence[Pair]) -> Row:
    low, high = v.bracket
    p_value = v.curve.last_level("p_value")
    ends = numbers([v.before.mean, v.after.mean], v.info)
    return [
        v.info.title,
        _cell(v.gain, digits=len(ends[0].partition(".")[2]), signed=True),
        _cell(v.half_life, digits=1),
        f"{low:g} to {high:g}" if math.isfinite(low) else "",
        *(_cell(ratio, digits=2) for ratio in (v.recovered, *v.closed)),
        "" if math.isnan(p_value) else Cell(number(p_value), p_value),
        *(_SIDES[v.relations[c]] if c in v.relations else "" for c in controls),
    ]


def overview(findings: Findings, pairs: Sequence[Pair], *, brief: bool = False) -> Table:
    """Every metric of some comparisons at the place of verdicts, before and after.

    Args:
        findings: Of a monitor.
        pairs: The columns.
        brief: Metrics by their keys, and of their levels chance alone.
    """
    starts = bool(pairs) and all(
        pair in findings.drifts for pair in pairs
    )  # where what was before is known
    levels = {"chance": "chance"} if brief else _LEVELS
    rows: list[Row] = []
    for metric in findings.metrics:
        info = info_of(metric)
        curves = [findings.curve(metric, pair) for pair in pairs]
        row: Row = [metric if brief else info.title]
        for curve in curves:
            if curve is None:
                row.append("")
                continue
            before, after = spread(curve.first), spread(curve.last)
            ends = numbers([before.mean, after.mean], info)
            text = ends[1] if starts else " → ".join(ends)
            text += f" ± {after.std:.3f}" if after.std >= 5e-4 else ""
            row.append(Cell(text, after.mean))
        for name in levels:
            level = spread([curve.last_level(name) for curve in curves if curve]).mean
            at_theory = math.isnan(level) or (name == "identity" and level in (0, 1))
            row.append("" if at_theory else Cell(number(level), level))
        rows += [row] if any(curves) else []
    header = [
        "",
        *(pair.arm or "live" if starts else str(pair) for pair in pairs),
        *levels.values(),
    ]
    columns = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    where = "on held-out pairs" if findings.is_retrieval else f"at {findings.place}"
    caption = f"{findings.group} {where}, before → after"
    return Table(
        f"each arm against its own start {where}, at the end" if starts else caption,
        [header[i] for i in columns],
        [[row[i] for i in columns] for row in rows],
    )


def _cell(found: Spread, *, digits: int = 3, signed: bool = False) -> str | Cell:
    """Mean ± standard deviation; the latter where it shows at so many digits."""
    if not found.num_values:
        return ""
    text = number(found.mean, digits)
    text = f"+{text}" if signed and not text.startswith("-") else text
    if found.std >= 0.5 * 10**-digits:
        text += f" ± {found.std:.{digits}f}"
    return Cell(text, found.mean)


def _score_table(findings: Findings) -> list[Block]:
    """Final scores of every arm against the arm that the others are compared with."""
    base = base_of(findings, findings.arms)
    others = [arm for arm in findings.arms if arm != base]
    if base is None or not others:
        return []
    several = len(findings.experiment.runs) > 1
    rows: list[Row] = []
    for metric in findings.metrics:
        curves = {arm: c for arm in findings.arms if (c := findings.curve(metric, arm))}
        found = score_differences(curves, base) if base in curves else {}
        apart = [str(arm) for arm, each in found.items() if side_of(each) != SAME]
        words = f"{joined(apart)} differs" if apart else "none distinguishable"
        cells = [_cell(found[arm], signed=True) if arm in found else "" for arm in others]
        rows.append([info_of(metric).title, *cells, *([words] if several else [])])
    header = ["after training", *(f"{arm} minus {base}" for arm in others)]
    header += ["at 95 %"] if several else []
    return [Table(f"Do the arms' scores differ from those of {base}?", header, rows)]


def _side_by_side(
    experiments: Sequence[Experiment], found: Sequence[Sequence[Findings]]
) -> list[Block]:
    """Gains of every pair, one column per experiment."""
    gains: dict[str, list[str | Cell]] = {}
    for index, all_findings in enumerate(found):
        for findings in all_findings:
            chosen = headline_metrics([m for m in findings.metrics if info_of(m).sign])
            for pair in findings.pairs:
                for v in findings.verdicts(pair, chosen):
                    row = gains.setdefault(f"{pair}: {v.info.title}", [""] * len(experiments))
                    row[index] = _cell(v.gain, signed=True)
    if not gains:
        return [Text("The experiments have no pair of arms to lay side by side.", is_note=True)]
    header = ["realignment gain", *(experiment.label for experiment in experiments)]
    rows = [[name, *row] for name, row in gains.items()]
    return [Table("Similarity after minus before, more alike is positive", header, rows)]


def _what_was_run(experiments: Sequence[Experiment]) -> list[Block]:
    columns = [_description(experiment) for experiment in experiments]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "not known") for column in columns)] for name in names]
    header = ["", *(experiment.label for experiment in experiments)]
    blocks: list[Block] = [Table("Recipes, data, versions", header, rows)]
    for experiment in experiments:
        owners: dict[str, list[Run]] = {}
        for run in experiment.runs:
            for each in run.notes:
                owners.setdefault(each, []).append(run)
        notes = [
            each
            if len(runs) == len(experiment.runs)
            else f"{', '.join(run.label for run in runs)}: {each}"
            for each, runs in owners.items()
        ]
        for each in [*experiment.notes, *notes]:
            blocks.append(Text(f"{experiment.label}: {each}.", is_note=True))
    return [*blocks, _cost(experiments), note("cost")]


def _description(experiment: Experiment) -> dict[str, str]:
    run = experiment.runs[0]
    config, environment = run.config, run.environment
    found = {"runs": ", ".join(each.label for each in experiment.runs)}
    if config:
        arms = [f"{name}: {arm.get('backbone')}" for name, arm in experiment.arms().items()]
        found |= {
            "recipe": str(config.get("name")),
            "description": str(config.get("description", "")),
            "arms": "; ".join(arms),
            "training pairs": ", ".join(map(str, config.get("data", {}).get("train", []))),
            "seeds": ", ".join(str(each.seed) for each in experiment.runs),
            **{name: _setting(config, path) for name, path in _SETTINGS.items()},
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
    return found | ({"seconds": ", ".join(f"{v:.0f}" for v in seconds)} if seconds else {})


def _setting(config: Mapping[str, Any], path: str) -> str:
    """A value of the recipe; full fine-tuning has no rank."""
    *sections, key = path.split(".")
    for section in sections:
        config = config.get(section, {})
    return str(config.get(key, "full" if key == "r" else None))


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "no checkout"
    return str(git.get("commit", ""))[:12] + (" with local changes" if git.get("dirty") else "")


def _cost(experiments: Iterable[Experiment]) -> Table:
    rows: list[Row] = []
    for experiment in experiments:
        for name in dict.fromkeys(name for run in experiment.runs for name in run.seconds):
            runs = [run for run in experiment.runs if name in run.seconds]
            seconds = [run.seconds[name][:, 1] for run in runs]
            totals = [float(np.nansum(each)) for each in seconds]
            shares = [
                total / run.summary["seconds"]
                for total, run in zip(totals, runs, strict=True)
                if run.summary.get("seconds")
            ]
            per = spread(np.concatenate(seconds).tolist())
            count = Cell(f"{len(seconds[0]):d}", float(len(seconds[0])))
            cells = [_cell(s, digits=2) for s in (per, spread(totals), spread(shares))]
            rows.append([f"{experiment.label}: {name}", count, *cells])
    header = ["monitor", "evaluations", "seconds each", "seconds in all", "share of the run"]
    return Table("What monitoring took, figures not included", header, rows)
