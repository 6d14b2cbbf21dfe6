"""From folders of runs to the files of a report."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from hrsa_lightning.errors import DataError
from hrsa_lightning.report.facts import fact_of
from hrsa_lightning.report.grouping import Experiment, group_runs
from hrsa_lightning.report.parts import groups_of, place_of
from hrsa_lightning.report.reading import find_runs, read_run
from hrsa_lightning.report.rendering import draw_panels, to_html, to_markdown, write_pictures
from hrsa_lightning.report.sections import report_blocks
from hrsa_lightning.report.statistics import realignment_gain, spread
from hrsa_lightning.report.verdict import derive, pairs_of

__all__ = ["write_report"]

_PICTURES = "figures"


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    displacement: Sequence[str] = (),
    seed_controls: Sequence[str] = (),
    replicates: bool = False,
    log_x: bool = False,
) -> Path:
    """Write `report.html`, `report.md`, CSV files and pictures.

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
    subtitle = f"How representations drifted and realigned: {count} run{'s' * (count > 1)}"
    try:
        (out / _PICTURES).mkdir(parents=True, exist_ok=True)
        for name, rows in (
            ("values.csv", _values(experiments)),
            ("curves.csv", _curves(experiments)),
            ("derived.csv", _derived(experiments)),
        ):
            _write(out / name, _csv(rows))
        drawn = draw_panels(blocks)
        write_pictures(blocks, drawn, out / _PICTURES)
        _write(out / "report.md", to_markdown(title, subtitle, blocks, _PICTURES))
        _write(out / "report.html", to_html(title, subtitle, blocks, drawn))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    return out / "report.html"


def _values(experiments: Sequence[Experiment]) -> Iterable[Sequence[object]]:
    """Every value at every place, before and after."""
    yield (
        *("experiment", "group", "comparison", "metric", "where", "runs", "before_mean"),
        *("before_std", "after_mean", "after_std", "gain_mean", "gain_std", "chance"),
    )
    for experiment in experiments:
        for key in experiment.keys:
            curve = experiment.curve(key)
            if curve is None:
                continue
            fact = fact_of(key.metric)
            before, after = spread(curve.first), spread(curve.last)
            gain = spread(
                [
                    realignment_gain(fact.similarity(first), fact.similarity(last))
                    for first, last in zip(curve.first, curve.last, strict=True)
                ]
            )
            yield (
                *(experiment.label, key.group, key.comparison, key.metric, key.where),
                after.num_values,
                *(before.mean, before.std, after.mean, after.std, gain.mean, gain.std),
                experiment.floors.get(key, math.nan),
            )


def _curves(experiments: Sequence[Experiment]) -> Iterable[Sequence[object]]:
    """What the curves show: mean and standard deviation at every step."""
    yield ("experiment", "group", "comparison", "metric", "where", "step", "mean", "std", "runs")
    for experiment in experiments:
        places = {group: place_of(experiment, group) for group in groups_of(experiment)}
        for key in experiment.keys:
            curve = experiment.curve(key) if key.where == places[key.group] else None
            if curve is None:
                continue
            name = (experiment.label, key.group, key.comparison, key.metric, key.where)
            for step, values in zip(curve.steps.tolist(), curve.values.T.tolist(), strict=True):
                found = spread(values)
                yield (*name, f"{step:g}", found.mean, found.std, found.num_values)


def _derived(experiments: Sequence[Experiment]) -> Iterable[Sequence[object]]:
    """Derived quantities of every pair, mean and standard deviation over runs."""
    names = ("gain", "half_life", "recovered", "closed", "by_pair", "by_control")
    yield (
        *("experiment", "group", "comparison", "metric", "where"),
        *(f"{name}_{part}" for name in names for part in ("mean", "std")),
    )
    for experiment in experiments:
        for group in groups_of(experiment):
            where = place_of(experiment, group)
            pairs, controls, _ = pairs_of(experiment, group)
            for pair in pairs:
                for d in derive(experiment, group, pair, where, controls):
                    spreads = (d.gain, d.half_life, d.recovered, d.closed, d.by_pair, d.by_control)
                    yield (
                        *(experiment.label, group, pair, d.key.metric, where),
                        *(part for found in spreads for part in (found.mean, found.std)),
                    )


def _csv(rows: Iterable[Sequence[object]]) -> str:
    """Undefined values are left empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])
    return buffer.getvalue()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
