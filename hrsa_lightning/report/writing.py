"""From folders of runs to the files of a report."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap

from hrsa_lightning.cli import markdown_table
from hrsa_lightning.errors import DataError
from hrsa_lightning.io.files import csv_text, write_text
from hrsa_lightning.report.answer import answer_of, question
from hrsa_lightning.report.experiments import (
    Experiment,
    Key,
    find_runs,
    group_runs,
    mean_over_runs,
    read_run,
)
from hrsa_lightning.report.page import to_html, to_markdown, write_figures
from hrsa_lightning.report.sections import overview, report_blocks
from hrsa_lightning.report.statistics import spread
from hrsa_lightning.report.verdict import ends_of, findings_of
from hrsa_lightning.runs.directory import histories_of
from hrsa_lightning.runs.summary import Control
from hrsa_lightning.similarity.metric_info import info_of

_WIDTH = 88
"""Of a line of the summary."""

_FIGURES = "figures"
_NAMES = ("experiment", "group", "comparison", "metric", "where")


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    displacement: Sequence[str] = (),
    seed_controls: Sequence[str] = (),
    replicates: bool = False,
    log_x: bool = False,
) -> Path:
    """Write `report.html`, `report.md`, CSV files and figures.

    Runs whose recipes differ in seeds only are one experiment. A folder without a history of its
    own stands for all runs below it.

    Args:
        runs: Folders.
        out: Folder to write into; made where needed.
        displacement: Arms that are displacement controls, besides those whose backbone lies in a
            folder named `controls`.
        seed_controls: Comparisons that are seed controls, besides those of two arms with one
            backbone.
        replicates: Take all runs as seeds of one experiment; for runs without a recipe.
        log_x: Draw steps on a logarithmic axis.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: When a run is missing or malformed, or nothing can be written.
    """
    found = [read_run(folder) for folder in find_runs(runs)]
    experiments = group_runs(
        found, displacement=displacement, seed_controls=seed_controls, replicates=replicates
    )
    blocks = report_blocks(experiments, log_x=log_x)
    title = ", ".join(experiment.label for experiment in experiments[:3])
    title += f" and {len(experiments) - 3} more" if len(experiments) > 3 else ""
    count = sum(len(experiment.runs) for experiment in experiments)
    subtitle = f"How representations drifted and realigned: {count} runs"
    subtitle = question(experiments[0]) if len(experiments) == 1 else subtitle
    try:
        (out / _FIGURES).mkdir(parents=True, exist_ok=True)
        for name, rows in (
            ("values.csv", _values(experiments)),
            ("curves.csv", _curves(experiments)),
            ("derived.csv", _derived(experiments)),
        ):
            defined = [["" if v != v else v for v in row] for row in rows]
            _write(out / name, csv_text(defined))
        write_figures(blocks, out / _FIGURES)
        _write(out / "report.md", to_markdown(title, subtitle, blocks, _FIGURES))
        _write(out / "report.html", to_html(title, subtitle, blocks))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    return out / "report.html"


def summary_lines(folder: Path, controls: Sequence[Control] = ()) -> list[str]:
    """The tables of a run and its answer, as text; nothing where nothing was measured.

    Args:
        folder: Of the run.
        controls: Its seed controls, where its `summary.json` does not have them yet.
    """
    if not histories_of(folder):
        return []
    run = read_run(folder)
    if controls:
        run = replace(run, summary={"controls": [control._asdict() for control in controls]})
    (experiment,) = group_runs([run])
    lines: list[str] = []
    for findings in findings_of(experiment):
        between = [*findings.pairs, *findings.controls, *findings.void, *findings.arms]
        for pairs in filter(None, (between, findings.drifts)):
            table = overview(findings, pairs, brief=True)
            lines += ["", table.caption, "", *markdown_table([table.header, *table.texts])]
    for said in answer_of(experiment):
        lines += ["", *wrap(f"{said.lead}{said.rest}", _WIDTH)]
        lines += [f"    {line}" for line in wrap("; ".join(said.numbers), _WIDTH - 4)]
    return lines


def _names(experiment: Experiment, key: Key) -> tuple[str, ...]:
    return (experiment.label, key.group, key.pair.name, key.metric, str(key.place))


def _values(experiments: Sequence[Experiment]) -> Iterable[Sequence[object]]:
    """Every value at every place, before and after."""
    ends = ("before_mean", "before_std", "after_mean", "after_std", "gain_mean", "gain_std")
    yield (*_NAMES, "runs", *ends, "chance")
    for experiment in experiments:
        for key in experiment.keys:
            curve = experiment.curve(key)
            if curve is None:
                yield (*_names(experiment, key), 0, *[math.nan] * (len(ends) + 1))
                continue
            gains = [last - first for first, last in ends_of(curve, info_of(key.metric))]
            found = [spread(values) for values in (curve.first, curve.last, gains)]
            yield (
                *_names(experiment, key),
                found[1].num_values,
                *(number for each in found for number in (each.mean, each.std)),
                curve.last_level("chance"),
            )


def _curves(experiments: Sequence[Experiment]) -> Iterable[Sequence[object]]:
    """What the curves show: mean and standard deviation at every step, and chance."""
    yield (*_NAMES, "step", "mean", "std", "runs", "chance")
    for experiment in experiments:
        places = {findings.group: findings.place for findings in findings_of(experiment)}
        for key in experiment.keys:
            curve = experiment.curve(key) if key.place == places[key.group] else None
            if curve is None:
                continue
            chance = mean_over_runs(curve.of("chance")).tolist()
            for step, values, level in zip(
                curve.steps.tolist(), curve.values.T.tolist(), chance, strict=True
            ):
                found = spread(values)
                numbers = (found.mean, found.std, found.num_values, level)
                yield (*_names(experiment, key), f"{step:g}", *numbers)


def _derived(experiments: Sequence[Experiment]) -> Iterable[Sequence[object]]:
    """Derived quantities of every pair, mean and standard deviation over runs."""
    quantities = ("gain", "half_life", "recovered", "closed", "by_pair", "by_control")
    yield (*_NAMES, *(f"{name}_{end}" for name in quantities for end in ("mean", "std")))
    for experiment in experiments:
        for findings in findings_of(experiment):
            verdicts = (v for pair in findings.pairs for v in findings.verdicts(pair))
            for v in (v for v in verdicts if v.info.sign):
                spreads = (v.gain, v.half_life, v.recovered, *v.closed)
                numbers = (number for each in spreads for number in (each.mean, each.std))
                yield (*_names(experiment, v.key), *numbers)


def _write(path: Path, text: str) -> None:
    """Half a surrogate pair, which YAML lets pass, becomes a question mark."""
    write_text(path, text.encode(errors="replace").decode())
