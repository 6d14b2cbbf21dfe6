"""The sections of a report, from experiments to blocks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hrsa_lightning.report import explanations
from hrsa_lightning.report.document import Block, Cell, Gallery, Heading, Table, Text
from hrsa_lightning.report.facts import fact_of
from hrsa_lightning.report.grouping import Experiment, Key
from hrsa_lightning.report.parts import (
    HELD_OUT,
    band_words,
    cell,
    groups_of,
    metrics_of,
    name_of,
    place_of,
)
from hrsa_lightning.report.pictures import (
    curves_gallery,
    headline_metrics,
    styles,
)
from hrsa_lightning.report.similarity import MOST_MAPPED, similarity_blocks
from hrsa_lightning.report.statistics import Spread, spread
from hrsa_lightning.report.verdict import (
    pairs_of,
    verdicts_of,
)

__all__ = ["report_blocks"]


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
        for group in groups_of(experiment):
            where = place_of(experiment, group)
            name = group[:1].upper() + group[1:]
            name = name if len(experiments) == 1 else f"{experiment.label}: {name}"
            prefix = f"{number}_{group.replace('.', '_')}"
            if where == HELD_OUT:
                blocks.append(Heading(f"{name} on held-out pairs"))
                blocks += _retrieval(experiment, group, prefix, log_x)
            else:
                blocks.append(Heading(f"{name} at {where}"))
                maps = number < MOST_MAPPED
                blocks += similarity_blocks(
                    experiment, group, where, prefix=prefix, log_x=log_x, maps=maps
                )
    blocks += [Heading("Cost of monitoring"), Text(explanations.COST, is_note=True)]
    blocks.append(_cost(experiments))
    return [block for block in blocks if not (isinstance(block, Gallery) and not block.panels)]


def _what_was_run(experiments: Sequence[Experiment]) -> list[Block]:
    columns = [_facts_of_run(experiment) for experiment in experiments]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "not known") for column in columns)] for name in names]
    header = ["", *(experiment.label for experiment in experiments)]
    blocks: list[Block] = [Table("Recipes, data, versions", header, rows)]
    for experiment in experiments:
        notes = [*experiment.notes, *_run_notes(experiment)]
        blocks += [Text(f"{experiment.label}: {note}.", is_note=True) for note in notes]
    return blocks


def _run_notes(experiment: Experiment) -> list[str]:
    notes = dict.fromkeys(note for run in experiment.runs for note in run.notes)
    return [
        note
        if all(note in run.notes for run in experiment.runs)
        else f"{', '.join(run.label for run in experiment.runs if note in run.notes)}: {note}"
        for note in notes
    ]


def _facts_of_run(experiment: Experiment) -> dict[str, str]:
    run = experiment.runs[0]
    config, environment = run.config, run.environment
    facts = {"runs": ", ".join(each.label for each in experiment.runs)}
    if config:
        trainer, data = config.get("trainer", {}), config.get("data", {})
        arms = [f"{name}: {arm.get('backbone')}" for name, arm in experiment.arms().items()]
        facts |= {
            "recipe": str(config.get("name")),
            "description": str(config.get("description", "")),
            "arms": "; ".join(arms),
            "training pairs": ", ".join(map(str, data.get("train", []))),
            "seeds": ", ".join(str(each.seed) for each in experiment.runs),
            "batch size": str(data.get("batch_size")),
            "learning rate": str(config.get("optimizer", {}).get("lr")),
            "temperature": str(config.get("loss", {}).get("temperature")),
            "LoRA rank": str(((config.get("model") or {}).get("lora") or {}).get("r", "full")),
            "precision": str(trainer.get("precision")),
        }
    facts["steps"] = f"{run.last_step:g}"
    if environment:
        facts |= _environment_facts(experiment, environment)
    seconds = [each.summary["seconds"] for each in experiment.runs if "seconds" in each.summary]
    if seconds:
        facts["seconds"] = ", ".join(f"{value:.0f}" for value in seconds)
    return facts


def _environment_facts(experiment: Experiment, environment: Mapping[str, Any]) -> dict[str, str]:
    commits = dict.fromkeys(_commit(run.environment.get("git")) for run in experiment.runs)
    packages = environment.get("packages", {})
    gpus = environment.get("gpus") or []
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        "git": ", ".join(commits),
        "machine": ", ".join([f"{environment.get('threads')} threads", *gpus]),
        "platform": f"Python {environment.get('python')}, {environment.get('platform')}",
    }


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "no checkout"
    return str(git.get("commit", ""))[:12] + (" with local changes" if git.get("dirty") else "")


def _retrieval(experiment: Experiment, group: str, prefix: str, log_x: bool) -> list[Block]:
    arms = list(dict.fromkeys(key.comparison for key in experiment.keys if key.group == group))
    metrics = metrics_of(experiment, group)
    rows: list[list[str | Cell]] = []
    header = [""]
    for metric in metrics:
        header += [f"{fact_of(metric).title} before", "after"]
    for arm in arms:
        row: list[str | Cell] = [arm or "model"]
        for metric in metrics:
            found = _before_after(experiment, group, metric, arm)
            row += [cell(found[0]), cell(found[1])] if found else ["", ""]
        rows.append(row)
    gallery = curves_gallery(
        experiment,
        group,
        arms,
        HELD_OUT,
        metrics,
        name=f"{prefix}_curves",
        title=f"{group} on held-out pairs, by optimizer step",
        colors=styles(experiment, arms),
        log_x=log_x,
    )
    caption = "Held-out retrieval before and after training"
    return [
        Table(caption, header, rows),
        *_score_differences(experiment, group, arms, metrics),
        Text(band_words(experiment), is_note=True),
        gallery,
    ]


def _score_differences(
    experiment: Experiment, group: str, arms: Sequence[str], metrics: Sequence[str]
) -> list[Block]:
    """Final scores of every arm against the arm that the others are compared with."""
    references = dict.fromkeys(key.comparison.partition("_vs_")[2] for key in experiment.keys)
    base = next((name for name in references if name in arms), None)
    others = [arm for arm in arms if arm != base]
    if base is None or not others:
        return []
    rows: list[list[str | Cell]] = []
    for metric in metrics:
        found = {
            arm: spread([a - b for a, b in zip(last[0], last[1], strict=True)])
            for arm in others
            if (last := _last_scores(experiment, group, metric, arm, base)) is not None
        }
        apart = [arm for arm, each in found.items() if each.low > 0 or each.high < 0]
        words = f"{', '.join(apart)} differs" if apart else "none distinguishable"
        cells = [cell(found[arm], signed=True) if arm in found else "" for arm in others]
        one = len(experiment.runs) == 1
        rows.append([fact_of(metric).title, *cells, "one seed, no interval" if one else words])
    header = ["after training", *(f"{arm} minus {base}" for arm in others), "reading"]
    table = Table(f"Do the arms' scores differ from those of {base}?", header, rows)
    return [Text(explanations.SCORES, is_note=True), table]


def _last_scores(
    experiment: Experiment, group: str, metric: str, arm: str, base: str
) -> tuple[list[float], list[float]] | None:
    curves = [experiment.curve(Key(group, metric, name, HELD_OUT)) for name in (arm, base)]
    if curves[0] is None or curves[1] is None:
        return None
    return curves[0].last, curves[1].last


def _before_after(
    experiment: Experiment, group: str, metric: str, arm: str
) -> tuple[Spread, Spread] | None:
    """Before and after of a retrieval score."""
    for key in experiment.keys:
        if (key.group, key.metric, key.comparison) == (group, metric, arm):
            curve = experiment.curve(key)
            return None if curve is None else (spread(curve.first), spread(curve.last))
    return None


def _side_by_side(experiments: Sequence[Experiment]) -> list[Block]:
    """Gains of every pair, one column per experiment."""
    gains: dict[tuple[str, str], dict[int, Spread]] = {}
    for index, experiment in enumerate(experiments):
        for group in groups_of(experiment):
            where = place_of(experiment, group)
            pairs = [] if where == HELD_OUT else pairs_of(experiment, group)[0]
            for pair in pairs:
                for v in verdicts_of(experiment, group, pair, where, []):
                    if v.key.metric in headline_metrics([v.key.metric]) and v.fact.sign:
                        gains.setdefault((pair, v.key.metric), {})[index] = v.change
    rows: list[list[str | Cell]] = [
        [
            f"{name_of(pair)}: {fact_of(metric).title}",
            *(
                cell(found[index], signed=True) if index in found else ""
                for index in range(len(experiments))
            ),
        ]
        for (pair, metric), found in gains.items()
    ]
    header = ["realignment gain", *(experiment.label for experiment in experiments)]
    if not rows:
        return [Text("The experiments have no pair of arms to lay side by side.", is_note=True)]
    return [Table("Similarity after minus before, more alike is positive", header, rows)]


def _cost(experiments: Iterable[Experiment]) -> Table:
    rows: list[list[str | Cell]] = []
    for experiment in experiments:
        names = dict.fromkeys(name for run in experiment.runs for name in run.histories)
        for name in names:
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
            row: list[str | Cell] = [f"{experiment.label}: {name.removesuffix('.jsonl')}"]
            row += [Cell(f"{len(each):d}", float(len(each))) for each in seconds[:1]]
            rows.append([*row, *(cell(s, digits=2) for s in (per, spread(totals), spread(shares)))])
    header = ["monitor", "evaluations", "seconds each", "seconds in all", "share of the run"]
    return Table("What watching took, pictures not included", header, rows)
