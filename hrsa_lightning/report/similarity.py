"""The section on one monitor: verdicts, controls, derived quantities, drift, pictures."""

import math
from collections.abc import Mapping, Sequence

from hrsa_lightning.report import explanations
from hrsa_lightning.report.document import Block, Cell, Heading, Table, Text
from hrsa_lightning.report.facts import fact_of
from hrsa_lightning.report.grouping import Experiment
from hrsa_lightning.report.parts import band_words, cell, metrics_of, name_of, number, places_of
from hrsa_lightning.report.pictures import (
    curves_gallery,
    headline_metrics,
    layers_gallery,
    maps_gallery,
    spectra_gallery,
    styles,
)
from hrsa_lightning.report.statistics import LEAST_CHANGE, spread
from hrsa_lightning.report.verdict import (
    INITIAL,
    Verdict,
    derive,
    pair_words,
    pairs_of,
    verdicts_of,
)

__all__ = ["MOST_MAPPED", "similarity_blocks"]

MOST_MAPPED = 6
"""Maps over layers are drawn for so many experiments."""


def similarity_blocks(
    experiment: Experiment,
    group: str,
    where: str,
    *,
    prefix: str,
    log_x: bool,
    maps: bool,
) -> list[Block]:
    """Everything about one monitor of one experiment, below its heading.

    Args:
        experiment: Whose.
        group: Name of the monitor.
        where: Place of the verdicts.
        prefix: Of the names of pictures.
        log_x: Draw steps on a logarithmic axis.
        maps: Draw maps over layers.
    """
    pairs, controls, drifts = pairs_of(experiment, group)
    blocks: list[Block] = []
    num_runs = len(experiment.runs)
    if num_runs == 1:
        blocks.append(Text(explanations.ONE_RUN, is_note=True))
    if pairs:
        blocks.append(Text(explanations.VERDICTS, is_note=True))
    if pairs and num_runs > 1:
        blocks.append(Text(explanations.INTERVALS, is_note=True))
    for pair in pairs:
        verdicts = verdicts_of(experiment, group, pair, where, controls)
        if verdicts:
            blocks.append(Heading(name_of(pair), 3))
            blocks += [Text(sentence) for sentence in pair_words(verdicts, num_runs)]
            blocks.append(_verdict_table(name_of(pair), verdicts))
    blocks += _controls_table(experiment, group, where, controls)
    blocks += _derived(experiment, group, where, pairs, controls)
    blocks += _drift_table(experiment, group, where, drifts)
    blocks += _similarity_pictures(
        experiment, group, where, prefix, (pairs, controls, drifts), log_x, maps
    )
    return blocks


def _similarity_pictures(
    experiment: Experiment,
    group: str,
    where: str,
    prefix: str,
    comparisons: tuple[list[str], list[str], list[str]],
    log_x: bool,
    maps: bool,
) -> list[Block]:
    pairs, controls, drifts = comparisons
    metrics = metrics_of(experiment, group)
    chief = headline_metrics([metric for metric in metrics if fact_of(metric).sign])
    colors = styles(experiment, [*pairs, *controls, *drifts])
    layers = [place for place in places_of(experiment, group) if place != "output"]
    layers += ["output"] if "output" in places_of(experiment, group) else []
    between = [*pairs, *controls]
    blocks: list[Block] = []
    for shown, chosen, end, words in (
        (between, metrics, "curves", f"{group} at {where}, by optimizer step"),
        (drifts, chief, "drift", f"drift from the start at {where}"),
    ):
        if shown:
            heading = "Curves" if end == "curves" else "Curves of each arm against its own start"
            gallery = curves_gallery(
                experiment,
                group,
                shown,
                where,
                chosen,
                name=f"{prefix}_{end}",
                title=words,
                colors=colors,
                log_x=log_x,
            )
            blocks += [Heading(heading, 3), Text(band_words(experiment), is_note=True), gallery]
    if len(layers) > 1 and maps:
        seeds = [name for name in controls if name in experiment.seed_controls]
        gallery = layers_gallery(
            experiment,
            group,
            [*pairs, *seeds] or drifts,
            layers,
            chief,
            name=f"{prefix}_layers",
            title=f"{group}, layers over optimizer steps",
        )
        words = explanations.LAYERS
        blocks += [Heading("Layer by layer over steps", 3), Text(words, is_note=True), gallery]
    elif len(layers) > 1:
        words = f"Maps over layers are drawn for the first {MOST_MAPPED} experiments only."
        blocks.append(Text(words, is_note=True))
    return blocks + _details(experiment, group, where, prefix, between or drifts, colors)


def _details(
    experiment: Experiment,
    group: str,
    where: str,
    prefix: str,
    comparisons: Sequence[str],
    colors: dict[str, tuple[str, str]],
) -> list[Block]:
    maps = maps_gallery(
        experiment, group, comparisons, name=f"{prefix}_maps", title="linear CKA, debiased"
    )
    found = [("Every layer against every layer (linear CKA)", explanations.MAPS, maps)]
    for kind, heading, words in (
        ("singular_values", "Spectrum behind O*", explanations.SINGULAR_VALUES),
        ("row_entropy", "Row entropy of O*", explanations.ROW_ENTROPY),
    ):
        gallery = spectra_gallery(
            experiment,
            group,
            comparisons,
            where,
            kind,
            colors,
            name=f"{prefix}_{kind}",
            title=f"{heading.lower().replace('o*', 'O*')} at {where}",
        )
        found.append((heading, words, gallery))
    blocks: list[Block] = []
    absent = []
    for heading, words, gallery in found:
        if gallery.panels:
            blocks += [Heading(heading, 3), Text(words, is_note=True), gallery]
        else:
            absent.append(heading[0].lower() + heading[1:])
    if absent:
        blocks.append(Text(f"Not kept by these runs: {'; '.join(absent)}.", is_note=True))
    return blocks


def _verdict_table(name: str, verdicts: Sequence[Verdict]) -> Table:
    controls = list(dict.fromkeys(control for v in verdicts for control in v.controls))
    header = ["", "before", "after", "chance"]
    header += [f"after, {name_of(control)}" for control in controls]
    rows: list[list[str | Cell]] = []
    for v in verdicts:
        row: list[str | Cell] = [v.fact.title, cell(v.before), _after(v)]
        row.append(number(v.floor))
        row += [cell(v.controls[control]) if control in v.controls else "" for control in controls]
        rows.append([*row, v.words if v.fact.sign else ""])
    return Table(f"{name}: before and after training", [*header, "reading"], rows)


def _after(verdict: Verdict) -> Cell:
    shown = cell(verdict.after)
    low, high = verdict.band
    if verdict.after.num_values == 1 and math.isfinite(low) and math.isfinite(high):
        return Cell(f"{shown.text} [{low:.3f}, {high:.3f}]", shown.value)
    return shown


def _controls_table(
    experiment: Experiment, group: str, where: str, controls: Sequence[str]
) -> list[Block]:
    if not controls:
        return []
    columns = {
        name: {v.key.metric: v for v in verdicts_of(experiment, group, name, where, [])}
        for name in controls
    }
    metrics = [m for m in metrics_of(experiment, group) if any(m in c for c in columns.values())]
    header = [""]
    for name in controls:
        header += [f"{name_of(name)} before", "after"]
    rows: list[list[str | Cell]] = []
    for metric in metrics:
        row: list[str | Cell] = [fact_of(metric).title]
        for verdicts in columns.values():
            v = verdicts.get(metric)
            row += [cell(v.before), cell(v.after)] if v else ["", ""]
        rows.append(row)
    table = Table("Controls before and after training", header, rows)
    return [Heading("Controls", 3), Text(explanations.CONTROLS, is_note=True), table]


def _derived(
    experiment: Experiment,
    group: str,
    where: str,
    pairs: Sequence[str],
    controls: Sequence[str],
) -> list[Block]:
    header = ["", "gain", "half-life (steps)", "between", "recovered"]
    header += ["gap closed", "by the pair", "by the control"]
    blocks: list[Block] = []
    for pair in pairs:
        rows: list[list[str | Cell]] = []
        kinds: dict[str, list[float]] = {"taken back": [], "local": []}
        for d in derive(experiment, group, pair, where, controls):
            low, high = d.bracket
            between = f"{low:g} to {high:g}" if math.isfinite(low) else "–"
            row: list[str | Cell] = [d.fact.title, cell(d.gain, signed=True)]
            row += [cell(d.half_life, digits=1), between]
            shares = (d.recovered, d.closed, d.by_pair, d.by_control)
            rows.append([*row, *(cell(share, digits=2) for share in shares)])
            if d.fact.kind and math.isfinite(d.recovered.mean):
                kinds["local" if d.fact.kind == "local" else "taken back"].append(d.recovered.mean)
        if rows:
            blocks.append(Table(f"{name_of(pair)}: derived quantities", header, rows))
            blocks += [Text(f"{name_of(pair)}: {words}") for words in _reversible_words(kinds)]
    if blocks:
        words = explanations.DERIVED.format(least=LEAST_CHANGE)
        blocks = [Heading("Realignment in numbers", 3), Text(words, is_note=True), *blocks]
    return blocks


def _reversible_words(kinds: Mapping[str, Sequence[float]]) -> list[str]:
    """Global geometry and basis (CKA, Procrustes) against local geometry (k-NN)."""
    words = []
    for name, what in (
        ("taken back", "global geometry and basis (CKA, Procrustes)"),
        ("local", "local geometry (k-NN)"),
    ):
        share = spread(kinds[name])
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


def _drift_table(
    experiment: Experiment, group: str, where: str, drifts: Sequence[str]
) -> list[Block]:
    if not drifts:
        return []
    columns = [
        {v.key.metric: v for v in verdicts_of(experiment, group, name, where, [])}
        for name in drifts
    ]
    rows: list[list[str | Cell]] = [
        [fact_of(metric).title, *(cell(c[metric].after) if metric in c else "" for c in columns)]
        for metric in metrics_of(experiment, group)
        if any(metric in column for column in columns)
    ]
    header = ["", *(name.removesuffix(INITIAL) for name in drifts)]
    caption = "Each arm against its own start, at the end of training"
    words = Text(explanations.DRIFT, is_note=True)
    return [Heading("Drift from the start", 3), words, Table(caption, header, rows)]
